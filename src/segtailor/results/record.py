"""A comparison as a repository keeps it: three small files instead of a run folder.

``NAME.json`` says what was compared: recipe, classes, the teacher's scores, environment. ``NAME.rows.jsonl`` has one
JSON line a row, that is one arm with one seed: its scores and times, and the commit and versions that made it.
``NAME.images.npz`` holds each image's hits and unions, for intervals over images. Tables are made from these.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from segtailor.comparison import ArmRun, Comparison, ImageCounts, Outcome, read_comparison
from segtailor.comparison.record import is_number, read_outcome
from segtailor.engine.runs import FREE_TO_CHANGE
from segtailor.errors import SegtailorError, reason, unknown
from segtailor.files import write_atomically

FOLDER = Path("benchmarks/results")
"""Where a record that is given by its name alone is looked for."""
VERSIONS = ("segtailor", "torch", "commit")
"""What a row says of the code that made it."""
Key = tuple[str, int]
Row = dict[str, Any]

_F1 = ("tolerance", "mean_f1", "mean_f1_per_image")
_PLAN = ("name", "arms", "baseline", "seeds", "classes", "palette", "data", "size", "teacher", "recipe", "environment")


def write_record(folder: str | Path, out: str | Path, commit: str = "", **about: Any) -> list[Key]:
    """Add the finished and failed rows of the comparison in ``folder`` to the record ``out``, and return them.

    ``out`` is ``FOLDER/NAME``, with or without a suffix. Rows that the record has already stay as they are. A row that
    another recipe than the record's made carries what differs under ``changes``. ``about`` are more facts for
    ``NAME.json``, such as a title. Raises SegtailorError where classes or teacher are not the record's.
    """
    plan_path, rows_path, images_path = _paths(out)
    found = read_comparison(folder)
    new = json.loads((found.folder / "comparison.json").read_text(encoding="utf-8"))
    new = {key: new[key] for key in _PLAN} | {"name": plan_path.stem, "recipe": given(new["recipe"])}
    new["teacher"] = slim(new["teacher"]) if new["teacher"] else None
    plan = _read_json(plan_path) if plan_path.exists() else new
    for key in ("classes", "teacher"):
        if plan[key] != new[key]:
            raise SegtailorError(f"{found.folder} has another {key} than {plan_path}; record it under another name")
    changes = changed(plan["recipe"], new["recipe"])
    for key in ("arms", "seeds"):
        plan[key] = list(dict.fromkeys([*plan[key], *new[key]]))
    plan["recipe"]["arms"] = {**new["recipe"]["arms"], **plan["recipe"]["arms"]}
    rows, images = (read_rows(rows_path), _read_images(images_path)) if rows_path.exists() else ({}, {})
    alone = found.finished(found.baseline) if found.baseline else {}
    added = []
    for (arm, seed), run in found.runs.items():
        old = rows.get((arm, seed))
        if run.status not in ("finished", "failed") or (old is not None and old["status"] == "finished"):
            continue
        path = found.folder / "arms" / arm / f"seed{seed}" / "outcome.json"
        made_by = {**found.environment, "commit": commit}
        rows[arm, seed] = slim(json.loads(path.read_text(encoding="utf-8"))) | {
            "alone_seconds": alone[seed].seconds_shared if seed in alone else None,
            **{key: made_by.get(key) for key in VERSIONS},
            **({"changes": changes} if changes else {}),
        }
        if "CPU" in str(made_by.get("device")):
            rows[arm, seed].pop("peak_bytes", None)  # on a CPU the peak depends on the order of the arms
        if run.outcome is not None and run.outcome.images is not None:
            images[arm, seed] = run.outcome.images
        added.append((arm, seed))
    save_record(out, {**plan, **about}, rows, images)
    return added


def save_record(out: str | Path, plan: Mapping[str, Any], rows: Mapping[Key, Row], images: Mapping[Key, Any]) -> None:
    """Write a record's files, rows in the order of the plan's arms and seeds."""
    plan_path, rows_path, images_path = _paths(out)
    keys = [(arm, seed) for arm in plan["arms"] for seed in plan["seeds"]]
    kept = [key for key in keys if key in images]
    if kept:
        arrays = {
            "arms": np.array([arm for arm, _ in kept]),
            "seeds": np.array([seed for _, seed in kept], dtype=np.int32),
            "hits": np.stack([images[key].hits for key in kept]).astype(np.int32),
            "unions": np.stack([images[key].unions for key in kept]).astype(np.int32),
            "targets": np.array([images[key].targets for key in kept]),
        }
        write_atomically(images_path, lambda file: np.savez_compressed(file, **arrays))
    lines = "".join(json.dumps(rows[key]) + "\n" for key in keys if key in rows)
    write_atomically(rows_path, lambda file: file.write(lines.encode()))
    write_atomically(plan_path, lambda file: file.write((json.dumps(plan, indent=1) + "\n").encode()))


def read_record(path: str | Path) -> Comparison:
    """Read a record as the comparison that it was, for tables and statistics; ``path`` as in `write_record`.

    Raises SegtailorError where a file cannot be read or a row is damaged: what a repository keeps is whole.
    """
    plan_path, rows_path, images_path = _paths(path)
    plan = _read_json(plan_path)
    try:
        found = Comparison(
            folder=plan_path.parent, name=plan["name"], arms=tuple(plan["arms"]), baseline=plan["baseline"],
            seeds=tuple(plan["seeds"]), classes=tuple(plan["classes"]), data=plan["data"], teacher=plan["teacher"],
            recipe=plan["recipe"], environment=plan["environment"],
        )  # fmt: skip
    except (KeyError, TypeError) as error:
        raise SegtailorError(f"{plan_path} is damaged ({error}); restore it") from error
    if found.teacher is not None and not is_number(found.teacher.get("miou"), 0, 1):
        raise SegtailorError(f"{plan_path} is damaged (the teacher's miou); restore it")
    rows, images = read_rows(path), _read_images(images_path)
    for key in [(arm, seed) for arm in found.arms for seed in found.seeds]:
        found.runs[key] = _run(key, rows.get(key), images.get(key), found, rows_path)
    return found


def read_rows(path: str | Path) -> dict[Key, Row]:
    """Return a record's rows as they are written, by arm and seed."""
    rows_path = _paths(path)[1]
    rows = {}
    for number, line in enumerate(_read_text(rows_path).splitlines(), 1):
        try:
            row = json.loads(line)
            rows[str(row["arm"]), int(row["seed"])] = row
        except (ValueError, KeyError, TypeError) as error:
            raise SegtailorError(f"{rows_path}, line {number} is damaged ({reason(error)}); restore it") from error
    return rows


