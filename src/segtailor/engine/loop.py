"""The training loop: batches in, a trained student out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segtailor.config import DataConfig, EvaluateConfig, TrainConfig
from segtailor.data.base import SegmentationDataset
from segtailor.data.loader import Batch, train_batches
from segtailor.engine.checkpoint import load_checkpoint, save_checkpoint
from segtailor.engine.distiller import Distiller
from segtailor.engine.launch import any_process, seed_step, split_batch
from segtailor.engine.logging import Recorder
from segtailor.engine.optim import AveragedWeights, build_optimizer, learning_rate, set_learning_rate
from segtailor.engine.preemption import RunStopped, StopRequest
from segtailor.engine.window import check_weights
from segtailor.evaluation import EvaluationResult, evaluate_model, inference_settings
from segtailor.losses import global_batch
from segtailor.models import save_model
from segtailor.models.output import SegOutput
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
    """A trained student, its score after the last step, and the best score on the way."""

    student: Segmenter
    last: EvaluationResult
    best_miou: float
    best_step: int
    seconds: float


@dataclass
class Progress:
    """What a checkpoint remembers beside the tensors."""

    step: int = 0
    saved: int = 0
    seconds: float = 0.0
    best_miou: float = -1.0
    best_step: int = 0


def fit(fabric: Any, distiller: Distiller, teacher: Teacher | None, task: Task) -> Trained:
    """Train ``distiller`` on ``task`` and return its student; goes on from the folder's checkpoint if there is one.

    Writes ``metrics.jsonl``, TensorBoard events and ``checkpoints/{last.ckpt,best.safetensors}``. Raises ``RunStopped``
    after Ctrl-C or SIGTERM (a checkpoint is written first) and ``SegtailorError`` when a loss is not finite.
    """
    train, device, rank, world = task.train, fabric.device, fabric.global_rank, fabric.world_size
    micro, accumulate = split_batch(train.batch, train.micro_batch, world)
    distiller, teacher = _placed(distiller, teacher, train, micro, fabric)
    module, optimizer = fabric.setup(distiller, build_optimizer(distiller, train.optimizer))
    average = AveragedWeights(distiller.student, train.ema) if train.ema else None
    student = average.model if average is not None else distiller.student
    checkpoint = task.folder / "checkpoints" / "last.ckpt"
    state = Progress()
    if checkpoint.exists():
        state = _restore(load_checkpoint(checkpoint), distiller, optimizer, average, fabric)
    guide = None if teacher is None else _guide(fabric, distiller, teacher)
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
            terms = _train_step(fabric, module, guide, optimizer, step_batches, step / train.steps, train.clip)
            if average is not None:
                average.update(distiller.student, step)
            state.step = step
            recorder.step(step, terms, train.batch)

            last, stopping = step == train.steps, any_process(fabric, stop.requested, device)
            evaluating = last or step % task.evaluate.every == 0
            saving = last or stopping or step % save_every == 0
            if evaluating or saving or step % train.log_every == 0:
                state.seconds = recorder.flush(step, optimizer.param_groups[0]["lr"], state.saved)
            if evaluating:
                result = _evaluate(fabric, student, task)
                recorder.evaluated(step, result, "student" if average is None else "ema")
                if average is not None and last:
                    recorder.evaluated(step, _evaluate(fabric, distiller.student, task), "student")
                if result.miou > state.best_miou:
                    state.best_miou, state.best_step = result.miou, step
                    if fabric.is_global_zero:
                        card = {**task.card, "metrics": {"miou": result.miou, "step": step}}
                        save_model(student, task.folder / "checkpoints" / "best.safetensors", card)
            if saving:
                check_weights(distiller, step, state.saved)
                state.saved = step
                if fabric.is_global_zero:
                    save_checkpoint(checkpoint, _snapshot(state, distiller, optimizer, average, fabric))
                fabric.barrier()
            if stopping and not last:
                raise RunStopped(f"stopped after step {step} of {train.steps}; the checkpoint is written", stop.code)
            if evaluating or saving:
                recorder.restart(state.seconds)
    if result is None:
        result = _evaluate(fabric, student, task)
    return Trained(student, result, state.best_miou, state.best_step, state.seconds)


def _placed(
    distiller: Distiller, teacher: Teacher | None, train: TrainConfig, micro: int, fabric: Any
) -> tuple[Distiller, Teacher | None]:
    """Put both on the device, batch norm over all processes where that exists; say so when it sees few images."""
    synced = fabric.world_size > 1 and train.sync_batchnorm and fabric.device.type == "cuda"
    if synced:
        distiller = torch.nn.SyncBatchNorm.convert_sync_batchnorm(distiller)  # type: ignore[no-untyped-call]
    seen = micro * fabric.world_size if synced else micro
    normed = any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in distiller.student.modules())
    if normed and seen < FEW_IMAGES and fabric.is_global_zero:
        print(f"note: batch norm sees {seen} images at a time; scores may suffer below {FEW_IMAGES}", file=sys.stderr)
    return distiller, teacher.to(fabric.device) if teacher is not None else None


def _guide(fabric: Any, distiller: Distiller, teacher: Teacher) -> Callable[[Tensor, Tensor], SegOutput]:
    """Return what gives the teacher's output for a batch: in the run's precision, and only what the methods read."""

    def guide(images: Tensor, target: Tensor) -> SegOutput:
        with fabric.autocast():
            return distiller.select(teacher(images, target))

    return guide


def _train_step(
    fabric: Any,
    module: Any,
    guide: Callable[[Tensor, Tensor], SegOutput] | None,
    optimizer: Any,
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
            with waiting:
                taught = None if guide is None else guide(batch.images, batch.target)
                terms = module(batch.images, batch.target, taught, progress)
                fabric.backward(torch.stack(list(terms.values())).sum() / count)
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / count
    if clip is not None:
        fabric.clip_gradients(module, optimizer, max_norm=clip, error_if_nonfinite=False)
    optimizer.step()
    return sums


def _evaluate(fabric: Any, model: Segmenter, task: Task) -> EvaluationResult:
    return evaluate_model(
        model, task.val_data, device=fabric.device, batch=task.evaluate.batch, workers=task.data.workers,
        rank=fabric.global_rank, world=fabric.world_size, **inference_settings(task.evaluate, task.data),
    )  # fmt: skip


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.images.to(device, non_blocking=True), batch.target.to(device, non_blocking=True), batch.names)


def _snapshot(
    state: Progress, distiller: Distiller, optimizer: Any, average: AveragedWeights[Segmenter] | None, fabric: Any
) -> dict[str, Any]:
    return {
        "progress": vars(state).copy(),
        "distiller": distiller.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.model.state_dict() if average is not None else None,
        "precision": fabric.strategy.precision.state_dict(),
    }


def _restore(
    saved: dict[str, Any], distiller: Distiller, optimizer: Any, average: AveragedWeights[Segmenter] | None, fabric: Any
) -> Progress:
    distiller.load_state_dict(saved["distiller"])
    optimizer.load_state_dict(saved["optimizer"])
    if average is not None:
        average.model.load_state_dict(saved["average"])
    fabric.strategy.precision.load_state_dict(saved["precision"])
    return Progress(**saved["progress"])
