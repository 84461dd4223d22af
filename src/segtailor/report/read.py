"""What a run folder holds, finished or still going."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from segtailor.engine.logging import read_metrics
from segtailor.errors import SegtailorError
from segtailor.results.model import Row, RunResults, read_results

Records = list[dict[str, Any]]

ROLES = ("teacher", "alone", "distilled", "model")
LABELS = {
    "teacher": "Teacher",
    "assisted": "Label-assisted teacher",
    "alone": "Student alone",
    "distilled": "Student distilled",
    "model": "Model",
}


@dataclass
class Run:
    """A run folder as read: ``results`` is empty until the run has ``finished``."""

    folder: Path
    finished: bool = False
    results: RunResults = field(default_factory=RunResults)
    curves: dict[str, Records] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""

    @property
    def rows(self) -> dict[str, Row]:
        """The rows of the results by role, in reading order."""
        rows = {row.role: row for row in self.results.rows}
        return {role: rows[role] for role in sorted(rows, key=_order)}

    @property
    def main(self) -> str:
        """The role that the run is about."""
        return "distilled" if self.results.kind == "distill" or "student" in self.recipe else "model"

    def label(self, role: str) -> str:
        """Return the name that a reader sees for ``role``."""
        if role == "distilled" and self.method:
            return f"Student with {self.method}"
        row = self.rows.get(role)
        return row.label if row is not None and row.label else LABELS.get(role, role)

    @property
    def method(self) -> str:
        """The method's name, several joined by a plus; empty for a plain training."""
        if self.results.method:
            return self.results.method
        listed = self.recipe.get("method") or []
        return "+".join(str(entry.get("name")) for entry in listed if isinstance(entry, dict))

    @property
    def name(self) -> str:
        """The run's name."""
        return self.results.name or self.folder.resolve().name

    @property
    def classes(self) -> list[str]:
        """The classes' names; empty until the run has finished."""
        return list(self.results.classes)

    @property
    def data(self) -> str:
        """The data set's name."""
        return str(self.results.data or self.recipe.get("data", {}).get("name") or "")


def read_run(folder: Path) -> Run:
    """Read a run folder; raises SegtailorError when it holds no run, or a results.json that is damaged."""
    results_path, recipe_path = folder / "results.json", folder / "recipe.yaml"
    if not results_path.exists() and not (folder / "metrics.jsonl").exists():
        raise SegtailorError(f"no run in {folder}: it has neither results.json nor metrics.jsonl")
    run = Run(folder)
    if results_path.exists():
        run.finished, run.results = True, read_results(folder)
    if recipe_path.exists():
        run.recipe_text = recipe_path.read_text(encoding="utf-8")
        run.recipe = _mapping(run.recipe_text)
    paths = run.results.curves or {run.main: "metrics.jsonl", "alone": "baseline/metrics.jsonl"}
    for role in sorted(paths, key=_order):
        records = read_metrics(folder / paths[role])  # an absolute path stays what it is
        if records:
            run.curves[role] = records
    return run


def _mapping(text: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _order(role: str) -> int:
    return ROLES.index(role) if role in ROLES else len(ROLES)
