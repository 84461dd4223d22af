"""The training loop: batches in, a trained student out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segtailor.config import DataConfig, EvaluateConfig, TrainConfig
from segtailor.data.base import SegmentationDataset
from segtailor.data.loader import Batch, train_batches
from segtailor.engine.checkpoint import load_checkpoint, save_checkpoint
from segtailor.engine.launch import any_process, seed_step, split_batch
from segtailor.engine.learner import Learner, Taught
from segtailor.engine.logging import Recorder
from segtailor.engine.opponents import Opponents
from segtailor.engine.optim import AveragedWeights, build_optimizer, learning_rate, set_learning_rate
from segtailor.engine.preemption import RunStopped, StopRequest
from segtailor.engine.window import check_weights
from segtailor.evaluation import EvaluationResult, evaluate_model, inference_settings
from segtailor.losses import global_batch
from segtailor.models import save_model
from segtailor.models.segmenter import Segmenter
from segtailor.models.teacher import Teacher

FEW_IMAGES = 8


@dataclass
class Task:
    """What one student is trained on: data, settings, and the folder that takes its files."""

    label: str
    folder: Path
    train_data: SegmentationDataset
    val_data: SegmentationDataset
    data: DataConfig
    train: TrainConfig
    evaluate: EvaluateConfig
    card: dict[str, Any] = field(default_factory=dict)


@dataclass
class Trained:
    """The trained subject, its score after the last step (if it is scored), and the best score on the way."""

    student: Any
    score: EvaluationResult | None
    best_miou: float
    best_step: int
    seconds: float

    @property
    def last(self) -> EvaluationResult:
        """The score after the last step."""
        assert self.score is not None
        return self.score


@dataclass
class Progress:
    """What a checkpoint remembers beside the tensors."""

    step: int = 0
    saved: int = 0
    seconds: float = 0.0
    best_miou: float = -1.0
    best_step: int = 0


def fit(fabric: Any, learner: Learner, teacher: Teacher | None, task: Task) -> Trained:
    """Train ``learner`` on ``task`` and return its subject; goes on from the folder's checkpoint if there is one.

    Writes ``metrics.jsonl``, TensorBoard events and ``checkpoints/{last.ckpt,best.safetensors}``. Raises ``RunStopped``
    after Ctrl-C or SIGTERM (a checkpoint is written first) and ``SegtailorError`` when a loss is not finite.
    """
    train, device, rank, world = task.train, fabric.device, fabric.global_rank, fabric.world_size
    micro, accumulate = split_batch(train.batch, train.micro_batch, world)
    learner, teacher = _placed(learner, teacher, train, micro, fabric)
    opponents = Opponents(fabric, learner.opponents)
    module, optimizer = fabric.setup(learner, build_optimizer(learner, train.optimizer))
    average = AveragedWeights(learner.subject, train.ema) if train.ema and learner.subject is not None else None
    subject = average.model if average is not None else learner.subject
    checkpoint = task.folder / "checkpoints" / "last.ckpt"
    state = Progress()
    if checkpoint.exists():
        state = _restore(load_checkpoint(checkpoint), learner, optimizer, opponents, average, fabric)
    guide = _guide(fabric, learner, teacher)
    recorder = Recorder(task.label, task.folder, train.steps, state.step, fabric)
    save_every = train.checkpoint_every or task.evaluate.every
    result: EvaluationResult | None = None

    batches = train_batches(
        task.train_data, task.data, seed=train.seed, global_batch=train.batch, micro_batch=micro,
        rank=rank, world=world, start_step=state.step, steps=train.steps,
    )  # fmt: skip
    with closing(recorder), StopRequest() as stop:
        recorder.restart(state.seconds)
        for step in range(state.step + 1, train.steps + 1):
            seed_step(train.seed, step, rank)
            set_learning_rate(optimizer, learning_rate(step, train.steps, train.optimizer.lr, train.schedule))
            with recorder.waiting():
                step_batches = [_to_device(next(batches), device) for _ in range(accumulate)]
            step_terms = _train_step(
                fabric, module, guide, optimizer, opponents, step_batches, step / train.steps, train.clip
            )
            if average is not None and learner.subject is not None:
                average.update(learner.subject, step)
            state.step = step
            recorder.step(step, step_terms, train.batch)

            last, stopping = step == train.steps, any_process(fabric, stop.requested, device)
            evaluating = subject is not None and (last or step % task.evaluate.every == 0)
            saving = last or stopping or step % save_every == 0
            if evaluating or saving or step % train.log_every == 0:
                state.seconds = recorder.flush(step, optimizer.param_groups[0]["lr"], state.saved)
            if evaluating and subject is not None:
                result = _evaluate(fabric, subject, task)
                recorder.evaluated(step, result, "student" if average is None else "ema")
                if average is not None and last and learner.subject is not None:
                    recorder.evaluated(step, _evaluate(fabric, learner.subject, task), "student")
                if result.miou > state.best_miou:
                    state.best_miou, state.best_step = result.miou, step
                    if fabric.is_global_zero and isinstance(subject, Segmenter):
                        card = {**task.card, "metrics": {"miou": result.miou, "step": step}}
                        save_model(subject, task.folder / "checkpoints" / "best.safetensors", card)
            if saving:
                check_weights(learner, step, state.saved)
                state.saved = step
                if fabric.is_global_zero:
                    save_checkpoint(checkpoint, _snapshot(state, learner, optimizer, opponents, average, fabric))
                fabric.barrier()
            if stopping and not last:
                raise RunStopped(f"stopped after step {step} of {train.steps}; the checkpoint is written", stop.code)
            if evaluating or saving:
                recorder.restart(state.seconds)
    if result is None and subject is not None:
        result = _evaluate(fabric, subject, task)
    return Trained(subject, result, state.best_miou, state.best_step, state.seconds)


def _placed(
    learner: Learner, teacher: Teacher | None, train: TrainConfig, micro: int, fabric: Any
) -> tuple[Learner, Teacher | None]:
    """Put both on the device, batch norm over all processes where that exists; say so when it sees few images."""
    synced = fabric.world_size > 1 and train.sync_batchnorm and fabric.device.type == "cuda"
    if synced:
        learner = torch.nn.SyncBatchNorm.convert_sync_batchnorm(learner)  # type: ignore[no-untyped-call]
    seen = micro * fabric.world_size if synced else micro
    parts = [] if learner.subject is None else learner.subject.modules()
    normed = any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in parts)
    if normed and seen < FEW_IMAGES and fabric.is_global_zero:
        print(f"note: batch norm sees {seen} images at a time; scores may suffer below {FEW_IMAGES}", file=sys.stderr)
    for own in learner.teachers.values():
        own.to(fabric.device)
    return learner, teacher.to(fabric.device) if teacher is not None else None


def _guide(fabric: Any, learner: Learner, teacher: Teacher | None) -> Callable[[Tensor, Tensor], Taught]:
    """Return what gives the teachers' outputs for a batch: in the run's precision, and only what the methods read."""

    def guide(images: Tensor, target: Tensor) -> Taught:
        with fabric.autocast():
            shared = None if teacher is None else teacher(images, target)
            return learner.select(shared, {name: own(images, target) for name, own in learner.teachers.items()})

    return guide


def _train_step(
    fabric: Any,
    module: Any,
    guide: Callable[[Tensor, Tensor], Taught],
    optimizer: Any,
    opponents: Opponents,
    batches: list[Batch],
    progress: float,
    clip: float | None,
) -> dict[str, torch.Tensor]:
    """One optimizer step over the micro-batches of this process; returns each term's mean over them."""
    module.train()
    optimizer.zero_grad(set_to_none=True)
    sums: dict[str, torch.Tensor] = {}
    count = len(batches)
    with global_batch([batch.target for batch in batches]):
        for index, batch in enumerate(batches):
            # Gradients are exchanged once a step, with the last micro-batch.
            waiting = fabric.no_backward_sync(module, enabled=index + 1 < count) if count > 1 else nullcontext()
            taught = guide(batch.images, batch.target)
            with waiting, opponents.frozen():
                terms = module(batch.images, batch.target, taught, progress)
                fabric.backward(torch.stack(list(terms.values())).sum() / count)
            terms |= opponents.accumulate(module.seen, taught, batch.target, 1 / count, last=index + 1 == count)
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / count
    if clip is not None:
        fabric.clip_gradients(module, optimizer, max_norm=clip, error_if_nonfinite=False)
    optimizer.step()
    opponents.step()
    return sums


