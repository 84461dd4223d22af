"""The study as its YAML says it: teachers, and comparisons in the order in which they are to be run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from fingerprint import differences, fingerprint, teacher_fingerprint, weights_hash

from segtailor.config import CompareRecipe, TrainRecipe
from segtailor.errors import SegtailorError
from segtailor.jobs.build import all_arms
from segtailor.recipes import validate

STUDY = Path(__file__).resolve().parents[1] / "studies" / "equal.yaml"
SPLITS = {"val": {}, "dev": {"train_split": "fit", "val_split": "dev"}}
"""What is reported is scored on `val`; what is chosen is chosen on `dev`, the last fifth of the training sequences."""


@dataclass(frozen=True)
class Comparison:
    """One comparison of the study: its place in it, and the recipe of all its arms and seeds."""

    name: str
    tier: str
    title: str
    about: str
    splits: str
    teacher: str | None
    recipe: CompareRecipe
    settled: str
    """The commit that made its rows, where they stay as they are whatever the code becomes; else empty."""

    @property
    def arms(self) -> list[str]:
        """The arms' names, the student alone among them."""
        return list(all_arms(self.recipe))


@dataclass(frozen=True)
class Study:
    """The study, and where its files lie: runs in ``runs/NAME``, rows in ``results/NAME`` beside ``studies``."""

    path: Path
    title: str
    about: str
    teachers: dict[str, TrainRecipe]
    comparisons: dict[str, Comparison]
    runs: Path
    results: Path

    def teacher_run(self, teacher: str) -> Path:
        """Return the run folder of a teacher."""
        return self.runs / f"teacher-{teacher}"

    def teacher_weights(self, teacher: str) -> Path:
        """Return where a teacher's weights lie, once it is trained."""
        return self.teacher_run(teacher) / "model.safetensors"

    def teacher_hash(self, teacher: str | None) -> str | None:
        """Return the hash of a teacher's weights; None without a teacher.

        That of the recorded teacher where it is not trained here, if what would train it is still what made it; else
        None.
        """
        if teacher is None:
            return None
        if self.teacher_weights(teacher).exists():
            return weights_hash(self.teacher_weights(teacher))
        try:
            record = json.loads((self.results / f"teacher-{teacher}.json").read_text(encoding="utf-8"))
            same = not differences(record["fingerprint"], self.teacher_expected(teacher))
            return str(record["weights"]) if same else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def teacher_expected(self, teacher: str) -> dict[str, str]:
        """Return what a teacher must have been made by to count."""
        return teacher_fingerprint(self.teachers[teacher].model_dump(mode="json"))

    def expected(self, comparison: Comparison, arm: str, seed: int) -> dict[str, str]:
        """Return what a row must have been made by to count."""
        return fingerprint(comparison.recipe, arm, seed, self.teacher_hash(comparison.teacher))


def read_study(path: Path) -> Study:
    """Read and check the study's YAML; raises ``SegtailorError`` in one line."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise SegtailorError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    missing = [key for key in ("title", "about", "common", "teachers", "comparisons") if key not in (values or {})]
    if missing:
        raise SegtailorError(f"{path}: {', '.join(missing)} missing")
    common, runs = values["common"], Path("runs") / path.stem
    teachers = {}
    for name, recipe in values["teachers"].items():
        run = {"run": {"name": f"teacher-{name}", "folder": str(runs), "exists": "resume"}}
        teachers[name] = validate(TrainRecipe, merge(common, recipe, run), f"{path.name}, teacher {name}")
    comparisons = {}
    for name, given in values["comparisons"].items():
        comparisons[name] = _comparison(name, given, values, runs, path)
    return Study(
        path,
        values["title"],
        values["about"],
        teachers,
        comparisons,
        runs,
        path.resolve().parents[1] / "results" / path.stem,
    )


def merge(*sections: dict[str, Any]) -> dict[str, Any]:
    """Return the sections as one; a later one's values stand over an earlier one's, key by key.

    >>> merge({"train": {"steps": 1, "batch": 8}}, {"train": {"steps": 2}})
    {'train': {'steps': 2, 'batch': 8}}
    """
    merged: dict[str, Any] = {}
    for section in sections:
        for key, value in section.items():
            before = merged.get(key)
            both = isinstance(value, dict) and isinstance(before, dict)
            merged[key] = merge(before, value) if both else value  # type: ignore[arg-type]
    return merged


def _comparison(name: str, given: dict[str, Any], values: dict[str, Any], runs: Path, path: Path) -> Comparison:
    where = f"{path.name}, comparison {name}"
    known = {"tier", "title", "about", "splits", "teacher", "recipe", "seeds", "arms", "settled"}
    unknown = sorted(given.keys() - known)
    splits = given.get("splits", "val")
    teacher = splits if given.get("teacher", True) else None
    if unknown or splits not in SPLITS:
        raise SegtailorError(f"{where}: " + (f"unknown key {unknown[0]}" if unknown else f"splits are {list(SPLITS)}"))
    recipe = merge(
        values["common"],
        values.get("student", {}),
        given.get("recipe", {}),
        {"data": SPLITS[splits], "arms": given["arms"], "seeds": given["seeds"]},
        {"run": {"name": name, "folder": str(runs), "exists": "resume"}, "evaluate": {"samples": 0}},
    )
    if teacher is not None:
        taught = {"model": values["teachers"][teacher]["model"]["model"], "weights": str(runs / f"teacher-{teacher}")}
        recipe = merge(recipe, {"teacher": taught})
    checked = validate(CompareRecipe, recipe, where)
    tier, title, about = (str(given.get(key, "")) for key in ("tier", "title", "about"))
    return Comparison(name, tier, title, about, splits, teacher, checked, str(given.get("settled", "")))
