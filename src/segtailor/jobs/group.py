"""One group of a comparison: arms of one seed, trained in lockstep on the same batches."""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segtailor.config import CompareRecipe
from segtailor.data.base import SegmentationDataset
from segtailor.data.pseudo import UnlabelledImages
from segtailor.engine.distiller import Distiller
from segtailor.engine.learner import Learner
from segtailor.engine.loop import Task, Trained, fit_together
from segtailor.engine.memory import Demand, available, measure_demand
from segtailor.engine.runs import write_json
from segtailor.errors import SegtailorError
from segtailor.evaluation import evaluate_model, inference_settings
from segtailor.evaluation.boundary import BoundarySettings
from segtailor.files import write_atomically
from segtailor.jobs.alignment import align
from segtailor.jobs.arms import arm_folder, arm_recipe
from segtailor.jobs.setup import card_with_metrics, check_weights_licences, make_methods, make_student, model_card
from segtailor.jobs.stages import run_stages
from segtailor.jobs.unlabelled import reading_lines, unlabelled_facts
from segtailor.models import save_model
from segtailor.models.inspect import count_multiply_adds, count_parameters
from segtailor.models.teacher import Teacher

VERSION = 1


@dataclass
class Ground:
    """What every arm of a comparison stands on."""

    fabric: Any
    recipe: CompareRecipe
    folder: Path
    data: SegmentationDataset
    val: SegmentationDataset
    teacher: Teacher | None
    size: tuple[int, int]
    unlabelled: UnlabelledImages | None = None


@dataclass
class Entry:
    """One arm of one seed, built and ready to train."""

    name: str
    seed: int
    learner: Learner
    task: Task
    stage_seconds: float
    needs_teacher: bool
    alignment: list[str]


def train_group(ground: Ground, names: Sequence[str], seed: int, demands: dict[str, Demand]) -> None:
    """Train the arms ``names`` with ``seed`` and write their outcomes; those that are finished are passed over.

    Arms that do not fit in memory together, by what one step of each was measured to take, follow one another.
    """
    waiting = []
    for name in names:
        if outcome_status(ground.folder, name, seed) == "finished":
            continue
        try:
            if name not in demands:
                demands[name] = _demand(ground, name, seed)
            waiting.append(name)
        except SegtailorError as error:
            _write(ground, name, seed, {"status": "failed", "reason": str(error)})
    while waiting:
        fitting = pack(waiting, demands, ground.recipe.memory, ground.fabric.device)
        if len(fitting) < len(waiting) and ground.fabric.is_global_zero:
            print(f"seed {seed}: memory for {len(fitting)} of {len(waiting)} arms at a time", file=sys.stderr)
        waiting = waiting[len(fitting) :]
        _train(ground, fitting, seed, demands)


def pack(names: Sequence[str], demands: dict[str, Demand], gibibytes: float | None, device: torch.device) -> list[str]:
    """Return as many of ``names``, from the front, as fit: what each keeps, and the most that one step adds."""
    budget = gibibytes * 2**30 if gibibytes is not None else available(device)
    kept, peak = 0, 0
    fitting: list[str] = []
    for name in names:
        kept += demands[name].kept
        peak = max(peak, demands[name].peak)
        if fitting and kept + peak > budget:
            break
        fitting.append(name)
    return fitting


