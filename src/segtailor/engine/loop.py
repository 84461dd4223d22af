"""The training loop: batches in, trained students out. One pass of the teacher serves every arm of a step."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segtailor.config import DataConfig, EvaluateConfig, ScheduleConfig, TrainConfig
from segtailor.data.base import SegmentationDataset
from segtailor.data.loader import Batch, train_batches
from segtailor.data.pseudo import UnlabelledImages, mix_of
from segtailor.engine.launch import any_process, average_over_processes, running_statistics
from segtailor.engine.logging import Recorder, RunState, check_weights
from segtailor.engine.module import Adversaries, Objective
from segtailor.engine.optim import AveragedWeights, build_optimizer
from segtailor.engine.pseudo_labels import PseudoLabels
from segtailor.engine.runs import RunStopped, StopRequest, fitting_checkpoint, load_checkpoint, save_checkpoint
from segtailor.errors import SegtailorError
from segtailor.evaluation import EvaluationResult, evaluate_model, inference_settings
from segtailor.losses import Step
from segtailor.models import save_model
from segtailor.models.network import Network, SegOutput
from segtailor.models.teacher import Teacher

FEW_IMAGES = 8


@dataclass
class RunSpec:
    """The training of one objective: data, settings, and the folder for its files.

    ``unlabelled`` images are read beside the training data, in the share that ``data.unlabelled`` gives.
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
class Trained:
    """The trained subject, its score after the last step (if it is scored), and the best score and times in ``state``.

    ``problem`` is why the training of an arm among others failed.
    """

    student: Any
    score: EvaluationResult | None
    state: RunState
    problem: str | None = None

    @property
    def last(self) -> EvaluationResult:
        """The score after the last step."""
        assert self.score is not None
        return self.score


def fit(fabric: Any, objective: Objective, teacher: Teacher | None, spec: RunSpec) -> Trained:
    """Train ``objective`` as ``spec`` says and return its subject; continues from the folder's checkpoint if any.

    Writes ``metrics.jsonl``, TensorBoard events and ``checkpoints/{last.ckpt,best.safetensors}``. Raises ``RunStopped``
    after Ctrl-C or SIGTERM (a checkpoint is written first) and ``SegtailorError`` when a loss is not finite.
    """
    return fit_together(fabric, [(objective, spec)], teacher, keep_going=False)[0]


def fit_together(
    fabric: Any, entries: Sequence[tuple[Objective, RunSpec]], teacher: Teacher | None, keep_going: bool = True
) -> list[Trained]:
    """Train several objectives in lockstep: on the same batches, with one pass of ``teacher`` for all.

    Data, batch, steps and seed are the first spec's; each arm has its optimizer, draws and files, and learns exactly
    what it would alone. With ``keep_going`` an arm whose loss is not finite, or that runs out of memory, is dropped
    with its ``problem``, and the others continue. Arms that resume from different steps wait for each other.
    """
    first = entries[0][1]
    train, device, rank, world = first.train, fabric.device, fabric.global_rank, fabric.world_size
    micro, count = split_batch(train.batch, train.micro_batch, world)
    several = len(entries) > 1  # then work on a GPU is waited for, so that each arm's time is its own
    _note_few_images(fabric, entries, micro)
    if teacher is not None:
        teacher.to(device)
    arms = [ArmTrainer(fabric, objective, spec, quiet=several) for objective, spec in entries]
    start = min(arm.state.step for arm in arms)
    reader = train_batches(
        first.train_data, first.data, seed=train.seed, global_batch=train.batch, micro_batch=micro,
        rank=rank, world=world, start_step=start, steps=train.steps, unlabelled=first.unlabelled,
    )  # fmt: skip
    with ExitStack() as stack, StopRequest() as stop:
        for arm in arms:
            stack.callback(arm.recorder.close)
        for n in range(start + 1, train.steps + 1):
            began = time.perf_counter()
            try:
                batches = [next(reader).to(device) for _ in range(count)]
            except SegtailorError:
                for arm in arms if world == 1 else ():
                    arm.rescue()
                raise
            waited = time.perf_counter() - began
            active = [arm for arm in arms if arm.problem is None and arm.state.step < n]
            for arm in active:
                arm.recorder.wait(waited, 1 / len(active))
                arm.begin(n)
            step, pseudo = Step(n / train.steps, [batch.target for batch in batches]), None
            if first.unlabelled is not None and first.data.unlabelled is not None:
                pseudo = PseudoLabels(batches, first.data.unlabelled.threshold, step.progress)
                # Means over confident pixels divide by those of the whole step.
                ahead = [arm for arm in active if "pseudo_confident" in arm.objective.target_kinds.values()]
                if teacher is not None and ahead and count > 1:
                    with _teaching(ahead, device, wait=several):
                        pseudo.label_ahead(teacher, fabric.autocast)
            for part, batch in enumerate(batches):
                taught, shared = [arm for arm in active if arm.objective.uses_teacher and arm.problem is None], None
                if teacher is not None and taught:
                    with _teaching(taught, device, wait=several):
                        with fabric.autocast():
                            shared = teacher(batch.images, batch.target)
                        if pseudo is not None:
                            pseudo.label(part, teacher, shared)
                # Each arm takes its reference, so that the last one's backward frees what its method does not keep.
                outputs, shared = [shared] * len(taught), None
                for arm in active:
                    if arm.problem is None:
                        seed_step(train.seed, n, rank, part)
                        with arm.surviving(keep_going), arm.timed(several), arm.measured(n):
                            arm.accumulate(batch, outputs if arm in taught else [None], step, part, count, pseudo)
                            if part + 1 == count:
                                arm.finish(n)
            last, stopping = n == train.steps, any_process(fabric, stop.requested, device)
            for arm in active:
                if arm.problem is None:
                    with arm.surviving(keep_going):
                        arm.close_step(n, stopping, wait=several)
            if all(arm.problem is not None for arm in arms):
                break
            if stopping and not last:
                raise RunStopped(f"stopped after step {n} of {train.steps}; the checkpoint is written", stop.code)
    return [arm.trained() for arm in arms]


