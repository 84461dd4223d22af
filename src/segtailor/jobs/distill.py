"""`segtailor distill`: a trained teacher and data in, a distilled student and a report out."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from segtailor.config import DistillRecipe, RunConfig, Strict, TrainRecipe
from segtailor.data.base import SegmentationDataset
from segtailor.engine.launch import launch
from segtailor.engine.loop import RunSpec, fit
from segtailor.engine.module import Distiller
from segtailor.engine.pseudo_labels import add_unlabelled, unlabelled_facts, use_lines
from segtailor.engine.runs import open_run, resumable, write_json
from segtailor.errors import SegtailorError
from segtailor.evaluation import evaluate_model, inference_settings
from segtailor.jobs.alignment import align
from segtailor.jobs.pretrain import pretrain
from segtailor.jobs.setup import (
    card_with_metrics,
    check_methods,
    check_weights_licences,
    class_map_rows,
    environment,
    make_methods,
    make_student,
    make_teacher,
    model_card,
    on_first_process,
    open_data,
    profile_size,
    result_row,
    score_teacher,
)  # fmt: skip
from segtailor.jobs.train import RunResult, finished, header, training_facts
from segtailor.methods import METHODS
from segtailor.models import load_model, save_model
from segtailor.models.network import Network
from segtailor.models.teacher import Teacher
from segtailor.recipes import load_recipe
from segtailor.report import write_report
from segtailor.report.samples import write_samples


def distill(recipe: str | Path | Mapping[str, Any] | Strict, overrides: Mapping[str, Any] | None = None) -> RunResult:
    """Distil a student as ``recipe`` says (a shipped name, a YAML file, a mapping or a ``DistillRecipe``).

    ``overrides`` maps dotted keys to values. Leaves ``student.safetensors``, ``results.json`` and ``report.html`` in
    the run folder, and the student alone under ``baseline/`` when the recipe asks to train it. Raises
    ``SegtailorError`` for a mistake in recipe, data or teacher, ``RunStopped`` after Ctrl-C.
    """
    checked = load_recipe(recipe, DistillRecipe, overrides)
    check_methods(checked.method)
    _check_baseline(checked.baseline)
    # Which parameters a method leaves unused is known only once it is built; what it declares as a class is enough.
    phases = any(METHODS[config.name].sparse_gradients for config in checked.method)
    fabric = launch(checked.train, find_unused_parameters=phases)
    data, val = open_data(checked.data, fabric)
    more = add_unlabelled(checked.data, checked.train.batch, data, val, fabric)
    teacher = make_teacher(checked.teacher, data)
    if teacher is not None and checked.teacher is not None:
        teacher.to(fabric.device)
        if checked.teacher.check:
            score_teacher(teacher, val, fabric.device)
    student = make_student(checked.student, data.num_classes, checked.train.seed)
    networks = {"teacher": teacher.model if teacher is not None else None, "student": student}
    check_weights_licences(checked.run.license_policy, networks, fabric.is_global_zero)
    methods, weights = make_methods(checked.method, student, teacher, checked.student, checked.train.seed)
    label = "+".join(methods)
    name = checked.run.name or f"{checked.data.name}-{student.name}-{label}"
    plain = checked.model_dump(mode="json")
    run = on_first_process(fabric, lambda: open_run(checked.run, name, plain))
    if run.finished:
        return finished(run.path)

    size = profile_size(checked.data, val)
    alignment = align(student, teacher, methods, checked.data.crop or checked.data.size or size)
    alignment += use_lines(checked.data, methods)
    mapped = teacher.class_map.lines() if teacher is not None and teacher.class_map is not None else []
    if fabric.is_global_zero:
        print("\n".join([*mapped, *alignment]), file=sys.stderr)
    own = {name: found for name, method in methods.items() if (found := method.own_teacher) is not None}
    card = model_card(data, plain, teacher)
    task = RunSpec(label, run.path, data, val, checked.data, checked.train, checked.evaluate, card, more)
    with resumable(run.path):
        alone, alone_row = _baseline(fabric, checked, run.path, task, size)
        stages = pretrain(fabric, checked, methods, teacher, data, val)
        watched = [item for item in (teacher, *own.values()) if item is not None]
        fingerprints = [item.fingerprint() for item in watched]
        guide = teacher if any(method.teacher == "recipe" for method in methods.values()) else None
        learner = Distiller(student, methods, weights, checked.train.aux_weight)
        trained = fit(fabric, learner, guide, task)
    if [item.fingerprint() for item in watched] != fingerprints:
        raise SegtailorError("the teacher's weights changed during the run; this is a defect of the method, report it")
    settings = inference_settings(checked.evaluate, checked.data)

    def row(role: str, name: str, guide: Teacher) -> dict[str, Any]:
        scored = evaluate_model(
            guide, val, device=fabric.device, batch=checked.evaluate.batch, workers=checked.data.workers,
            rank=fabric.global_rank, world=fabric.world_size, **settings,
        )  # fmt: skip
        return result_row(role, name, guide.model, scored, size)

    rows = [] if teacher is None else [row("teacher", "Teacher", teacher)]
    rows += [row("assisted", f"Teacher of {name}, shown the labels", item) for name, item in own.items()]
    if fabric.is_global_zero:
        steps = checked.train.steps
        save_model(trained.student, run.path / "student.safetensors", card_with_metrics(card, trained.last, steps))
        rows += [alone_row] if alone_row else []
        facts = training_facts(trained, steps)
        rows.append(result_row("distilled", f"Student with {label}", trained.student, trained.last, size, **facts))
        shown = {"teacher": teacher, "alone": alone, "distilled": trained.student}
        models = {role: model for role, model in shown.items() if model is not None}
        first = methods[checked.method[0].name]
        results = {
            **header(name, "distill", checked.data.name, val, size),
            "method": label,
            "variant": getattr(first.options, "variant", None),
            "rows": rows,
            "gap_closed": gap_closed(rows),
            "class_map": class_map_rows(teacher),
            "alignment": alignment,
            "stages": stages,
            **unlabelled_facts(checked.data, checked.train.batch, data, more, learner.target_kinds, run.path),
            "curves": {"distilled": "metrics.jsonl", **_baseline_curve(checked, run.path)},
            "samples": write_samples(run.path, val, models, checked.evaluate, fabric.device, settings["window"]),
            "environment": environment(checked.train, fabric),
        }
        write_json(run.results, results)
        write_report(run.path)
    fabric.barrier()
    return finished(run.path)


def gap_closed(rows: list[dict[str, Any]]) -> float | None:
    """Return (distilled - alone) / (teacher - alone), or None without baseline, teacher or a positive gap.

    >>> scores = {"teacher": 0.8, "alone": 0.6, "distilled": 0.7}
    >>> gap_closed([{"role": role, "miou": miou} for role, miou in scores.items()])
    0.5
    """
    miou = {row["role"]: float(row["miou"]) for row in rows}
    if not {"alone", "teacher"} <= miou.keys() or miou["teacher"] <= miou["alone"]:
        return None
    return round((miou["distilled"] - miou["alone"]) / (miou["teacher"] - miou["alone"]), 6)


def _baseline(
    fabric: Any,
    recipe: DistillRecipe,
    folder: Path,
    distilled: RunSpec,
    size: tuple[int, int],
) -> tuple[Network | None, dict[str, Any] | None]:
    """Return the student alone and its row: trained now as the ``distilled`` one, or read from a run folder."""
    data, val = distilled.train_data, distilled.val_data
    if recipe.baseline == "none":
        return None, None
    if recipe.baseline != "train":
        return _baseline_from(Path(recipe.baseline), recipe, val, size, fabric)
    model = make_student(recipe.student, data.num_classes, recipe.train.seed)
    same = TrainRecipe(
        description="the student alone, with the recipe of the run above it",
        data=recipe.data, model=recipe.student, train=recipe.train, evaluate=recipe.evaluate,
        run=RunConfig(name="baseline", folder=folder, exists="resume"),
    )  # fmt: skip
    plain = same.model_dump(mode="json")
    run = on_first_process(fabric, lambda: open_run(same.run, "baseline", plain))
    card = model_card(data, plain)
    if run.finished:
        return load_model(run.path), finished(run.path).results["rows"][0]
    task = replace(distilled, label="alone", folder=run.path, card=card)
    trained = fit(fabric, Distiller(model, {}, aux_weight=recipe.train.aux_weight), None, task)
    steps = recipe.train.steps
    row = result_row("alone", "Student alone", trained.student, trained.last, size, **training_facts(trained, steps))
    if fabric.is_global_zero:
        save_model(trained.student, run.path / "model.safetensors", card_with_metrics(card, trained.last, steps))
        results = {**header("baseline", "train", recipe.data.name, val, size), "rows": [row]}
        results |= {
            "curves": {"alone": "metrics.jsonl"},
            "samples": [],
            "environment": environment(recipe.train, fabric),
        }
        write_json(run.results, results)
    fabric.barrier()
    return trained.student, row


def _check_baseline(baseline: str) -> None:
    """Raise SegtailorError, before anything is made, where the student alone cannot be taken from ``baseline``."""
    if baseline not in ("none", "train") and not (Path(baseline) / "results.json").exists():
        raise SegtailorError(f"baseline: no finished run in {baseline}; give a run folder, `train` or `none`")


def _baseline_from(
    folder: Path, recipe: DistillRecipe, val: SegmentationDataset, size: tuple[int, int], fabric: Any
) -> tuple[Network, dict[str, Any]]:
    model = load_model(folder, num_classes=val.num_classes)
    settings = inference_settings(recipe.evaluate, recipe.data)
    result = evaluate_model(model, val, device=fabric.device, batch=recipe.evaluate.batch, **settings)
    rows = {row["role"]: row for row in finished(folder).results["rows"]}
    before = rows.get("model") or rows.get("alone") or rows.get("distilled") or {}
    facts = {key: before.get(key) for key in ("best_miou", "best_step", "steps", "seconds")}
    return model, result_row("alone", "Student alone", model, result, size, **facts)


def _baseline_curve(recipe: DistillRecipe, folder: Path) -> dict[str, str]:
    if recipe.baseline == "none":
        return {}
    path = folder / "baseline" if recipe.baseline == "train" else Path(recipe.baseline)
    try:
        shown = path.resolve().relative_to(folder.resolve())
    except ValueError:
        shown = path.resolve()
    return {"alone": str(shown / "metrics.jsonl")}