def _evaluate(fabric: Any, model: nn.Module, task: Task) -> EvaluationResult:
    return evaluate_model(
        model, task.val_data, device=fabric.device, batch=task.evaluate.batch, workers=task.data.workers,
        rank=fabric.global_rank, world=fabric.world_size, **inference_settings(task.evaluate, task.data),
    )  # fmt: skip


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.images.to(device, non_blocking=True), batch.target.to(device, non_blocking=True), batch.names)


def _snapshot(
    state: Progress,
    learner: Learner,
    optimizer: Any,
    opponents: Opponents,
    average: AveragedWeights[nn.Module] | None,
    fabric: Any,
) -> dict[str, Any]:
    return {
        "progress": vars(state).copy(),
        "distiller": learner.state_dict(),
        "optimizer": optimizer.state_dict(),
        "opponents": opponents.state_dict(),
        "average": average.model.state_dict() if average is not None else None,
        "precision": fabric.strategy.precision.state_dict(),
    }


def _restore(
    saved: dict[str, Any],
    learner: Learner,
    optimizer: Any,
    opponents: Opponents,
    average: AveragedWeights[nn.Module] | None,
    fabric: Any,
) -> Progress:
    learner.load_state_dict(saved["distiller"])
    optimizer.load_state_dict(saved["optimizer"])
    opponents.load_state_dict(saved.get("opponents", {}))
    if average is not None:
        average.model.load_state_dict(saved["average"])
    fabric.strategy.precision.load_state_dict(saved["precision"])
    return Progress(**saved["progress"])