def find_record(name: str | Path, folder: Path = FOLDER) -> Path:
    """Return the path of ``NAME.json``: a record's file as it is given, or by its name in ``folder``."""
    given = _paths(name)[0]
    for path in (given, folder / given.name):
        if path.is_file():
            return path
    names = [path.stem for path in folder.glob("*.json") if _paths(path)[1].exists()]
    raise unknown("record", str(name), names, f"Give a name of {folder}, or a file NAME.json")


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
    """Return ``recipe`` without settings that are null, which a later version need not know; arms stay as they are.

    >>> given({"train": {"steps": 2, "clip": None}})
    {'train': {'steps': 2}}
    """
    if not isinstance(recipe, Mapping):
        return recipe
    return {key: value if key == "arms" else given(value) for key, value in recipe.items() if value is not None}


def changed(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return by dotted key what ``now`` computes with otherwise than ``before``, whatever its arms and seeds.

    >>> changed({"train": {"steps": 1, "batch": 8}}, {"train": {"steps": 2, "batch": 8}})
    {'train.steps': 2}
    """
    found = {}
    for key in dict.fromkeys([*before, *now]):
        name, old, new = f"{prefix}{key}", before.get(key), now.get(key)
        if old == new or name in (*FREE_TO_CHANGE, "arms", "seeds"):
            continue
        nested = isinstance(old, Mapping) and isinstance(new, Mapping)
        found.update(changed(old, new, f"{name}.") if nested else {name: new})
    return found


def _run(key: Key, row: Row | None, images: ImageCounts | None, found: Comparison, path: Path) -> ArmRun:
    if row is None:
        return ArmRun(*key, "missing")
    if row.get("status") == "failed":
        return ArmRun(*key, "failed", str(row.get("reason") or ""))
    try:
        outcome: Outcome = read_outcome(row, len(found.classes))
    except (KeyError, ValueError) as error:
        raise SegtailorError(f"{path}: {key[0]}, seed {key[1]} is damaged ({reason(error)}); restore it") from error
    if images is not None and abs(images.miou - outcome.miou) > 1e-5:
        raise SegtailorError(
            f"{path}: {key[0]}, seed {key[1]} has mIoU {outcome.miou:.6f}, its images {images.miou:.6f}; restore it"
        )
    return ArmRun(*key, "finished", "", replace(outcome, images=images))


def _read_images(path: Path) -> dict[Key, ImageCounts]:
    if not path.exists():
        return {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(_counts({name: stored[name] for name in stored.files}))
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise SegtailorError(f"{path} is damaged ({reason(error)}); restore it") from error


def _counts(stored: Mapping[str, Any]) -> Iterator[tuple[Key, ImageCounts]]:
    for index, (arm, seed) in enumerate(zip(stored["arms"], stored["seeds"], strict=True)):
        hits, unions = (stored[name][index].astype(np.int64) for name in ("hits", "unions"))
        yield (str(arm), int(seed)), ImageCounts(hits, unions, str(stored["targets"][index]))


def _paths(name: str | Path) -> tuple[Path, Path, Path]:
    """Return the three files of a record, which may be given as any of them or without a suffix."""
    text = str(name)
    for suffix in (".rows.jsonl", ".images.npz", ".json"):
        text = text.removesuffix(suffix)
    return Path(f"{text}.json"), Path(f"{text}.rows.jsonl"), Path(f"{text}.images.npz")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_text(path))
    except ValueError as error:
        raise SegtailorError(f"{path} is damaged ({reason(error)}); restore it") from error
    if not isinstance(value, dict):
        raise SegtailorError(f"{path} is damaged (no JSON object); restore it")
    return value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SegtailorError(f"{path} cannot be read ({reason(error)})") from error
