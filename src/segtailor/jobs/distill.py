"""`segtailor distill`: a trained teacher and data in, a distilled student and a report out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from segtailor.config import CompareRecipe, DistillRecipe, RunConfig, Strict, TrainRecipe
from segtailor.engine.launch import launch, on_first_process
from segtailor.engine.runs import open_run, resumable
from segtailor.errors import SegtailorError, unknown
from segtailor.jobs.build import (
    Context,
    build_arm,
    check_methods,
    class_map_rows,
    open_context,
    run_name,
    train_arms,
    unlabelled_of,
)
from segtailor.jobs.compare import all_arms, arm_recipe
from segtailor.jobs.objects import Objects
from segtailor.jobs.pretrain import pretrain
from segtailor.jobs.train import RunResult, finished, train_alone, training_facts, write_run
from segtailor.models import load_model
from segtailor.models.network import Network
from segtailor.recipes import load_recipe
from segtailor.report import write_report
from segtailor.results.model import Row
from segtailor.results.statistics import gap_closed


def distill(
    recipe: str | Path | Mapping[str, Any] | Strict,
    overrides: Mapping[str, Any] | None = None,
    *,
    arm: str | None = None,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    train_data: Any = None,
    val_data: Any = None,
    classes: Any = None,
) -> RunResult:
    """Distil a student as ``recipe`` says (a shipped name, a YAML file, a mapping or a ``DistillRecipe``).

    ``overrides`` maps dotted keys to values; ``arm`` takes one arm of a recipe of `compare`. ``teacher`` and
    ``student`` (any ``nn.Module``; the student gets the trained weights) and ``train_data`` with ``val_data``
    (`torch.utils.data.Dataset` of image and mask; ``classes`` are their names) replace those that the recipe names.
    Leaves ``student.safetensors``, ``results.json`` and ``report.html`` in the run folder, and the student alone under
    ``baseline/`` when the recipe asks to train it. Raises ``SegtailorError`` for a mistake in recipe, data or teacher,
    ``RunStopped`` after Ctrl-C.
    """
    objects = Objects(teacher, student, train_data, val_data, classes)
    changes = objects.overrides(overrides)
    checked = load_recipe(recipe, DistillRecipe, changes) if arm is None else _one_arm(recipe, changes, arm)
    sparse = check_methods(checked.method)
    if checked.baseline not in ("none", "train") and not (Path(checked.baseline) / "results.json").exists():
        raise SegtailorError(f"baseline: no finished run in {checked.baseline}; give a run folder, `train` or `none`")
    fabric = launch(checked.train, find_unused_parameters=sparse)
    context = open_context(fabric, checked, objects)
    built = build_arm(context, checked)
    label = built.label
    name = checked.run.name or run_name(context.data_name, built.distiller.student.name, label)
    run = on_first_process(fabric, lambda: open_run(checked.run, name, built.card["recipe"]))
    if run.finished:
        objects.receive(run.path)
        return finished(run.path)
    built.folder = run.path
    context.note(*built.alignment)
    with resumable(run.path):
        alone, alone_row = _baseline(context, checked, run.path)
        pretrain(context, built, checked)
        (trained,) = train_arms(context, [built])
    guides = [("teacher", "Teacher", context.teacher)] if context.teacher is not None else []
    own_teachers = built.distiller.own_teachers.items()
    guides += [("assisted", f"Teacher of {name}, shown the labels", own) for name, own in own_teachers]
    rows = [context.row(role, text, guide.model, context.score(guide)) for role, text, guide in guides]
    if context.first:
        rows += [alone_row] if alone_row is not None else []
        facts = training_facts(trained, built)
        rows.append(context.row("distilled", f"Student with {label}", trained.student, trained.last, **facts))
        shown = {"teacher": context.teacher, "alone": alone, "distilled": trained.student}
        first = next(iter(built.methods.values()))
        write_run(
            context, built, trained, rows, {role: item for role, item in shown.items() if item is not None},
            name=name, kind="distill", method=label, variant=getattr(first.options, "variant", None),
            gap_closed=_gap_closed(rows), class_map=class_map_rows(context), alignment=built.alignment,
            stages=built.stages, **unlabelled_of(context, built),
            curves={"distilled": "metrics.jsonl", **_baseline_curve(checked, run.path)},
        )  # fmt: skip
        write_report(run.path)
    fabric.barrier()
    objects.receive(run.path)
    return finished(run.path)


def _one_arm(recipe: Any, changes: Mapping[str, Any], arm: str) -> DistillRecipe:
    """Return the recipe of one arm of a comparison, with the seed of its section ``train``."""
    whole = load_recipe(recipe, CompareRecipe, changes)
    if arm not in all_arms(whole):
        raise unknown("arm", arm, all_arms(whole))
    single = arm_recipe(whole, arm, whole.train.seed)
    name = f"{whole.run.name}-{arm}" if whole.run.name else None
    return single.model_copy(update={"run": whole.run.model_copy(update={"name": name})})


def _gap_closed(rows: list[Row]) -> float | None:
    """Return (distilled - alone) / (teacher - alone), or None without baseline, teacher or a positive gap."""
    miou = {row.role: row.miou for row in rows}
    if "alone" not in miou or "teacher" not in miou:
        return None
    closed = gap_closed({0: miou["distilled"]}, {0: miou["alone"]}, miou["teacher"])
    return None if closed is None else round(closed, 6)


def _baseline(context: Context, recipe: DistillRecipe, folder: Path) -> tuple[Network | None, Row | None]:
    """Return the student alone and its row: trained now as the distilled one is, or read from a run folder."""
    if recipe.baseline == "none":
        return None, None
    if recipe.baseline != "train":
        model = load_model(recipe.baseline, num_classes=context.val_data.num_classes)
        rows = {row.role: row for row in finished(Path(recipe.baseline)).results.rows}
        before = rows.get("model") or rows.get("alone") or rows.get("distilled")
        facts = {} if before is None else {key: before[key] for key in ("best_miou", "best_step", "steps", "seconds")}
        return model, context.row("alone", "Student alone", model, context.score(model), **facts)
    same = TrainRecipe(
        description="the student alone, with the recipe of the run above it",
        data=recipe.data, model=recipe.student, train=recipe.train, evaluate=recipe.evaluate,
        run=RunConfig(name="baseline", folder=folder, exists="resume"),
    )  # fmt: skip
    arm = build_arm(context, same, "alone")
    run = on_first_process(context.fabric, lambda: open_run(same.run, "baseline", arm.card["recipe"]))
    if run.finished:
        return context.objects.load(run.path, context.val_data.num_classes), finished(run.path).results.rows[0]
    arm.folder = run.path
    return train_alone(context, arm, "baseline", "alone")


def _baseline_curve(recipe: DistillRecipe, folder: Path) -> dict[str, str]:
    if recipe.baseline == "none":
        return {}
    path = folder / "baseline" if recipe.baseline == "train" else Path(recipe.baseline)
    try:
        shown = path.resolve().relative_to(folder.resolve())
    except ValueError:
        shown = path.resolve()
    return {"alone": str(shown / "metrics.jsonl")}
