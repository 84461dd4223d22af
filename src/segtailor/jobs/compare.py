"""`segtailor compare`: arms and seeds in, trained side by side on the same batches; one table and one report out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from torch.distributed.rendezvous import rendezvous

from segtailor.config import (
    ArmConfig,
    CompareRecipe,
    DistillRecipe,
    MethodConfig,
    RunConfig,
    Strict,
    StudentConfig,
    TrainConfig,
)
from segtailor.engine.launch import launch, on_first_process
from segtailor.engine.loop import Trained
from segtailor.engine.runs import open_run, resumable
from segtailor.errors import SegtailorError
from segtailor.evaluation.boundary import BoundarySettings
from segtailor.files import write_atomically
from segtailor.jobs.build import (
    Arm,
    Context,
    build_arm,
    card_with_metrics,
    check_methods,
    class_map_rows,
    open_context,
    run_name,
    train_arms,
    unlabelled_of,
)
from segtailor.jobs.objects import Objects
from segtailor.jobs.pretrain import pretrain
from segtailor.jobs.train import draw_samples
from segtailor.methods import check_options, find_method
from segtailor.models import save_model
from segtailor.recipes import load_recipe
from segtailor.report import write_report
from segtailor.report.samples import write_tailored
from segtailor.report.summary import html_board
from segtailor.results.leaderboard import Leaderboard
from segtailor.results.model import Outcome, Plan, State, arm_folder, arm_status, read_comparison
from segtailor.results.tables import text_table, write_tables

ALONE = "none"
LAUNCHER = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")
"""Torchrun's variables by which Fabric would make one group of processes that train by themselves."""
OPENED, WAIT = "segtailor-comparison-opened", timedelta(hours=1)
"""What the first process puts into the store once the folder and its plan are there, and how long others wait."""
ENDED = "segtailor-comparison-ended-{}"
"""What each other process puts there when its seeds are done, for the first one to write and print the whole."""


@dataclass(repr=False)
class ComparisonResult:
    """A comparison that ended: its folder, its report, and its leaderboard. Shows itself as a table."""

    folder: Path
    report: Path
    board: Leaderboard

    def __repr__(self) -> str:
        """Return the table that the command prints."""
        return f"{text_table(self.board)}\nreport: {self.report}"

    def _repr_html_(self) -> str:
        return html_board(self.board, self.report)


def compare(
    recipe: str | Path | Mapping[str, Any] | Strict,
    overrides: Mapping[str, Any] | None = None,
    *,
    teacher: nn.Module | None = None,
    student: nn.Module | None = None,
    train_data: Any = None,
    val_data: Any = None,
    classes: Any = None,
) -> ComparisonResult:
    """Train every arm of ``recipe`` with every seed, and compare them.

    The arms of one seed see the same batches and share one pass of the teacher; a failed arm is marked and does not
    stop the others. ``teacher``, ``student`` (every arm starts from a copy), ``train_data``, ``val_data`` and
    ``classes`` are objects in the place of what the recipe names, as for `distill`. Raises ``SegtailorError`` for a
    mistake in recipe, data or teacher, ``RunStopped`` after Ctrl-C.
    """
    objects = Objects(teacher, student, train_data, val_data, classes)
    checked = load_recipe(recipe, CompareRecipe, objects.overrides(overrides))
    sparse = [check_methods(arm.method) for arm in checked.arms.values()]
    train, rank, world, store = _this_process(checked)
    context = open_context(launch(train, find_unused_parameters=any(sparse)), checked, objects)
    name = checked.run.name or run_name(context.data_name, "comparison")
    run = checked.run
    if store is not None and rank > 0:
        store.wait([OPENED], WAIT)
        run = run.model_copy(update={"exists": "resume"})
    folder = on_first_process(context.fabric, lambda: open_run(run, name, checked.model_dump(mode="json")).path)
    if context.first and not (folder / "comparison.json").exists():
        _plan(context, checked, name).write(folder / "comparison.json")
    if store is not None and rank == 0:
        store.set(OPENED, "")
    names = list(all_arms(checked))
    together = checked.arms_at_once or len(names)
    with resumable(folder):
        for seed in checked.seeds[rank::world]:
            waiting = [name for name in names if arm_status(folder, name, seed) != "finished"]
            for first in range(0, len(waiting), together):
                _train_together(context, checked, folder, waiting[first : first + together], seed)
            if context.first:
                if seed == checked.seeds[0]:
                    _illustrate(context, checked, folder, names)
                write_report(folder)
    context.fabric.barrier()  # the first process has written the last outcome
    if store is not None:
        if rank > 0:
            store.set(ENDED.format(rank), "")
        while rank == 0 and not store.check([ENDED.format(other) for other in range(1, world)]):
            time.sleep(1)  # and not one long wait, which Ctrl-C could not end
    board = write_tables(read_comparison(folder), folder)
    return ComparisonResult(folder, write_report(folder), board)