def outcome_status(folder: Path, name: str, seed: int) -> str:
    """Return what the outcome of an arm says of itself; `missing` where there is none that can be read."""
    try:
        return str(json.loads((arm_folder(folder, name, seed) / "outcome.json").read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return "missing"


def _build(ground: Ground, name: str, seed: int, folder: Path) -> Entry:
    recipe = arm_recipe(ground.recipe, name, seed)
    student = make_student(recipe.student, ground.data.num_classes, seed)
    methods, weights = make_methods(recipe.method, student, ground.teacher, recipe.student, seed)
    crop = recipe.data.crop or recipe.data.size or ground.size
    alignment = align(student, ground.teacher, methods, crop) + reading_lines(recipe.data, methods)
    stages = run_stages(ground.fabric, recipe, methods, ground.teacher, ground.data, ground.val)
    check_weights_licences(recipe.run.license_policy, {"student": student}, first=False)
    card = model_card(ground.data, recipe.model_dump(mode="json"), ground.teacher)
    task = Task(
        name, folder, ground.data, ground.val, recipe.data, recipe.train, recipe.evaluate, card, ground.unlabelled
    )
    learner = Distiller(student, methods, weights, recipe.train.aux_weight)
    needs_teacher = any(method.teacher == "recipe" for method in methods.values())
    seconds = sum(stage["seconds"] or 0.0 for stage in stages)
    return Entry(name, seed, learner, task, seconds, needs_teacher, alignment)


def _demand(ground: Ground, name: str, seed: int) -> Demand:
    """Measure what one arm takes, by one step of a copy that is thrown away."""
    entry = _build(ground, name, seed, arm_folder(ground.folder, name, seed))
    teacher = ground.teacher if entry.needs_teacher else None
    try:
        demand = measure_demand(ground.fabric, entry.learner, entry.task, teacher)
    except torch.OutOfMemoryError:
        demand = Demand(0, 2**62)  # alone in its group, where it fails by itself
    del entry
    gc.collect()
    return demand


def _train(ground: Ground, names: Sequence[str], seed: int, demands: dict[str, Demand]) -> None:
    entries = []
    for name in names:
        folder = arm_folder(ground.folder, name, seed)
        if ground.fabric.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
        entries.append(_build(ground, name, seed, folder))
        _write(ground, name, seed, {"status": "running"})
    teacher = ground.teacher if any(entry.needs_teacher for entry in entries) else None
    pairs = [(entry.learner, entry.task) for entry in entries]
    before = [item.fingerprint() for item in ([teacher] if teacher is not None else [])]
    results = fit_together(ground.fabric, pairs, teacher)
    if teacher is not None and [teacher.fingerprint()] != before:
        raise SegtailorError("the teacher's weights changed during the comparison; this is a defect, report it")
    for entry, trained in zip(entries, results, strict=True):
        _conclude(ground, entry, trained, demands[entry.name])


def _conclude(ground: Ground, entry: Entry, trained: Trained, demand: Demand) -> None:
    """Score a trained arm once more, with everything that the comparison keeps, and write its outcome."""
    fabric, recipe, name, seed = ground.fabric, ground.recipe, entry.name, entry.seed
    if trained.problem is not None:
        _write(ground, name, seed, {"status": "failed", "reason": trained.problem})
        return
    scored = evaluate_model(
        trained.student, ground.val, device=fabric.device, batch=recipe.evaluate.batch, workers=recipe.data.workers,
        rank=fabric.global_rank, world=fabric.world_size, per_image=True,
        boundary=BoundarySettings() if recipe.boundary else None, calibration=recipe.boundary,
        teacher=ground.teacher if recipe.boundary else None, **inference_settings(recipe.evaluate, recipe.data),
    )  # fmt: skip
    if not fabric.is_global_zero:
        return
    folder, steps = arm_folder(ground.folder, name, seed), entry.task.train.steps
    assert scored.per_image is not None
    confusions = scored.per_image.numpy()
    write_atomically(
        folder / "confusions.npz",
        lambda file: np.savez_compressed(file, confusions=confusions),
    )
    save_model(trained.student, folder / "student.safetensors", card_with_metrics(entry.task.card, scored, steps))
    measured = scored.to_dict()
    own = trained.seconds - trained.teacher_seconds
    _write(ground, name, seed, {
        "status": "finished", "reason": None, "miou": scored.miou, "miou_all": scored.miou_all,
        "best_miou": trained.best_miou, "best_step": trained.best_step, "iou": scored.iou, "steps": steps,
        "seconds": own, "teacher_seconds": trained.teacher_seconds,
        "teacher_seconds_alone": trained.teacher_seconds_alone, "stage_seconds": entry.stage_seconds,
        "peak_bytes": demand.kept + demand.peak or None, "boundary": measured.get("boundary"),
        "calibration": measured.get("calibration"), "agreement": measured.get("agreement"),
        "parameters": count_parameters(trained.student),
        "multiply_adds": count_multiply_adds(trained.student, ground.size), "model": trained.student.name,
        "method": "+".join(method.name for method in arm_recipe(recipe, name, seed).method),
        "alignment": entry.alignment,
        **unlabelled_facts(
            recipe.data, recipe.train.batch, ground.data, ground.unlabelled, entry.learner.readings, folder
        ),
    })  # fmt: skip


def _write(ground: Ground, name: str, seed: int, facts: dict[str, Any]) -> None:
    if ground.fabric.is_global_zero:
        path = arm_folder(ground.folder, name, seed) / "outcome.json"
        write_json(path, {"version": VERSION, "arm": name, "seed": seed, **facts})
