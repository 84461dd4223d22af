"""The record of a comparison in a repository: three small files instead of a run folder.

``NAME.json`` describes the comparison: recipe, classes, the teacher's scores, environment. ``NAME.rows.jsonl`` has one
JSON line a row, that is one arm with one seed: its scores and times, and the commit and versions that made it.
``NAME.images.npz`` holds each image's hits and unions, for intervals over images. Tables are made from these.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from segtailor.config import CompareRecipe
from segtailor.engine.runs import FREE_TO_CHANGE
from segtailor.errors import SegtailorError, reason, unknown
from segtailor.files import write_atomically, write_text
from segtailor.results.model import (
    ArmRun,
    Comparison,
    arm_folder,
    plan_of,
    read_arrays,
    read_comparison,
    read_json,
    run_of,
)
from segtailor.results.statistics import ImageCounts

FOLDER = Path("benchmarks/results")
"""Where records are looked up by name."""
VERSIONS = ("segtailor", "torch", "commit")
"""What a row records of the code that made it."""
SAME_TEACHER = 5e-4
"""How far the scores of one teacher may differ between machines."""
RESTORE = "restore it"
Key = tuple[str, int]
Row = dict[str, Any]

_F1 = ("tolerance", "mean_f1", "mean_f1_per_image")
_LEFT_OUT = {"class_map", "samples", "tailoring"}


def write_record(folder: str | Path, out: str | Path, commit: str = "", **about: Any) -> list[Key]:
    """Add the finished and failed rows of the comparison in ``folder`` to the record ``out``, and return them.

    ``out`` is ``FOLDER/NAME``, with or without a suffix. Rows that the record has already stay as they are. A row that
    another recipe than the record's made carries what differs under ``changes``. ``about`` are more facts for
    ``NAME.json``, such as a title. Raises SegtailorError where classes or teacher are not the record's.
    """
    plan_path, rows_path, images_path = _paths(out)
    found = read_comparison(folder)
    plan = read_json(plan_path, RESTORE) if plan_path.exists() else _plan(found, plan_path.stem)
    rows, images = (read_rows(rows_path), _read_images(images_path)) if rows_path.exists() else ({}, {})
    if plan["classes"] != list(found.classes) or not _same_teacher(plan["teacher"], found.teacher_miou):
        raise SegtailorError(f"{found.folder} has other classes or another teacher than {plan_path}; use another name")
    alone = found.finished(found.baseline) if found.baseline else {}
    added = []
    for (arm, seed), run in found.runs.items():
        if run.status not in ("finished", "failed") or rows.get((arm, seed), {}).get("status") == "finished":
            continue
        path = arm_folder(found.folder, arm, seed) / "outcome.json"
        if arm in found.recipe["arms"]:
            plan["recipe"]["arms"].setdefault(arm, found.recipe["arms"][arm])
        changes = changed(_row_recipe(plan["recipe"], arm), _row_recipe(found.recipe, arm))
        rows[arm, seed] = slim(read_json(path, RESTORE)) | {
            "alone_seconds": alone[seed].seconds_shared if seed in alone else None,
            **{key: {**found.environment, "commit": commit}.get(key) for key in VERSIONS},
            **({"changes": changes} if changes else {}),
        }
        if run.outcome is not None and run.outcome.images is not None:
            images[arm, seed] = run.outcome.images
        added.append((arm, seed))
    plan["arms"] = list(dict.fromkeys([*plan["arms"], *(arm for arm, _ in added)]))
    plan["seeds"] = plan["recipe"]["seeds"] = list(dict.fromkeys([*plan["seeds"], *(seed for _, seed in added)]))
    _save_record(out, {**plan, **about}, rows, images)
    return added


def read_record(path: str | Path) -> Comparison:
    """Read a record as a comparison, for tables and statistics; ``path`` as in `write_record`.

    Raises SegtailorError where a file cannot be read or a row is damaged: records in a repository must be intact.
    """
    plan_path, rows_path, images_path = _paths(path)
    found = plan_of(read_json(plan_path, RESTORE), str(plan_path), plan_path.parent)
    if found.problems:
        raise SegtailorError(f"{plan_path} is damaged ({found.problems[0]}); {RESTORE}")
    rows, images = read_rows(path), _read_images(images_path)
    for key in [(arm, seed) for arm in found.arms for seed in found.seeds]:
        if key not in rows:
            found.runs[key] = ArmRun(*key, "missing")
            continue
        try:
            found.runs[key] = run = run_of(rows[key], *key, len(found.classes))
            if run.outcome is not None and key in images:
                run.outcome.add_images(images[key], images_path.name)
        except ValueError as error:
            where = f"{rows_path}: {key[0]}, seed {key[1]}"
            raise SegtailorError(f"{where} is damaged ({reason(error)}); {RESTORE}") from error
    return found


def read_rows(path: str | Path) -> dict[Key, Row]:
    """Return a record's rows as they are written, by arm and seed."""
    rows_path = _paths(path)[1]
    rows = {}
    try:
        lines = rows_path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SegtailorError(f"{rows_path} cannot be read ({reason(error)})") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows[str(row["arm"]), int(row["seed"])] = row
        except (ValueError, KeyError, TypeError) as error:
            raise SegtailorError(f"{rows_path}, line {number} is damaged ({reason(error)}); {RESTORE}") from error
    return rows