def _train_together(context: Context, recipe: CompareRecipe, folder: Path, names: Sequence[str], seed: int) -> None:
    """Train the arms ``names`` with ``seed`` in lockstep and write their outcomes."""
    arms = []
    for name in names:
        place = arm_folder(folder, name, seed)
        try:
            single = arm_recipe(recipe, name, seed)
            arm = build_arm(context, single, name, place)
            pretrain(context, arm, single)
        except SegtailorError as error:
            _write(context, State(arm=name, seed=seed, status="failed", reason=str(error)), place)
            continue
        _write(context, State(arm=name, seed=seed, status="running"), place)
        arms.append(arm)
    for arm, trained in zip(arms, train_arms(context, arms, keep_going=True) if arms else [], strict=True):
        if trained.problem is None:
            _conclude(context, recipe, arm, trained, seed)
        else:
            _write(context, State(arm=arm.label, seed=seed, status="failed", reason=trained.problem), arm.folder)


def _conclude(context: Context, recipe: CompareRecipe, arm: Arm, trained: Trained, seed: int) -> None:
    """Score a trained arm once more, with everything that the comparison keeps, and write its files."""
    guide = context.teacher if recipe.boundary else None
    scored = context.score(trained.student, per_image=True, teacher=guide, **_measures(recipe))
    if not context.first:
        return
    assert scored.per_image is not None
    confusions = scored.per_image.numpy()
    write_atomically(arm.folder / "confusions.npz", lambda file: np.savez_compressed(file, confusions=confusions))
    card = card_with_metrics(arm.card, scored, arm.train.steps)
    save_model(trained.student, arm.folder / "student.safetensors", card)
    state = trained.state
    outcome = Outcome(
        arm=arm.label, seed=seed, miou=scored.miou, miou_all=scored.miou_all, best_miou=state.best_miou,
        best_step=state.best_step, iou=scored.iou, steps=arm.train.steps,
        seconds=max(0.0, state.seconds - state.teacher_seconds), teacher_seconds=state.teacher_seconds,
        teacher_seconds_alone=state.teacher_seconds_alone,
        stage_seconds=sum(stage["seconds"] or 0.0 for stage in arm.stages), peak_bytes=state.peak_bytes or None,
        **context.costs(trained.student), model=trained.student.name, method="+".join(arm.methods),
        alignment=arm.alignment, **_measured(scored), **unlabelled_of(context, arm),
    )  # fmt: skip
    _write(context, outcome, arm.folder)


def _write(context: Context, state: State, folder: Path) -> None:
    if context.first:
        state.write(folder / "outcome.json")


def _measures(recipe: CompareRecipe) -> dict[str, Any]:
    return {"boundary": BoundarySettings() if recipe.boundary else None, "calibration": recipe.boundary}


def _measured(scored: Any) -> dict[str, Any]:
    found = scored.to_dict()
    return {key: found.get(key) for key in ("boundary", "calibration", "agreement")}


def _plan(context: Context, recipe: CompareRecipe, name: str) -> Plan:
    val, teacher = context.val_data, None
    if context.teacher is not None:
        scored = context.score(context.teacher, together=False, **_measures(recipe))
        teacher = context.row("teacher", "Teacher", context.teacher.model, scored, **_measured(scored))
    return Plan(
        name=name, arms=tuple(all_arms(recipe)), baseline=baseline_of(recipe), seeds=tuple(recipe.seeds),
        classes=val.classes, palette=[list(color) for color in val.palette], data=context.data_name,
        size=list(context.size), teacher=teacher, recipe=recorded(recipe), class_map=class_map_rows(context),
        environment=context.environment(recipe.train),
    )  # fmt: skip


