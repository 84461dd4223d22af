"""`segtailor compare`: arms and seeds in, trained side by side on the same batches; one table and one report out."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segtailor.config import CompareRecipe, Strict, TrainConfig
from segtailor.engine.launch import launch
from segtailor.engine.memory import Demand
from segtailor.engine.preemption import resumable
from segtailor.engine.runs import open_run, write_json
from segtailor.errors import SegtailorError
from segtailor.evaluation import evaluate_model, inference_settings
from segtailor.evaluation.boundary import BoundarySettings
from segtailor.jobs.arms import all_arms, arm_folder, baseline_of, recorded
from segtailor.jobs.group import Ground, outcome_status, train_group
from segtailor.jobs.setup import (
    check_methods,
    check_weights_licences,
    class_map_rows,
    environment,
    make_teacher,
    on_first_process,
    open_data,
    profile_size,
    result_row,
    score_teacher,
)  # fmt: skip
from segtailor.jobs.unlabelled import add_unlabelled
from segtailor.methods import METHODS, check_options
from segtailor.models import load_model
from segtailor.recipes import load_recipe
from segtailor.report import write_report
from segtailor.report.samples import write_samples, write_tailored
from segtailor.results.leaderboard import Leaderboard
from segtailor.results.model import read_comparison
from segtailor.results.tables import write_tables


@dataclass
class ComparisonResult:
    """A comparison that ended: its folder, its report, and its leaderboard."""

    folder: Path
    report: Path
    board: Leaderboard


def compare(
    recipe: str | Path | Mapping[str, Any] | Strict,
    overrides: Mapping[str, Any] | None = None,
    *,
    executor: Literal["local", "ray"] = "local",
) -> ComparisonResult:
    """Train every arm of ``recipe`` with every seed, and compare them.

    The arms of one seed see the same batches and share one pass of the teacher; a failed arm is marked and does not
    stop the others. ``executor`` ``ray`` hands the seeds to a Ray cluster (extra ``ray``). Raises ``SegtailorError``
    for a mistake in recipe, data or teacher, ``RunStopped`` after Ctrl-C.
    """
    checked = load_recipe(recipe, CompareRecipe, overrides)
    for arm in checked.arms.values():
        check_methods(arm.method)
    folder = checked.run.folder / (checked.run.name or f"{checked.data.name}-comparison")
    if executor == "ray":
        from segtailor.jobs.cluster import train_on_ray

        train_on_ray(checked)
    else:
        train_seeds(checked, checked.seeds)
    return conclude(folder)


def train_seeds(
    recipe: CompareRecipe, seeds: Sequence[int], fresh: bool = True, arms: Sequence[str] | None = None
) -> Path:
    """Train all arms for ``seeds`` and return the comparison's folder; with several processes, their share of seeds.

    ``fresh`` opens the folder as `run.exists` says; without it the folder is there already. ``arms`` are the only ones
    to be trained, where they are given.
    """
    train = _own_process(recipe)
    rank, world = _place() if recipe.spread == "groups" else (0, 1)
    fabric = launch(train, find_unused_parameters=any(_has_phases(recipe)))
    data, val = open_data(recipe.data, fabric)
    more = add_unlabelled(recipe.data, recipe.train.batch, data, val, fabric)
    teacher = make_teacher(recipe.teacher, data)
    if teacher is not None and recipe.teacher is not None:
        check_weights_licences(recipe.run.license_policy, {"teacher": teacher.model}, fabric.is_global_zero)
        teacher.to(fabric.device)
        if fabric.is_global_zero and teacher.class_map is not None:
            print("\n".join(teacher.class_map.lines()), file=sys.stderr)
        if recipe.teacher.check:
            score_teacher(teacher, val, fabric.device)
    name = recipe.run.name or f"{recipe.data.name}-comparison"
    plain = recipe.model_dump(mode="json")
    run = recipe.run if fresh and rank == 0 else recipe.run.model_copy(update={"exists": "resume"})
    if rank > 0 or not fresh:
        _wait_for(recipe.run.folder / name / "comparison.json")
    folder = on_first_process(fabric, lambda: open_run(run, name, plain).path)
    ground = Ground(fabric, recipe, folder, data, val, teacher, profile_size(recipe.data, val), more)
    if fabric.is_global_zero and rank == 0 and not (folder / "comparison.json").exists():
        _write_plan(ground, name)
    names = [name for name in all_arms(recipe) if arms is None or name in arms]
    demands = dict[str, Demand]()
    with resumable(folder):
        for seed in list(seeds)[rank::world]:
            train_group(ground, names, seed, demands)
            if fabric.is_global_zero:
                _illustrate(ground, names, seed)
                write_report(folder)
    return folder


def conclude(folder: Path) -> ComparisonResult:
    """Write tables and report of what is in ``folder``."""
    board = write_tables(read_comparison(folder), folder)
    return ComparisonResult(folder, write_report(folder), board)


def _write_plan(ground: Ground, name: str) -> None:
    recipe, val = ground.recipe, ground.val
    plan = {
        "version": 1, "name": name, "arms": list(all_arms(recipe)), "baseline": baseline_of(recipe),
        "seeds": recipe.seeds, "classes": list(val.classes), "palette": [list(color) for color in val.palette],
        "data": recipe.data.name, "size": list(ground.size), "teacher": _teacher_row(ground),
        "recipe": recorded(recipe), "class_map": class_map_rows(ground.teacher),
        "environment": environment(recipe.train, ground.fabric), "samples": [], "tailoring": [],
    }  # fmt: skip
    write_json(ground.folder / "comparison.json", plan)


def _teacher_row(ground: Ground) -> dict[str, Any] | None:
    if ground.teacher is None:
        return None
    recipe = ground.recipe
    scored = evaluate_model(
        ground.teacher, ground.val, device=ground.fabric.device, batch=recipe.evaluate.batch,
        workers=recipe.data.workers, boundary=BoundarySettings() if recipe.boundary else None,
        calibration=recipe.boundary, **inference_settings(recipe.evaluate, recipe.data),
    )  # fmt: skip
    measured = scored.to_dict()
    row = result_row("teacher", "Teacher", ground.teacher.model, scored, ground.size)
    return {**row, "boundary": measured.get("boundary"), "calibration": measured.get("calibration")}


def _illustrate(ground: Ground, names: Sequence[str], seed: int) -> None:
    """Draw the sample images of the first seed's arms, and what a method makes of the teacher's logits."""
    import json

    path = ground.folder / "comparison.json"
    if seed != ground.recipe.seeds[0] or not path.exists():
        return
    finished = [name for name in names if outcome_status(ground.folder, name, seed) == "finished"]
    models: dict[str, Any] = {} if ground.teacher is None else {"teacher": ground.teacher}
    for name in finished:
        models[f"arm:{name}"] = load_model(arm_folder(ground.folder, name, seed) / "student.safetensors")
    recipe = ground.recipe
    window = inference_settings(recipe.evaluate, recipe.data)["window"]
    samples = write_samples(ground.folder, ground.val, models, recipe.evaluate, ground.fabric.device, window)
    tailoring = []
    if ground.teacher is not None:
        altered = [
            (name, alter)
            for name, arm in recipe.arms.items()
            for method in arm.method
            if (alter := METHODS[method.name].altered_logits(check_options(method.name, method.options()))) is not None
        ]
        tailoring = write_tailored(ground.folder, ground.val, ground.teacher, altered, recipe.evaluate.samples)
    plan = json.loads(path.read_text(encoding="utf-8"))
    write_json(path, {**plan, "samples": samples, "tailoring": tailoring})


def _wait_for(path: Path, seconds: float = 900.0) -> None:
    """Wait until the first process has opened the comparison's folder."""
    began = time.monotonic()
    while not path.exists():
        if time.monotonic() - began > seconds:
            raise SegtailorError(f"the first process did not write {path} in {seconds:.0f} s")
        time.sleep(0.2)


def _has_phases(recipe: CompareRecipe) -> list[bool]:
    return [METHODS[method.name].phases for arm in recipe.arms.values() for method in arm.method]


def _place() -> tuple[int, int]:
    """Return this process's rank and how many there are, as the launcher said."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def _own_process(recipe: CompareRecipe) -> TrainConfig:
    """Return the settings of this process: where seeds are dealt out, each process trains by itself."""
    rank, world = _place()
    if recipe.spread == "data" or world == 1:
        return recipe.train
    if world > len(recipe.seeds):
        raise SegtailorError(
            f"{world} processes for {len(recipe.seeds)} seeds: start at most as many, or set spread to data"
        )
    local = int(os.environ.get("LOCAL_RANK", "0"))
    for key in [key for key in os.environ if key in LAUNCHER or key.startswith("TORCHELASTIC")]:
        del os.environ[key]
    os.environ["RANK"], os.environ["WORLD_SIZE"] = str(rank), str(world)
    if "CUDA_VISIBLE_DEVICES" not in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(local)
    print(f"process {rank}: seeds {recipe.seeds[rank::world]}", file=sys.stderr)
    return recipe.train.model_copy(update={"devices": 1, "nodes": 1})


LAUNCHER = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