def find_record(name: str | Path, folder: Path = FOLDER) -> Path:
    """Return the path of ``NAME.json``: a record's file as it is given, or by its name in ``folder``."""
    given = _paths(name)[0]
    for path in (given, folder / given.name):
        if path.is_file():
            return path
    names = [path.stem for path in folder.glob("*.json") if _paths(path)[1].exists()]
    raise unknown("record", str(name), names, f"Names are of {folder.absolute()}; or give a file NAME.json")


def slim(facts: Mapping[str, Any]) -> Row:
    """Return an outcome, or a teacher's scores, without the boundary's bands and the calibration's bins."""
    kept = dict(facts)
    boundary, calibration = facts.get("boundary"), facts.get("calibration")
    if boundary:
        tolerances = [{key: one[key] for key in _F1} for one in boundary.get("f1", [])]
        kept["boundary"] = {**{key: boundary.get(key) for key in ("ratio", "miou", "iou")}, "f1": tolerances}
    if calibration:
        kept["calibration"] = {key: calibration.get(key) for key in ("ece", "brier", "pixels")}
    return kept


def given(recipe: Any) -> Any:
    """Return ``recipe`` without null settings, which a later version may not know; arms stay unchanged.

    >>> given({"train": {"steps": 2, "clip": None}})
    {'train': {'steps': 2}}
    """
    if not isinstance(recipe, Mapping):
        return recipe
    return {key: value if key == "arms" else given(value) for key, value in recipe.items() if value is not None}


def changed(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return by dotted key the settings of ``now`` that differ from ``before`` and matter, arms and seeds aside.

    >>> changed({"train": {"steps": 1, "batch": 8}}, {"train": {"steps": 2, "batch": 8}})
    {'train.steps': 2}
    """
    found: dict[str, Any] = {}
    for key in dict.fromkeys([*before, *now]):
        name, old, new = f"{prefix}{key}", before.get(key), now.get(key)
        if old == new or name in (*FREE_TO_CHANGE, "arms", "seeds", "teacher.weights"):
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found.update(changed(old, new, f"{name}."))
        else:
            found[name] = new
    return found


def _save_record(out: str | Path, plan: Mapping[str, Any], rows: Mapping[Key, Row], images: Mapping[Key, Any]) -> None:
    """Write a record's files, rows in the order of the plan's arms and seeds."""
    plan_path, rows_path, images_path = _paths(out)
    keys = [(arm, seed) for arm in plan["arms"] for seed in plan["seeds"]]
    kept = [key for key in keys if key in images]
    if kept:
        hits, unions = (np.stack([getattr(images[key], name) for key in kept]) for name in ("hits", "unions"))
        names, targets = [arm for arm, _ in kept], [images[key].targets for key in kept]
        write_atomically(
            images_path,
            lambda file: np.savez_compressed(
                file, arms=np.array(names), seeds=np.array([seed for _, seed in kept], dtype=np.int32),
                hits=hits.astype(np.int32), unions=unions.astype(np.int32), targets=np.array(targets),
            ),
        )  # fmt: skip
    lines = "".join(json.dumps(rows[key]) + "\n" for key in keys if key in rows)
    write_text(rows_path, lines)
    write_text(plan_path, json.dumps(plan, indent=1) + "\n")


def _plan(found: Comparison, name: str) -> dict[str, Any]:
    plan = found.model_dump(mode="json", exclude=_LEFT_OUT) | {"name": name, "recipe": given(found.recipe)}
    return plan | {"teacher": slim(plan["teacher"]) if plan["teacher"] else None}


def _same_teacher(recorded: Mapping[str, Any] | None, miou: float | None) -> bool:
    """Whether the scores are of one teacher, as far as machines differ."""
    if recorded is None or miou is None:
        return recorded is None and miou is None
    return abs(float(recorded["miou"]) - miou) < SAME_TEACHER


def _row_recipe(recipe: Mapping[str, Any], arm: str) -> dict[str, Any]:
    """Return ``recipe`` with the arm's settings, as a recipe of `distill` has them.

    Settings that an earlier version did not know get their defaults, so that they do not count as changes.
    """
    with suppress(ValidationError):
        whole = CompareRecipe.model_validate(recipe).model_dump(mode="json")
        recipe = {**whole, "arms": recipe["arms"]}
    recipe = given(recipe)
    own = given(recipe["arms"].get(arm) or {})
    train = {key: own[key] for key in ("optimizer", "schedule", "aux_weight", "clip") if key in own}
    row = {**recipe, **{key: own[key] for key in ("method", "student") if key in own}}
    return {**row, "train": {**recipe.get("train", {}), **train}}


def _read_images(path: Path) -> dict[Key, ImageCounts]:
    if not path.exists():
        return {}
    try:
        arrays = read_arrays(path, "arms", "seeds", "hits", "unions", "targets")
        rows = list(zip(*arrays, strict=True))
    except ValueError as error:
        raise SegtailorError(f"{path}: {reason(error)}; {RESTORE}") from error
    return {
        (str(arm), int(seed)): ImageCounts(hits.astype(np.int64), unions.astype(np.int64), str(targets))
        for arm, seed, hits, unions, targets in rows
    }


def _paths(name: str | Path) -> tuple[Path, Path, Path]:
    """Return the three files of a record, which may be given as any of them or without a suffix."""
    text = str(name)
    for suffix in (".rows.jsonl", ".images.npz", ".json"):
        text = text.removesuffix(suffix)
    return Path(f"{text}.json"), Path(f"{text}.rows.jsonl"), Path(f"{text}.images.npz")
