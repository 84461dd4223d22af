"""What methods train before the student: found beside the runs, or trained now."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from segtailor.config import DistillRecipe, TrainConfig
from segtailor.engine.loop import RunSpec, fit
from segtailor.engine.module import PretrainModule
from segtailor.errors import SegtailorError
from segtailor.jobs.build import Arm, Context
from segtailor.methods.base import Pretraining
from segtailor.models.store import read_card
from segtailor.models.teacher import Teacher

DATA_KEYS = {"name", "root", "size", "crop", "train_split", "classes", "splits", "scale", "flip", "length"}
SEED = 0
"""Pre-training does not depend on the run's seed, so that runs of several seeds share it."""


def pretrain(context: Context, arm: Arm, recipe: DistillRecipe) -> None:
    """Give every method of ``arm`` what its pre-training makes, and note a record of each for ``results.json``.

    Files are in ``stages/`` beside the runs and are reused by every run with the same teacher, data and settings; an
    interrupted pre-training continues from its checkpoint. Raises ``SegtailorError`` where its teacher or file is
    missing.
    """
    for name, method in arm.methods.items():
        training = method.pretraining
        if training is None:
            continue
        teacher = context.teacher if training.uses_teacher else None
        if training.uses_teacher and teacher is None:
            raise SegtailorError(f"method {name} must first learn from a teacher; set teacher.weights")
        fingerprint = None if teacher is None else teacher.fingerprint()
        reused, path = True, Path(training.file) if training.file is not None else None
        if path is None:
            own = {"steps": training.steps, "optimizer": training.optimizer, "schedule": training.schedule}
            changes = {key: value for key, value in own.items() if value is not None}
            settings = recipe.train.model_copy(update={**changes, "seed": SEED, "ema": None})
            path = pretrained_path(training, recipe, settings, fingerprint)
            with _no_other(context.fabric, path):
                reused = path.exists()
                if not reused:
                    _train(context, training, path, settings, teacher, fingerprint)
        elif not path.is_file():
            raise SegtailorError(f"method {name}: no such file: {path}; leave the option out to train it")
        training.load(path, fingerprint)
        seconds = read_card(path).get("seconds")
        arm.stages.append(
            {"method": name, "about": training.about, "file": str(path), "reused": reused, "seconds": seconds}
        )
        context.note(f"{name}: {training.about}: {'read from' if reused else 'written to'} {path}")


def pretrained_path(
    training: Pretraining, recipe: DistillRecipe, settings: TrainConfig, fingerprint: str | None
) -> Path:
    """Return the file of a pre-training; its name holds a hash of what the result depends on."""
    facts = {
        "stage": training.key(),
        "teacher": fingerprint,
        "data": recipe.data.model_dump(mode="json", include=DATA_KEYS),
        "train": settings.model_dump(
            mode="json", include={"steps", "batch", "precision", "optimizer", "schedule", "clip"}
        ),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return recipe.run.folder / "stages" / f"{training.name}-{digest}.safetensors"


@contextmanager
def _no_other(fabric: Any, path: Path) -> Iterator[None]:
    """Keep other runs from making ``path`` at the same time; one that comes second waits, and then finds the file."""
    if not fabric.is_global_zero:
        fabric.barrier()
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path.with_suffix(".lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"another run makes {path}; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        fabric.barrier()
        yield
    finally:
        lock.release()


def _train(
    context: Context,
    training: Pretraining,
    path: Path,
    settings: TrainConfig,
    teacher: Teacher | None,
    fingerprint: str | None,
) -> None:
    fabric, folder = context.fabric, path.with_suffix("")
    if context.first:
        folder.mkdir(parents=True, exist_ok=True)
    fabric.barrier()
    # Scored once, at the end: the student is what judges the result.
    evaluate = context.evaluate.model_copy(update={"every": settings.steps})
    saving = settings.model_copy(update={"checkpoint_every": settings.checkpoint_every or context.evaluate.every})
    spec = RunSpec(training.name, folder, context.train_data, context.val_data, context.data, saving, evaluate)
    torch.manual_seed(SEED)
    objective = training.objective(context.teacher)
    trained = fit(fabric, PretrainModule(objective), teacher, spec)
    if context.first:
        card = {
            "stage": training.name,
            "teacher": fingerprint,
            "data": context.data.name,
            "data_license": context.train_data.license,
            "settings": settings.model_dump(mode="json", include={"steps", "batch", "optimizer", "schedule"}),
            "seconds": trained.state.seconds,
            "miou_with_labels": trained.score.miou if trained.score is not None else None,
        }
        training.save(objective, path, card)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    fabric.barrier()
