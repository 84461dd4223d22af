"""Validation mIoU against the step: all arms in one plot, two of them in front; and each beside the student alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from segtailor.report.comparison.plot import Curve, Plot, draw, height
from segtailor.report.comparison.series import Series, arm_series, scores
from segtailor.report.comparison.source import Source
from segtailor.results.formatting import percent

CLIMB = 0.2
"""Share of the steps whose steep climb may leave the plots at the bottom: what follows would be a flat line."""


@dataclass
class ScoreCurves:
    """The plots, and the means as a table: a head and a row of cells for each step."""

    together: Plot
    each: list[Plot]
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def score_curves(source: Source) -> ScoreCurves | None:
    """Return the validation curves; None before the first evaluation."""
    order = [result.arm for result in source.board.arms]
    found = {arm: series for arm in order if (series := arm_series(source, arm, scores)) is not None}
    if not found:
        return None
    last = max(series.points[-1][0] for series in found.values())
    x_range = (0.0, float(last))
    teacher = source.comparison.teacher_miou
    levels = [("teacher", "Teacher", 100 * teacher)] if teacher is not None else []
    late = [[point for point in series.points if point[0] >= CLIMB * last] for series in found.values()]
    late = [points for points in late if points] or [series.points for series in found.values()]
    y_range = height(late, [level for _, _, level in levels])
    curves = {arm: Curve(arm, _label(source, series), source.role(arm), series.points) for arm, series in found.items()}
    together = Plot(
        "Validation mIoU, all arms", "%", "training step", list(curves.values()),
        _summary(list(found.values())), _front(source, list(found)),
    )  # fmt: skip
    alone = found.get(source.baseline or "")
    each = []
    for result in source.rivals:
        if result.arm not in found or alone is None:
            continue
        pair = [alone, found[result.arm]]
        plot = Plot(result.arm, "", "training step", [_copy(curves[series.arm]) for series in pair], _summary(pair))
        each.append(draw(plot, x_range, levels, y_range, steps=3))
    steps = sorted({point[0] for series in found.values() for point in series.points})
    by_arm = {arm: {point[0]: point[1] for point in series.points} for arm, series in found.items()}
    rows = [
        (f"{step:,.0f}", [percent(means[step] / 100) if step in means else "" for means in by_arm.values()])
        for step in steps
    ]
    return ScoreCurves(draw(together, x_range, levels, y_range), each, list(found), rows)


def _front(source: Source, arms: list[str]) -> tuple[str, ...]:
    """Return the best arm and the student alone, or what comes next to them."""
    first = next((arm for arm in arms if arm != source.baseline), arms[0])
    second = source.baseline if source.baseline in arms else next((arm for arm in arms if arm != first), None)
    return (first,) if second is None or second == first else (first, second)


def _label(source: Source, series: Series) -> str:
    """Return the arm's name, with the seeds behind the line when they are not all."""
    if len(series.seeds) == len(source.comparison.seeds):
        return series.arm
    finished = bool(source.comparison.finished(series.arm))
    return f"{series.arm} ({_seeds(series.seeds)}{'' if finished else ', not finished'})"


def _seeds(seeds: tuple[int, ...]) -> str:
    consecutive = len(seeds) > 2 and all(after == before + 1 for before, after in pairwise(seeds))
    listed = f"{seeds[0]} to {seeds[-1]}" if consecutive else ", ".join(map(str, seeds))
    return f"{'seeds' if len(seeds) > 1 else 'seed'} {listed}"


def _summary(found: list[Series]) -> str:
    return "; ".join(f"{series.arm} ends at {percent(series.points[-1][1] / 100)} %" for series in found)


def _copy(curve: Curve) -> Curve:
    return Curve(curve.arm, curve.label, curve.role, curve.points)