def _illustrate(context: Context, recipe: CompareRecipe, folder: Path, names: Sequence[str]) -> None:
    """Draw the sample images of the first seed's arms, and the teacher's logits as a method alters them."""
    seed, path = recipe.seeds[0], folder / "comparison.json"
    models: dict[str, nn.Module] = {} if context.teacher is None else {"teacher": context.teacher}
    for name in names:
        if arm_status(folder, name, seed) == "finished":
            models[f"arm:{name}"] = context.objects.load(arm_folder(folder, name, seed), context.val_data.num_classes)
    samples = draw_samples(context, folder, models)
    tailoring = []
    if context.teacher is not None:
        methods = [(name, method) for name, arm in recipe.arms.items() for method in arm.method]
        found = [
            (name, find_method(method.name).altered_logits(check_options(method.name, method.options())))
            for name, method in methods
        ]
        altered = [(name, alter) for name, alter in found if alter is not None]
        tailoring = write_tailored(folder, context.val_data, context.teacher, altered, recipe.evaluate.samples)
    plan = Plan.model_validate_json(path.read_bytes())
    Plan.model_validate({**dict(plan), "samples": samples, "tailoring": tailoring}).write(path)


def _this_process(recipe: CompareRecipe) -> tuple[TrainConfig, int, int, Any]:
    """Return the settings of this process, its number, how many share the seeds, and a store that these share.

    Seeds are dealt to processes that torchrun started, as for Fabric; without it ``RANK`` and ``WORLD_SIZE`` may be of
    the cluster's job and not of this command. Each process then trains by itself: the launcher's variables for a
    common group are removed.
    """
    if recipe.spread == "data" or "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        return recipe.train, 0, 1, None
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world > len(recipe.seeds):
        raise SegtailorError(
            f"{world} processes for {len(recipe.seeds)} seeds: start at most as many, or set spread to data"
        )
    store, _, _ = next(rendezvous("env://"))
    local = os.environ["LOCAL_RANK"]
    for key in LAUNCHER:
        os.environ.pop(key, None)
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", local)
    print(f"process {rank}: seeds {recipe.seeds[rank::world]}", file=sys.stderr)
    return recipe.train.model_copy(update={"devices": 1, "nodes": 1}), rank, world, store


def all_arms(recipe: CompareRecipe) -> dict[str, ArmConfig]:
    """Return the recipe's arms by name, and before them the student alone where no arm is.

    Each further student of the recipe gets an arm without a method, ``none-MODEL``.
    """
    students = {_student(recipe, arm).model_dump_json() for arm in recipe.arms.values() if is_alone(arm)}
    missing: dict[str, ArmConfig] = {}
    for student in [recipe.student, *(arm.student for arm in recipe.arms.values() if arm.student is not None)]:
        if student.model_dump_json() in students:
            continue
        students.add(student.model_dump_json())
        own = student is recipe.student
        name = ALONE if own else run_name(ALONE, student.model)
        while name in recipe.arms or name in missing:
            name += "-alone"
        missing[name] = ArmConfig(method=[MethodConfig(name="none")], student=None if own else student)
    return {**missing, **recipe.arms}


def baseline_of(recipe: CompareRecipe) -> str:
    """Return the arm that is the recipe's own student alone."""
    return next(
        name for name, arm in all_arms(recipe).items() if is_alone(arm) and _student(recipe, arm) == recipe.student
    )


def is_alone(arm: ArmConfig) -> bool:
    """Whether the arm is a student trained without a method."""
    return [method.name for method in arm.method] == ["none"]


def arm_recipe(recipe: CompareRecipe, name: str, seed: int) -> DistillRecipe:
    """Return the recipe that trains the arm ``name`` with ``seed`` alone, by `segtailor distill`."""
    arm = all_arms(recipe)[name]
    settings = {key: getattr(arm, key) for key in ("optimizer", "schedule", "aux_weight", "clip")}
    changes = {"seed": seed, **{key: value for key, value in settings.items() if value is not None}}
    return DistillRecipe(
        description=f"the arm {name} of a comparison, seed {seed}",
        data=recipe.data, teacher=recipe.teacher, student=_student(recipe, arm), method=arm.method,
        train=recipe.train.model_copy(update=changes), evaluate=recipe.evaluate,
        run=RunConfig(name=f"seed{seed}", folder=recipe.run.folder, exists="resume"),
    )  # fmt: skip


def recorded(recipe: CompareRecipe) -> dict[str, Any]:
    """Return ``recipe`` as a comparison records it: with all options of each method, whatever their defaults become.

    A method whose options are wrong stays as it was given; its arm fails, and says why.
    """
    plain = recipe.model_dump(mode="json")
    for name, arm in recipe.arms.items():
        for index, method in enumerate(arm.method):
            with suppress(SegtailorError):
                options = check_options(method.name, method.options()).model_dump(mode="json")
                plain["arms"][name]["method"][index] |= options
    return plain


def _student(recipe: CompareRecipe, arm: ArmConfig) -> StudentConfig:
    return arm.student or recipe.student
