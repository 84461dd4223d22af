"""The training loop: batches in, a trained student out."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from segtailor.config import DataConfig, EvaluateConfig, TrainConfig
from segtailor.data.base import SegmentationDataset
from segtailor.data.loader import Batch, train_batches
from segtailor.engine.checkpoint import load_checkpoint, save_checkpoint
from segtailor.engine.distiller import Distiller
from segtailor.engine.launch import any_process, seed_step, split_batch
from segtailor.engine.logging import MetricsLog, Ticker
from segtailor.engine.optim import AveragedWeights, build_optimizer, learning_rate, set_learning_rate
from segtailor.engine.preemption import RunStopped, StopRequest
from segtailor.engine.window import LossWindow, check_weights
from segtailor.evaluation import EvaluationResult, evaluate_model
from segtailor.losses import global_batch
from segtailor.models import save_model
from segtailor.models.segmenter import Segmenter
from segtailor.models.teacher import Teacher


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
    train, device = task.train, fabric.device
    micro, accumulate = split_batch(train.batch, train.micro_batch, fabric.world_size)
    if fabric.world_size > 1 and train.sync_batchnorm and device.type == "cuda":
        distiller = torch.nn.SyncBatchNorm.convert_sync_batchnorm(distiller)
    optimizer = build_optimizer(distiller, train.optimizer)
    module, optimizer = fabric.setup(distiller, optimizer)
    if teacher is not None:
        teacher = teacher.to(device)
    average = AveragedWeights(distiller.student, train.ema) if train.ema else None
    checkpoint = task.folder / "checkpoints" / "last.ckpt"
    state = Progress()
    if checkpoint.exists():
        state = _restore(load_checkpoint(checkpoint), distiller, optimizer, average, fabric)
    master = fabric.is_global_zero
    log = MetricsLog(task.folder, state.step) if master else None
    ticker = Ticker(task.label, train.steps, state.step, enabled=master)
    window, waited, window_began, images = LossWindow(), 0.0, time.perf_counter(), 0
    save_every = train.checkpoint_every or task.evaluate.every
    result: EvaluationResult | None = None

    batches = train_batches(
        task.train_data, task.data, seed=train.seed, global_batch=train.batch, micro_batch=micro,
        rank=fabric.global_rank, world=fabric.world_size, start_step=state.step, steps=train.steps,
    )  # fmt: skip
    try:
        with StopRequest() as stop:
            for step in range(state.step + 1, train.steps + 1):
                seed_step(train.seed, step, fabric.global_rank)
                set_learning_rate(optimizer, learning_rate(step, train.steps, train.optimizer.lr, train.schedule))
                began = time.perf_counter()
                step_batches = [_to_device(next(batches), device) for _ in range(accumulate)]
                waited += time.perf_counter() - began
                terms = _train_step(fabric, module, teacher, optimizer, step_batches, step / train.steps, train.clip)
                window.add(step, terms)
                if average is not None:
                    average.update(distiller.student, step)
                state.step, images = step, images + train.batch

                last, stopping = step == train.steps, any_process(fabric, stop.requested, device)
                evaluating = last or step % task.evaluate.every == 0
                saving = last or stopping or step % save_every == 0
                if evaluating or saving or step % train.log_every == 0:
                    means = window.means(fabric, state.saved)
                    spent = time.perf_counter() - window_began
                    state.seconds += spent
                    if log is not None:
                        log.write({
                            "kind": "train", "step": step, "loss": sum(means.values()), "terms": means,
                            "lr": optimizer.param_groups[0]["lr"], "images_per_second": images / spent,
                            "data_wait": waited / spent, "seconds": state.seconds,
                        })  # fmt: skip
                    ticker.train(step, sum(means.values()), means, images / spent)
                if evaluating:
                    scored = average.model if average is not None else distiller.student
                    result = _evaluate(fabric, scored, task)
                    improved = result.miou > state.best_miou
                    if improved:
                        state.best_miou, state.best_step = result.miou, step
                    if log is not None:
                        log.write(_record(result, step, state.seconds, "student" if average is None else "ema"))
                        if average is not None and last:
                            plain = _evaluate(fabric, distiller.student, task)
                            log.write(_record(plain, step, state.seconds, "student"))
                        if improved:
                            card = {**task.card, "metrics": {"miou": result.miou, "step": step}}
                            save_model(scored, task.folder / "checkpoints" / "best.safetensors", card)
                    ticker.evaluated(step, result.miou)
                if saving:
                    check_weights(distiller, step, state.saved)
                    if master:
                        state.saved = step
                        save_checkpoint(checkpoint, _snapshot(state, distiller, optimizer, average, fabric))
                    fabric.barrier()
                if stopping and not last:
                    raise RunStopped(
                        f"stopped after step {step} of {train.steps}; the checkpoint is written", stop.code
                    )
                if evaluating or saving or step % train.log_every == 0:
                    waited, images, window_began = 0.0, 0, time.perf_counter()
    finally:
        ticker.close()
        if log is not None:
            log.close()
        batches.close()
    student = average.model if average is not None else distiller.student
    if result is None:
        result = _evaluate(fabric, student, task)
    return Trained(student, result, state.best_miou, state.best_step, state.seconds)


def _train_step(
    fabric: Any,
    module: Any,
    teacher: Teacher | None,
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
                guide = None
                if teacher is not None:
                    with fabric.autocast():
                        guide = teacher(batch.images, batch.target)
                terms = module(batch.images, batch.target, guide, progress)
                fabric.backward(torch.stack(list(terms.values())).sum() / count)
            for name, value in terms.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value.detach() / count
    if clip is not None:
        fabric.clip_gradients(module, optimizer, max_norm=clip, error_if_nonfinite=False)
    optimizer.step()
    return sums


def _evaluate(fabric: Any, model: Segmenter, task: Task) -> EvaluationResult:
    config = task.evaluate
    return evaluate_model(
        model, task.val_data, device=fabric.device, batch=config.batch, mode=config.mode,
        window=config.window or task.data.crop, stride=config.stride,
        rank=fabric.global_rank, world=fabric.world_size,
    )  # fmt: skip


def _record(result: EvaluationResult, step: int, seconds: float, weights: str) -> dict[str, Any]:
    return {
        "kind": "evaluate", "step": step, "miou": result.miou, "miou_all": result.miou_all,
        "pixel_accuracy": result.pixel_accuracy, "iou": result.iou, "seconds": seconds, "weights": weights,
    }  # fmt: skip


def _to_device(batch: Batch, device: torch.device) -> Batch:
    return Batch(batch.images.to(device, non_blocking=True), batch.target.to(device, non_blocking=True), batch.names)


def _snapshot(
    state: Progress, distiller: Distiller, optimizer: Any, average: AveragedWeights | None, fabric: Any
) -> dict[str, Any]:
    return {
        "progress": vars(state).copy(),
        "distiller": distiller.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.model.state_dict() if average is not None else None,
        "precision": fabric.strategy.precision.state_dict(),
    }


def _restore(
    saved: dict[str, Any], distiller: Distiller, optimizer: Any, average: AveragedWeights | None, fabric: Any
) -> Progress:
    distiller.load_state_dict(saved["distiller"])
    optimizer.load_state_dict(saved["optimizer"])
    if average is not None:
        average.model.load_state_dict(saved["average"])
    fabric.strategy.precision.load_state_dict(saved["precision"])
    return Progress(**saved["progress"])
