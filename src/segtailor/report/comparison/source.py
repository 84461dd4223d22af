"""Everything that the page is made of: the comparison as read, its statistics, and the runs' metrics."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segtailor.engine.logging import read_metrics
from segtailor.files import Color
from segtailor.report.read import Records
from segtailor.results.leaderboard import ArmResult, Leaderboard, summarise
from segtailor.results.model import Comparison, read_comparison
from segtailor.results.statistics import MIN_SEEDS


@dataclass
class Source:
    """A comparison for the page; ``plan`` is ``comparison.json``, ``records`` the metrics by arm and seed."""

    comparison: Comparison
    board: Leaderboard
    plan: dict[str, Any]
    records: dict[str, dict[int, Records]]
    problems: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """Where the comparison lies."""
        return self.comparison.folder

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
        """Return the colour class of an arm."""
        return "alone" if arm == self.baseline else "distilled"

    def method(self, arm: str) -> str:
        """Return the arm's methods with their variants, as the recipe has them; empty where that says no more."""
        listed = _mapping(_mapping(self.comparison.recipe.get("arms")).get(arm)).get("method")
        entries = [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []
        names = [", ".join(str(entry[key]) for key in ("name", "variant") if entry.get(key)) for entry in entries]
        text = " + ".join(names)
        return "" if text == arm else text

    def palette(self) -> list[Color]:
        """Return one colour a class."""
        given = [(int(red), int(green), int(blue)) for red, green, blue in self.plan.get("palette") or []]
        count = len(self.comparison.classes)
        if len(given) >= count:
            return given[:count]
        from segtailor.data.classes_file import distinct_colors

        return list(distinct_colors(count))

    def entries(self, key: str) -> list[dict[str, Any]]:
        """Return the plan's list ``key`` (samples, tailoring), without what is no entry."""
        return [entry for entry in self.plan.get(key) or [] if isinstance(_mapping(entry).get("pictures"), dict)]


def read_source(folder: Path) -> Source:
    """Read a comparison's folder; raises SegtailorError when it holds none."""
    comparison = read_comparison(folder)
    plan = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    source = Source(comparison, summarise(comparison), plan, {})
    for arm in comparison.arms:
        source.records[arm] = {}
        for seed in comparison.seeds:
            path = folder / "arms" / arm / f"seed{seed}" / "metrics.jsonl"
            try:
                records = [line for line in read_metrics(path) if _is_record(line)]
            except (OSError, ValueError):
                source.problems.append(f"arms/{arm}/seed{seed}: metrics.jsonl cannot be read; no curves of it")
                continue
            if records:
                source.records[arm][seed] = records
    return source


def _is_record(line: object) -> bool:
    return isinstance(line, dict) and isinstance(line.get("step"), int) and "kind" in line


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
