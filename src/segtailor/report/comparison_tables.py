"""The tables of a comparison's page: the leaderboard, and gains as colored cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from segtailor.report.read import Source, class_colors
from segtailor.report.svg import nice_ticks, share
from segtailor.results.formatting import (
    MISSING,
    duration,
    interval,
    mean_and_std,
    numbered,
    p_value,
    percent,
    points,
    scaled,
    tone,
    unit_of,
)
from segtailor.results.leaderboard import ArmResult
from segtailor.results.model import Row
from segtailor.results.tables import finished_seeds

LONGEST_REASON = 120  # in the table; the page's list of problems has it whole
Units = tuple[tuple[float, str], tuple[float, str]]


@dataclass
class Cell:
    """One cell: ``value`` is what sorts it (None: always last), ``small`` are lines below, ``tone`` is its color.

    ``strength`` is the size of a gain, from 0 to 1 of the table's scale.
    """

    text: str
    value: float | None = None
    small: Sequence[str] = ()
    tone: str = ""
    strength: float = 0.0

    @property
    def sort(self) -> str:
        """The number to sort by as text."""
        return "" if self.value is None else f"{self.value:.9g}"


def leaderboard(source: Source) -> dict[str, Any]:
    """Return a row an arm, highest mean first, the columns with any figure, and the teacher where it was scored.

    A row's ``dots`` are its seeds' places on the strip in percent, ``at`` that of their mean.
    """
    arms, teacher = source.board.arms, source.comparison.teacher
    everything = [score for result in arms for score in result.scores.values()]
    strip = (min(everything), max(everything)) if everything else (0.0, 1.0)
    models: list[ArmResult | Row] = [*arms, *([teacher] if teacher else [])]
    units = unit_of(model.parameters for model in models), unit_of(model.multiply_adds for model in models)
    planned = len(source.comparison.seeds)
    rows: list[dict[str, Any]] = [
        {
            "arm": result.arm,
            "method": source.method(result.arm),
            "role": source.role(result.arm),
            "seeds": "" if len(result.scores) == planned else f"{finished_seeds(source.board, result)} seeds",
            "marks": _marks(source, result),
            "dots": [100 * share(score, strip) for score in result.scores.values()],
            "at": None if result.miou is None else 100 * share(result.miou, strip),
            "each": ", ".join(f"seed {seed}: {percent(score)}" for seed, score in result.scores.items()),
            "cells": _cells(result, units),
        }
        for result in arms
    ]
    columns = [name for name in rows[0]["cells"] if {row["cells"][name].text for row in rows} - {MISSING, "baseline"}]
    return {
        "rows": rows,
        "columns": columns,
        "low": percent(strip[0], 1),
        "high": percent(strip[1], 1),
        "teacher": teacher and {"model": teacher.model, "miou": percent(teacher.miou), "size": _size(teacher, units)},
    }


def _cells(result: ArmResult, units: Units) -> dict[str, Cell]:
    """Return the arm's cells by column; of its time the whole alone, and below it its parts and that when shared."""
    best, gain = result.best.mean if result.best else None, points(result.gain)
    intervals = {"seeds": result.over_seeds, "images": result.over_images}
    parts = {"own": result.seconds, "stages": result.stage_seconds or None}
    if result.seconds_shared != result.seconds_alone:
        parts["shared"] = result.seconds_shared
    telling = result.p_holm is not None or result.verdict in ("too few seeds", "seeds change nothing")
    return {
        "miou": Cell(mean_and_std(result.last), result.miou),
        "best": Cell(percent(best), best,
                     [f"± {percent(result.best.std)}"] if result.best and result.best.std is not None else []),
        "gain": Cell("baseline", 0.0) if result.verdict == "baseline" else Cell(
            gain, result.gain, [f"{name} {interval(found, 1)}" for name, found in intervals.items() if found],
            tone(gain)),
        "p": Cell(p_value(result.p_holm), result.p_holm, [result.verdict] if telling else [],
                  "strong" if result.verdict == "differs" else ""),
        "rank": Cell(MISSING if result.rank is None else f"{result.rank:.1f}", result.rank),
        "closed": Cell(percent(result.gap_closed, 0), result.gap_closed),
        "time": Cell(duration(result.seconds_alone), result.seconds_alone,
                     [f"{name} {duration(part)}" for name, part in parts.items() if part is not None]),
        "memory": Cell(scaled(result.peak_bytes, 2.0**30), result.peak_bytes),
        "parameters": _size(result, units),
    }  # fmt: skip