class ArmTrainer:
    """Trains one objective step by step: its optimizer, records and files.

    A step is :meth:`begin`, :meth:`accumulate` for each micro-batch, :meth:`finish`; then :meth:`close_step`, which
    writes, scores and saves where that is due. Only work inside :meth:`timed` counts as training time.
    """

    def __init__(self, fabric: Any, objective: Objective, spec: RunSpec, quiet: bool = False) -> None:
        train, subject = spec.train, objective.subject
        synced = _synchronizes(fabric, train)
        if synced:
            objective = nn.SyncBatchNorm.convert_sync_batchnorm(objective)  # type: ignore[no-untyped-call]
        for own in objective.own_teachers.values():
            own.to(fabric.device)
        self.fabric, self.objective, self.spec = fabric, objective, spec
        self.problem: str | None = None
        self._images = train.batch
        if spec.unlabelled is not None and not objective.uses_teacher:
            self._images = mix_of(spec.data.unlabelled, train.batch).labelled
        self.adversaries = Adversaries(fabric, objective.adversaries, synced)
        self.module, self.optimizer = fabric.setup(objective, build_optimizer(objective, train.optimizer))
        self._statistics = running_statistics(objective)
        self.average = AveragedWeights(subject, train.ema) if train.ema and subject is not None else None
        self.subject = self.average.model if self.average is not None else subject
        self.checkpoint = spec.folder / "checkpoints" / "last.ckpt"
        self.state = RunState()
        if self.checkpoint.exists():
            with fitting_checkpoint(self.checkpoint):
                self._restore(load_checkpoint(self.checkpoint))
        self.recorder = Recorder(spec.label, spec.folder, train.steps, self.state, fabric, quiet)
        self.result: EvaluationResult | None = None
        self._sums: dict[str, Tensor] = {}
        self._confident: Tensor | None = None

    def begin(self, n: int) -> None:
        """Start step ``n``, counted from 1."""
        train = self.spec.train
        set_learning_rate(self.optimizer, learning_rate(n, train.steps, train.optimizer.lr, train.schedule))
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        self._sums = {}

    def accumulate(
        self,
        batch: Batch,
        outputs: list[SegOutput | None],
        step: Step,
        part: int,
        count: int,
        pseudo: PseudoLabels | None,
    ) -> None:
        """Add the gradients of micro-batch ``part`` of ``count``; takes the recipe's teacher's output off ``outputs``.

        Where batches hold unlabelled images, ``pseudo`` has the targets of the step; an objective without the recipe's
        teacher leaves these images out.
        """
        objective, last, targets, shared = self.objective, part + 1 == count, None, outputs.pop()
        if pseudo is not None and objective.uses_teacher:
            targets, self._confident = pseudo.of(part), pseudo.confident
        elif pseudo is not None:
            batch, shared, step = batch.labelled_part(), None, pseudo.steps["supervised"]
        own = {}
        if objective.own_teachers:
            seen = batch.labelled_part()
            with self.fabric.autocast():
                own = {name: teacher(seen.images, seen.target) for name, teacher in objective.own_teachers.items()}
        teachers = objective.select(shared, own)
        # Gradients are exchanged between processes once a step, with the last micro-batch.
        waiting = nullcontext() if last else self.fabric.no_backward_sync(self.module)
        with waiting, self.adversaries.frozen():
            terms = self.module(batch.images, batch.target, teachers, step, targets)
            del shared, own, teachers
            self.fabric.backward(torch.stack(list(terms.values())).sum() / count)
        terms |= self.adversaries.accumulate(objective.adversary_inputs, 1 / count, last)
        for name, value in terms.items():
            self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value.detach() / count

    def finish(self, n: int) -> None:
        """Step the optimizers after the last micro-batch of step ``n``."""
        clip, subject = self.spec.train.clip, self.objective.subject
        if clip is not None:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.adversaries.step()
        average_over_processes(self.fabric, self._statistics)
        if self.average is not None and subject is not None:
            self.average.update(subject, n)
        self.state.step = n
        self.recorder.step(n, self._sums, self._images, self._confident)

    def close_step(self, n: int, stopping: bool, wait: bool = False) -> None:
        """Write the losses, score and save after step ``n`` where these are due.

        Raises ``SegtailorError`` when a loss or a weight is not finite.
        """
        train, every, last = self.spec.train, self.spec.evaluate.every, n == self.spec.train.steps
        evaluating = self.subject is not None and (last or n % every == 0)
        saving = last or stopping or n % (train.checkpoint_every or every) == 0
        if evaluating or saving or n % train.log_every == 0:
            self._flush(wait)
        if evaluating:
            self._score(n, last)
        if saving:
            self._save()
            self.fabric.barrier()

    def rescue(self) -> None:
        """Save the last whole step where no more batches come, unless it is saved already."""
        if self.problem is None and self.state.step > self.state.saved:
            self._flush()
            self._save()

    def _flush(self, wait: bool = False) -> None:
        with self.timed(wait):
            means = self.recorder.losses()  # waits for the device
        if means:
            self.recorder.flush(self.state.step, means, self.optimizer.param_groups[0]["lr"])

    def _save(self) -> None:
        check_weights(self.objective, self.state.step, self.state.saved)
        self.state.saved = self.state.step
        if self.fabric.is_global_zero:
            save_checkpoint(self.checkpoint, self._snapshot())

    def trained(self) -> Trained:
        """Return the outcome; an arm that had finished before it was resumed is scored now."""
        if self.result is None and self.problem is None and self.subject is not None:
            self.result = self._evaluate(self.subject)
        return Trained(self.subject, self.result if self.problem is None else None, self.state, self.problem)

    @contextmanager
    def surviving(self, keep_going: bool) -> Iterator[None]:
        """With ``keep_going``, record a failure as the arm's ``problem`` and free the arm's memory.

        A failure in one of several processes alone (memory, a disk) ends them all: the others would wait for it.
        """
        try:
            yield
            return
        except (SegtailorError, torch.OutOfMemoryError) as error:
            short = isinstance(error, torch.OutOfMemoryError)
            alone = short or isinstance(error.__cause__, OSError)
            if not keep_going or (alone and self.fabric.world_size > 1):
                raise
            self.problem = "out of memory" if short else str(error)
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()
        self.objective.cpu()

    @contextmanager
    def timed(self, wait: bool = False) -> Iterator[None]:
        """Count the time inside as this arm's training; with ``wait`` until the device has finished."""
        began = time.perf_counter()
        yield
        if wait and self.fabric.device.type == "cuda":
            torch.cuda.synchronize(self.fabric.device)
        self.state.seconds += time.perf_counter() - began

    @contextmanager
    def measured(self, n: int) -> Iterator[None]:
        """On a GPU, where step ``n`` is logged, note the most memory that the arm takes inside, without the others'."""
        device = self.fabric.device
        if device.type != "cuda" or n % self.spec.train.log_every:
            yield
            return
        torch.cuda.reset_peak_memory_stats(device)
        others = torch.cuda.memory_allocated(device) - self._held()
        yield
        self.state.peak_bytes = max(self.state.peak_bytes, torch.cuda.max_memory_allocated(device) - others)

    def _held(self) -> int:
        """Return the bytes that the arm keeps on the GPU: weights, gradients, optimizers, averages, teachers."""
        networks = [self.objective, *self.objective.own_teachers.values(), *self.objective.adversaries.values()]
        networks += [] if self.average is None else [self.average.model]
        optimizers = [self.optimizer, *self.adversaries.optimizers.values()]
        weights = [value for network in networks for value in (*network.parameters(), *network.buffers())]
        states = [value for optimizer in optimizers for state in optimizer.state.values() for value in state.values()]
        held = [*weights, *(value.grad for value in weights), *states]
        return sum(value.nbytes for value in held if isinstance(value, Tensor) and value.is_cuda)

    def _score(self, n: int, last: bool) -> None:
        state, student = self.state, self.objective.subject
        assert self.subject is not None
        self.result = self._evaluate(self.subject)
        self.recorder.evaluated(n, self.result, "student" if self.average is None else "ema")
        if self.average is not None and last and student is not None:
            self.recorder.evaluated(n, self._evaluate(student), "student")
        if self.result.miou > state.best_miou:
            state.best_miou, state.best_step = self.result.miou, n
            if self.fabric.is_global_zero and isinstance(self.subject, Network):
                card = {**self.spec.card, "metrics": {"miou": self.result.miou, "step": n}}
                save_model(self.subject, self.spec.folder / "checkpoints" / "best.safetensors", card)

    def _evaluate(self, model: nn.Module) -> EvaluationResult:
        spec, fabric = self.spec, self.fabric
        return evaluate_model(
            model, spec.val_data, device=fabric.device, batch=spec.evaluate.batch, workers=spec.data.workers,
            rank=fabric.global_rank, world=fabric.world_size, **inference_settings(spec.evaluate, spec.data),
        )  # fmt: skip

    def _snapshot(self) -> dict[str, Any]:
        return {
            "progress": vars(self.state).copy(),
            "distiller": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "opponents": self.adversaries.state_dict(),
            "average": self.average.model.state_dict() if self.average is not None else None,
            "precision": self.fabric.strategy.precision.state_dict(),
        }

    def _restore(self, saved: dict[str, Any]) -> None:
        self.objective.load_state_dict(saved["distiller"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.adversaries.load_state_dict(saved.get("opponents", {}))
        if self.average is not None:
            self.average.model.load_state_dict(saved["average"])
        self.fabric.strategy.precision.load_state_dict(saved["precision"])
        self.state = RunState(**saved["progress"])


def learning_rate(step: int, steps: int, lr: float, schedule: ScheduleConfig) -> float:
    """Return the poly learning rate of ``step`` (counted from 1), with linear warm-up and a floor.

    >>> learning_rate(1, 100, 0.02, ScheduleConfig(power=0.9))
    0.02
    >>> round(learning_rate(51, 100, 0.02, ScheduleConfig(power=1.0, floor=0.01)), 6)
    0.015
    """
    floor = min(schedule.floor, lr)
    poly: float = floor + (lr - floor) * (1 - (step - 1) / steps) ** schedule.power
    return float(poly * min(1.0, step / schedule.warmup)) if schedule.warmup else poly


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every parameter group ``lr`` times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]


def split_batch(batch: int, micro_batch: int | None, world: int) -> tuple[int, int]:
    """Return (images per micro-batch, micro-batches a step) of one process for the global ``batch``.

    >>> split_batch(16, 4, 2)
    (4, 2)
    """
    if batch % world:
        raise SegtailorError(f"train.batch {batch} does not divide by {world} processes; choose a multiple of {world}")
    local = batch // world
    micro = min(micro_batch or local, local)
    if local % micro:
        raise SegtailorError(f"train.micro_batch {micro} does not divide the {local} images of a process")
    return micro, local // micro


def seed_step(seed: int, step: int, rank: int, part: int = 0) -> None:
    """Seed every generator as a function of (seed, step, rank, micro-batch) alone.

    So a resumed run draws the same, and an arm among others draws what it would alone.
    """
    value = (seed * 1_000_003 + step) * 1_009 + rank
    torch.manual_seed((value + (part << 48)) % (2**63))


@contextmanager
def _teaching(arms: Sequence[ArmTrainer], device: torch.device, wait: bool) -> Iterator[None]:
    """Count the time inside as a pass of the common teacher for ``arms``."""
    began = time.perf_counter()
    yield
    if wait and device.type == "cuda":
        torch.cuda.synchronize(device)
    spent = time.perf_counter() - began
    for arm in arms:
        arm.recorder.teach(spent, 1 / len(arms))


def _synchronizes(fabric: Any, train: TrainConfig) -> bool:
    """Return whether batch norm sees the images of all processes; PyTorch does that on GPUs alone."""
    return bool(fabric.world_size > 1 and train.sync_batchnorm and fabric.device.type == "cuda")


def _note_few_images(fabric: Any, entries: Sequence[tuple[Objective, RunSpec]], micro: int) -> None:
    """Print a note when batch norm sees few images at a time."""
    spec = entries[0][1]
    if spec.unlabelled is not None and not all(objective.uses_teacher for objective, _ in entries):
        micro = mix_of(spec.data.unlabelled, spec.train.batch).fewest_labelled(micro)  # they leave the others out
    seen = micro * fabric.world_size if _synchronizes(fabric, spec.train) else micro
    subjects = [objective.subject for objective, _ in entries if objective.subject is not None]
    normed = any(isinstance(part, _BatchNorm) for subject in subjects for part in subject.modules())
    if normed and seen < FEW_IMAGES and fabric.is_global_zero:
        print(f"note: batch norm sees {seen} images at a time; scores may suffer below {FEW_IMAGES}", file=sys.stderr)
