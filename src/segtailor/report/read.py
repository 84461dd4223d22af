"""Reading the folder of a run or of a comparison, finished or still running."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from segtailor.data.classes_file import distinct_colors
from segtailor.engine.logging import read_metrics
from segtailor.errors import SegtailorError
from segtailor.files import Color
from segtailor.results.formatting import css_color
from segtailor.results.leaderboard import ArmResult, Leaderboard, summarise
from segtailor.results.model import Comparison, Row, RunResults, arm_folder, read_comparison, read_results
from segtailor.results.statistics import MIN_SEEDS

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
    """A run folder's content: ``results`` is empty until the run has ``finished``."""

    folder: Path
    finished: bool = False
    results: RunResults = field(default_factory=RunResults)
    curves: dict[str, Records] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""

    @property
    def rows(self) -> dict[str, Row]:
        """The rows of the results by role, in reading order."""
        return {row.role: row for row in sorted(self.results.rows, key=lambda row: _order(row.role))}

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
        with suppress(yaml.YAMLError):
            run.recipe = _mapping(yaml.safe_load(run.recipe_text))
    paths = run.results.curves or {run.main: "metrics.jsonl", "alone": "baseline/metrics.jsonl"}
    for role in sorted(paths, key=_order):
        records = read_metrics(folder / paths[role])  # an absolute path stays what it is
        if records:
            run.curves[role] = records
    return run


@dataclass
class Source:
    """A comparison for the page, with ``records``, the metrics by arm and seed."""

    comparison: Comparison
    board: Leaderboard
    records: dict[str, dict[int, Records]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def baseline(self) -> str | None:
        """The student alone, when the comparison has it."""
        return self.comparison.baseline

    @property
    def rivals(self) -> list[ArmResult]:
        """The arms beside the student alone, highest mean first."""
        return [result for result in self.board.arms if result.arm != self.baseline]

    @property
    def tested(self) -> bool:
        """Whether any arm has enough seeds in common with the student alone for a test."""
        return any(len(result.differences) >= MIN_SEEDS for result in self.rivals)

    def role(self, arm: str) -> str:
        """Return the color class of an arm."""
        return "alone" if arm == self.baseline else "distilled"

    def method(self, arm: str) -> str:
        """Return the arm's methods with their variants as in the recipe; empty where that only repeats its name."""
        entries = self.comparison.recipe.get("arms", {}).get(arm, {}).get("method", [])
        names = [", ".join(str(entry[key]) for key in ("name", "variant") if entry.get(key)) for entry in entries]
        text = " + ".join(names)
        return "" if text == arm else text


def read_source(folder: Path) -> Source:
    """Read a comparison's folder; raises SegtailorError when it holds none."""
    comparison = read_comparison(folder)
    source = Source(comparison, summarise(comparison))
    for arm in comparison.arms:
        source.records[arm] = {}
        for seed in comparison.seeds:
            try:
                lines = read_metrics(arm_folder(folder, arm, seed) / "metrics.jsonl")
            except (OSError, ValueError):
                source.problems.append(f"arms/{arm}/seed{seed}: metrics.jsonl cannot be read; no curves of it")
                continue
            records = [line for line in lines if isinstance(_mapping(line).get("step"), int) and "kind" in line]
            if records:
                source.records[arm][seed] = records
    return source


def logged(records: Records, value: Callable[[dict[str, Any]], object]) -> list[tuple[float, float]]:
    """Return (step, value) of the records in which ``value`` finds a finite number.

    >>> logged([{"step": 2, "loss": 0.5}, {"step": 4}], lambda record: record.get("loss"))
    [(2, 0.5)]
    """
    found = [(record["step"], value(record)) for record in records]
    return [(step, y) for step, y in found if isinstance(y, (int, float)) and math.isfinite(y)]


def class_colors(classes: Sequence[str], palette: Sequence[Color]) -> list[tuple[str, str]]:
    """Return each class with its color in CSS; where the palette has too few, distinct colors."""
    colors = palette if len(palette) >= len(classes) else distinct_colors(len(classes))
    return list(zip(classes, map(css_color, colors), strict=False))


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _order(role: str) -> int:
    return ROLES.index(role) if role in ROLES else len(ROLES)
