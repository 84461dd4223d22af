"""One learner in training: its optimizer, opponents and averaged weights, its records and its files."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segtailor.config import DataConfig, EvaluateConfig, TrainConfig
from segtailor.data.base import SegmentationDataset
from segtailor.data.loader import Batch
from segtailor.data.pseudo import UnlabelledImages, mix_of
from segtailor.engine.checkpoint import load_checkpoint, save_checkpoint
from segtailor.engine.launch import average_over_processes, running_statistics
from segtailor.engine.learner import Learner
from segtailor.engine.logging import Recorder
from segtailor.engine.opponents import Opponents
from segtailor.engine.optim import AveragedWeights, build_optimizer, learning_rate, set_learning_rate
from segtailor.engine.unlabelled import Handout, StepTargets, check_rows
from segtailor.engine.window import check_weights
from segtailor.evaluation import EvaluationResult, evaluate_model, inference_settings
from segtailor.losses import Step
from segtailor.models import save_model
from segtailor.models.network import Network, SegOutput


@dataclass
class Task:
    """What one learner is trained on: data, settings, and the folder that takes its files.

    ``unlabelled`` images are read beside the training data, in the share that ``data.unlabelled`` says.
    """

    label: str
    folder: Path
    train_data: SegmentationDataset
    val_data: SegmentationDataset
    data: DataConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    card: dict[str, Any] = field(default_factory=dict)
    unlabelled: UnlabelledImages | None = None


@dataclass
class Progress:
    """What a checkpoint remembers beside the tensors."""

    step: int = 0
    saved: int = 0
    seconds: float = 0.0
    best_miou: float = -1.0
    best_step: int = 0
    teacher_seconds: float = 0.0
    teacher_seconds_alone: float = 0.0
    peak_bytes: int = 0


class Arm:
    """Trains ``learner`` step by step on what it is given; goes on from its folder's checkpoint if there is one.

    A step is :meth:`begin`, :meth:`accumulate` for each micro-batch, :meth:`finish`; then :meth:`close_step`, which
    writes, scores and saves where it is time. Only work inside :meth:`timed` counts as its training time.
    """

    def __init__(self, fabric: Any, learner: Learner, task: Task, quiet: bool = False) -> None:
        self.fabric, self.task = fabric, task
        self.learner = _placed(learner, task.train, fabric)
        train, subject = task.train, self.learner.subject
        self._images = train.batch
        if task.unlabelled is not None and (self.learner.teachers or not self.learner.uses_shared):
            check_rows(train, task.data, fabric.world_size)
        if task.unlabelled is not None and not self.learner.uses_shared:
            self._images = mix_of(task.data.unlabelled, train.batch).labelled
        self.opponents = Opponents(fabric, self.learner.opponents)
        self.module, self.optimizer = fabric.setup(self.learner, build_optimizer(self.learner, train.optimizer))
        self._statistics = running_statistics(self.learner)
        self.average = AveragedWeights(subject, train.ema) if train.ema and subject is not None else None
        self.subject = self.average.model if self.average is not None else subject
        self.checkpoint = task.folder / "checkpoints" / "last.ckpt"
        self.state = Progress()
        if self.checkpoint.exists():
            self._restore(load_checkpoint(self.checkpoint))
        self.recorder = Recorder(
            task.label, task.folder, train.steps, self.state.step, fabric, self.state.seconds, quiet
        )
        self.recorder.teacher_seconds = self.state.teacher_seconds
        self.recorder.teacher_seconds_alone = self.state.teacher_seconds_alone
        self.result: EvaluationResult | None = None
        self._sums: dict[str, Tensor] = {}
        self._confident: Tensor | None = None

    @property
    def finished(self) -> bool:
        """Whether every step was made."""
        return self.state.step >= self.task.train.steps

    @contextmanager
    def timed(self, wait: bool = False) -> Iterator[None]:
        """Count the time inside as this arm's training; with ``wait`` until the device has done the work, too."""
        began = time.perf_counter()
        yield
        if wait and self.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.fabric.device)
        self.recorder.spend(time.perf_counter() - began)

    @contextmanager
    def measured(self, step: int) -> Iterator[None]:
        """On a GPU, where ``step`` is logged, note the most memory that the arm takes inside, without the others'."""
        device = self.fabric.device
        if device.type != "cuda" or step % self.task.train.log_every:
            yield
            return
        torch.cuda.reset_peak_memory_stats(device)
        others = torch.cuda.memory_allocated(device) - self._held()
        yield
        self.state.peak_bytes = max(self.state.peak_bytes, torch.cuda.max_memory_allocated(device) - others)

    def _held(self) -> int:
        """Return the bytes that the arm keeps on the device: weights, gradients, optimizers, averages, teachers."""
        networks = [self.learner, *self.learner.teachers.values(), *self.learner.opponents.values()]
        networks += [] if self.average is None else [self.average.model]
        optimizers = [self.optimizer, *self.opponents.optimizers]
        weights = [value for network in networks for value in (*network.parameters(), *network.buffers())]
        states = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
        held = [*weights, *(value.grad for value in weights), *states]
        return sum(value.nbytes for value in held if isinstance(value, Tensor) and value.is_cuda)

    def drop(self) -> None:
        """Free the device of what the arm holds; it is trained no further."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        self.learner.cpu()

    def begin(self, step: int) -> None:
        """Start ``step``, counted from 1."""
        train = self.task.train
        set_learning_rate(self.optimizer, learning_rate(step, train.steps, train.optimizer.lr, train.schedule))
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        self._sums = {}

    def accumulate(
        self,
        batch: Batch,
        shared: SegOutput | None,
        step: Step,
        index: int,
        count: int,
        targets: StepTargets | None = None,
    ) -> None:
        """Add the gradients of micro-batch ``index`` of ``count``; ``shared`` is the recipe's teacher's output.

        Where batches hold unlabelled images, ``targets`` are those of the whole step. A learner that the teacher does
        not teach passes these images over.
        """
        if targets is None:
            self._accumulate(batch, shared, step, index, count, None)
        elif self.learner.uses_shared:
            self._accumulate(batch, shared, step, index, count, targets.handout(index, self.learner.readings))
            self._confident = targets.confident
        else:
            labelled = Step(step.progress, targets.targets["labelled images"])
            self._accumulate(batch.labelled_part(), None, labelled, index, count, None)

    def _accumulate(
        self, batch: Batch, shared: SegOutput | None, step: Step, index: int, count: int, handout: Handout | None
    ) -> None:
        learner, last = self.learner, index + 1 == count
        with self.fabric.autocast():
            labelled = batch if handout is None or not learner.teachers else batch.labelled_part()
            own = {name: teacher(labelled.images, labelled.target) for name, teacher in learner.teachers.items()}
        taught = learner.select(shared, own)
        # Gradients are exchanged once a step, with the last micro-batch.
        waiting = nullcontext() if last else self.fabric.no_backward_sync(self.module)
        with waiting, self.opponents.frozen():
            terms = self.module(batch.images, batch.target, taught, step, handout)
            self.fabric.backward(torch.stack(list(terms.values())).sum() / count)
        terms |= self.opponents.accumulate(learner.seen, taught, batch.target, step, 1 / count, last, handout)
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value.detach() / count

    def finish(self, step: int) -> None:
        """Step the optimizers after the last micro-batch of ``step``."""
        train = self.task.train
        if train.clip is not None:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=train.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.opponents.step()
        average_over_processes(self.fabric, self._statistics)
        if self.average is not None and self.learner.subject is not None:
            self.average.update(self.learner.subject, step)
        self.state.step = step
        self.recorder.step(step, self._sums, self._images, self._confident)

    def close_step(self, step: int, stopping: bool, wait: bool = False) -> None:
        """Write the losses, score and save after ``step`` where it is time to.

        Raises ``SegtailorError`` when a loss or a weight is not finite.
        """
        task, last = self.task, step == self.task.train.steps
        evaluating = self.subject is not None and (last or step % task.evaluate.every == 0)
        saving = last or stopping or step % (task.train.checkpoint_every or task.evaluate.every) == 0
        if evaluating or saving or step % task.train.log_every == 0:
            with self.timed(wait):
                means = self.recorder.losses(self.state.saved)  # waits for the device
            self.state.seconds = self.recorder.flush(step, means, self.optimizer.param_groups[0]["lr"])
        if evaluating and self.subject is not None:
            self._score(step, last)
        if saving:
            check_weights(self.learner, step, self.state.saved)
            self.state.saved = step
            self.state.teacher_seconds = self.recorder.teacher_seconds
            self.state.teacher_seconds_alone = self.recorder.teacher_seconds_alone
            if self.fabric.is_global_zero:
                save_checkpoint(self.checkpoint, self._snapshot())
            self.fabric.barrier()

    def score(self) -> EvaluationResult | None:
        """Return the score after the last step, or None where nothing is scored."""
        if self.result is None and self.subject is not None:
            self.result = self._evaluate(self.subject)
        return self.result

    def close(self) -> None:
        """Close the records."""
        self.recorder.close()

    def _score(self, step: int, last: bool) -> None:
        assert self.subject is not None
        self.result = self._evaluate(self.subject)
        self.recorder.evaluated(step, self.result, "student" if self.average is None else "ema")
        if self.average is not None and last and self.learner.subject is not None:
            self.recorder.evaluated(step, self._evaluate(self.learner.subject), "student")
        state = self.state
        if self.result.miou > state.best_miou:
            state.best_miou, state.best_step = self.result.miou, step
            if self.fabric.is_global_zero and isinstance(self.subject, Network):
                card = {**self.task.card, "metrics": {"miou": self.result.miou, "step": step}}
                save_model(self.subject, self.task.folder / "checkpoints" / "best.safetensors", card)

    def _evaluate(self, model: nn.Module) -> EvaluationResult:
        task, fabric = self.task, self.fabric
        return evaluate_model(
            model, task.val_data, device=fabric.device, batch=task.evaluate.batch, workers=task.data.workers,
            rank=fabric.global_rank, world=fabric.world_size, **inference_settings(task.evaluate, task.data),
        )  # fmt: skip

    def _snapshot(self) -> dict[str, Any]:
        return {
            "progress": vars(self.state).copy(),
            "distiller": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "opponents": self.opponents.state_dict(),
            "average": self.average.model.state_dict() if self.average is not None else None,
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        self.learner.load_state_dict(saved["distiller"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.opponents.load_state_dict(saved.get("opponents", {}))
        if self.average is not None:
            self.average.model.load_state_dict(saved["average"])
        self.fabric.strategy.precision.load_state_dict(saved["precision"])
        self.state = Progress(**saved["progress"])


def _placed(learner: Learner, train: TrainConfig, fabric: Any) -> Learner:
    """Put methods' own teachers on the device, and batch norm over all processes where that exists."""
    if fabric.world_size > 1 and train.sync_batchnorm and fabric.device.type == "cuda":
        learner = torch.nn.SyncBatchNorm.convert_sync_batchnorm(learner)  # type: ignore[no-untyped-call]
    for own in learner.teachers.values():
        own.to(fabric.device)
    return learner