def _size(model: ArmResult | Row, units: Units) -> Cell:
    """Return parameters, and below them multiply-adds, each in its unit."""
    lines = [] if model.multiply_adds is None else [scaled(model.multiply_adds, *units[1])]
    return Cell(scaled(model.parameters, *units[0]), model.parameters, lines)


def _marks(source: Source, result: ArmResult) -> list[tuple[str, str]]:
    """Return the status and a text for each of the arm's seeds that are not in the means."""
    found = []
    for seed, reason in result.failed.items():
        found.append(("failed", f"seed {seed} failed{': ' + _short(reason) if reason else ''}"))
    for run in source.comparison.with_status(result.arm, "damaged"):
        found.append(("damaged", f"seed {run.seed} left out: {_short(run.reason)}"))
    for run in source.comparison.with_status(result.arm, "running"):
        records = source.records[result.arm].get(run.seed)
        step = f", step {records[-1]['step']:,}" if records else ""
        found.append(("running", f"seed {run.seed} running{step}"))
    waiting = [run.seed for run in source.comparison.with_status(result.arm, "missing")]
    return found + ([("missing", f"{numbered('seed', waiting)} not there yet")] if waiting else [])


def _short(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON].rstrip() + " …"


@dataclass
class Heat:
    """Colored cells by row and column; ``most`` is the scale's end in points."""

    rows: list[list[Cell]]
    most: float


def class_gains(source: Source) -> dict[str, Any] | None:
    """Return gains of IoU over the student alone, a row a class and a column an arm; None without seeds of both.

    ``alone`` is the student alone's IoU.
    """
    arms = [result.arm for result in source.rivals if result.differences]
    if source.baseline is None or not arms:
        return None
    comparison = source.comparison
    runs = [comparison.finished(arm) for arm in (source.baseline, *arms)]
    levels, gains = [], []
    for place in range(len(comparison.classes)):
        alone, *own = ({seed: run.iou[place] for seed, run in finished.items()} for finished in runs)
        level = average(alone.values())
        levels.append(Cell(percent(level, 1), level))
        gains.append([average(seed_gains(one, alone)) for one in own])
    classes = class_colors(comparison.classes, comparison.palette)
    return {"classes": classes, "alone": levels, "arms": arms, "heat": heat(gains)}


def heat(gains: Sequence[Sequence[float | None]]) -> Heat:
    """Color fractions by their size; the scale ends at the 98th percentile, so that one cell does not pale the rest.

    >>> heat([[0.02, -0.01, None]]).rows[0][1]
    Cell(text='−1.0', value=-0.01, small=(), tone='loss', strength=0.5)
    """
    sizes = sorted(100 * abs(gain) for row in gains for gain in row if gain is not None)
    top = sizes[math.ceil(0.98 * len(sizes)) - 1] if sizes else 0.0
    most = nice_ticks(0.0, top or 1.0, 4)[-1]
    return Heat([[_gain_cell(gain, most) for gain in row] for row in gains], most)


def _gain_cell(gain: float | None, most: float) -> Cell:
    text = points(gain, 1)
    strength = min(1.0, 100 * abs(gain) / most) if gain is not None and tone(text) else 0.0
    return Cell(text, gain, tone=tone(text), strength=round(strength, 3))


def seed_gains(arm: Mapping[int, float | None], alone: Mapping[int, float | None]) -> list[float]:
    """Return arm minus alone for each seed that has both.

    >>> seed_gains({0: 0.75, 1: None, 2: 0.5}, {0: 0.5, 1: 0.5, 3: 0.1})
    [0.25]
    """
    pairs = [(value, alone.get(seed)) for seed, value in arm.items()]
    return [mine - other for mine, other in pairs if mine is not None and other is not None]


def average(values: Iterable[float | None]) -> float | None:
    """Return the mean of the known values; None where there are none."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
