"""What methods learn before the student: found beside the runs, or trained now."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from segtailor.config import DistillRecipe, TrainConfig
from segtailor.data.base import SegmentationDataset
from segtailor.engine.learner import StageLearner
from segtailor.engine.loop import Task, fit
from segtailor.errors import SegtailorError
from segtailor.methods.base import Method, Pretraining
from segtailor.models.store import read_card
from segtailor.models.teacher import Teacher

DATA_KEYS = {"name", "root", "size", "crop", "train_split", "classes", "splits", "scale", "flip", "length"}
SEED = 0
"""Stages do not depend on the run's seed, so that runs of several seeds share them."""


def run_stages(
    fabric: Any,
    recipe: DistillRecipe,
    methods: Mapping[str, Method],
    teacher: Teacher | None,
    data: SegmentationDataset,
    val: SegmentationDataset,
) -> list[dict[str, Any]]:
    """Give every method what its stage learns; returns a record of each for ``results.json``.

    Files lie in ``stages/`` beside the runs and are reused by every run with the same teacher, data and settings; an
    interrupted stage goes on from its checkpoint. Raises ``SegtailorError`` for a stage without its teacher or file.
    """
    records = []
    for name, method in methods.items():
        stage = method.pretraining
        if stage is None:
            continue
        if stage.uses_teacher and teacher is None:
            raise SegtailorError(f"method {name} must first learn from a teacher; set teacher.weights")
        fingerprint = teacher.fingerprint() if stage.uses_teacher and teacher is not None else None
        settings = _settings(stage, recipe.train)
        reused, path = True, Path(stage.file) if stage.file is not None else None
        if path is None:
            path = stage_path(stage, recipe, settings, fingerprint)
            with _no_other(fabric, path):
                reused = path.exists()
                if not reused:
                    _train(fabric, stage, path, recipe, settings, teacher, fingerprint, data, val)
        elif not path.is_file():
            raise SegtailorError(f"method {name}: no such file: {path}; leave the option out to train it")
        stage.load(path, fingerprint)
        card = read_card(path)
        records.append(
            {"method": name, "about": stage.about, "file": str(path), "reused": reused, "seconds": card.get("seconds")}
        )
        if fabric.is_global_zero:
            print(f"{name}: {stage.about}: {'read from' if reused else 'written to'} {path}", file=sys.stderr)
    return records


def stage_path(stage: Pretraining, recipe: DistillRecipe, settings: TrainConfig, fingerprint: str | None) -> Path:
    """Return the file of a stage: its name says by a hash what it was learnt from."""
    facts = {
        "stage": stage.key(),
        "teacher": fingerprint,
        "data": recipe.data.model_dump(mode="json", include=DATA_KEYS),
        "train": settings.model_dump(
            mode="json", include={"steps", "batch", "precision", "optimizer", "schedule", "clip"}
        ),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return recipe.run.folder / "stages" / f"{stage.name}-{digest}.safetensors"


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


def _settings(stage: Pretraining, train: TrainConfig) -> TrainConfig:
    """Return the run's training settings with the stage's own in their place."""
    own = {"steps": stage.steps, "optimizer": stage.optimizer, "schedule": stage.schedule}
    changes = {key: value for key, value in own.items() if value is not None}
    return train.model_copy(update={**changes, "seed": SEED, "ema": None})


def _train(
    fabric: Any,
    stage: Pretraining,
    path: Path,
    recipe: DistillRecipe,
    settings: TrainConfig,
    teacher: Teacher | None,
    fingerprint: str | None,
    data: SegmentationDataset,
    val: SegmentationDataset,
) -> None:
    folder = path.with_suffix("")
    if fabric.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
    fabric.barrier()
    # Scored once, at the end: what is learnt here is judged by the student.
    evaluate = recipe.evaluate.model_copy(update={"every": settings.steps})
    saving = settings.model_copy(update={"checkpoint_every": settings.checkpoint_every or recipe.evaluate.every})
    task = Task(stage.name, folder, data, val, recipe.data, saving, evaluate)
    torch.manual_seed(SEED)
    lesson = stage.objective(teacher)
    trained = fit(fabric, StageLearner(lesson), teacher if stage.uses_teacher else None, task)
    if fabric.is_global_zero:
        card = {
            "stage": stage.name,
            "teacher": fingerprint,
            "data": recipe.data.name,
            "data_license": data.license,
            "settings": settings.model_dump(mode="json", include={"steps", "batch", "optimizer", "schedule"}),
            "seconds": trained.seconds,
            "miou_with_labels": trained.score.miou if trained.score is not None else None,
        }
        stage.save(lesson, path, card)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    fabric.barrier()
