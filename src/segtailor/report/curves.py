"""Curves against the training step, as SVG paths that stretch with the page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from segtailor.report.read import Records, Run
from segtailor.results.formatting import compact, percent

SPAN = 1000.0  # the drawing's own width and height; the page stretches it
MOST_POINTS = 300
TERM_NAMES = {"task": "task: cross-entropy", "task_aux": "task_aux: auxiliary cross-entropy"}

Point = tuple[float, float]


@dataclass
class Line:
    """One curve: ``path`` through all points, ``smooth`` through their moving average (empty where not needed)."""

    role: str
    label: str
    points: list[Point]
    path: str = ""
    smooth: str = ""


@dataclass
class Mark:
    """A tick, or a level drawn across the plot; ``at`` is in percent from the left or from the bottom."""

    at: float
    label: str
    role: str = ""


@dataclass
class Chart:
    """One plot, ready for the template."""

    title: str
    unit: str
    lines: list[Line]
    x_ticks: list[Mark] = field(default_factory=list)
    y_ticks: list[Mark] = field(default_factory=list)
    levels: list[Mark] = field(default_factory=list)
    summary: str = ""
    x_range: Point = (0.0, 1.0)
    y_range: Point = (0.0, 1.0)

    @property
    def data(self) -> str:
        """The points as JSON, for the readout under the pointer."""
        return json.dumps(
            {
                "x": self.x_range,
                "lines": [
                    {"label": line.label, "role": line.role, "points": [[x, float(f"{y:.4g}")] for x, y in line.points]}
                    for line in self.lines
                ],
            }
        )


def score_chart(run: Run) -> Chart | None:
    """Return validation mIoU against the step, with the teacher's final score as a level."""
    lines = []
    for role, records in run.curves.items():
        weights = {record.get("weights", "student") for record in records if record.get("kind") == "evaluate"}
        for kind in sorted(weights):
            points = _points(records, "evaluate", "miou", lambda record, kind=kind: record.get("weights") == kind, 100)
            label = run.label(role)
            if len(weights) > 1:
                label += ", averaged weights" if kind == "ema" else ", raw weights"
            variant = role if kind == "ema" or len(weights) == 1 else f"{role} faint"
            if points:
                lines.append(Line(variant, label, points))
    teacher = run.rows["teacher"].miou if "teacher" in run.rows else None
    levels = {"teacher": 100 * teacher} if teacher is not None else {}
    chart = _chart(
        "Validation mIoU", "%", lines, {run.label(role): (role, y) for role, y in levels.items()}, _last_step(run)
    )
    if chart is not None:
        ends = [f"{line.label} ends at {percent(line.points[-1][1] / 100)} %" for line in lines]
        ends += [f"the teacher scores {y:.2f} %" for y in levels.values()]
        chart.summary = "; ".join(ends)
    return chart


def loss_charts(run: Run) -> list[Chart]:
    """Return one chart for the whole loss and one for each weighted term, distilled and alone together."""
    names: list[str] = []
    for records in run.curves.values():
        for record in records:
            names += [name for name in record.get("terms", {}) if name not in names]
    charts, last = [], _last_step(run)
    for name in ["", *(names if len(names) > 1 else [])]:
        lines = []
        for role, records in run.curves.items():
            points = _terms(records, name) if name else _points(records, "train", "loss")
            if points:
                lines.append(Line(role, run.label(role), points))
        title = TERM_NAMES.get(name, name) if name else "Loss, all terms"
        chart = _chart(title, "", lines, {}, last, smooth=True)
        if chart is not None:
            ends = [f"{line.label} ends at {line.points[-1][1]:.3g}" for line in lines]
            chart.summary = "; ".join(ends)
            charts.append(chart)
    return charts


def _last_step(run: Run) -> float:
    """Return the end of every chart's axis, the same for all so that they can be compared."""
    return float(max((record["step"] for records in run.curves.values() for record in records), default=0) or 1)


def _points(records: Records, kind: str, key: str, wanted: Any = None, scale: float = 1.0) -> list[Point]:
    found = (
        (record["step"], scale * record[key])
        for record in records
        if record.get("kind") == kind and record.get(key) is not None and (wanted is None or wanted(record))
    )
    return _thinned(found)


def _terms(records: Records, name: str) -> list[Point]:
    found = ((record["step"], record["terms"][name]) for record in records if name in record.get("terms", {}))
    return _thinned(found)


def _thinned(points: Iterable[tuple[Any, Any]]) -> list[Point]:
    """Return the finite points; more than ``MOST_POINTS`` are averaged in groups, so that the page stays small."""
    finite = [(float(x), float(y)) for x, y in points if y is not None and math.isfinite(y)]
    group = math.ceil(len(finite) / MOST_POINTS) if finite else 1
    if group == 1:
        return finite
    parts = [finite[start : start + group] for start in range(0, len(finite), group)]
    return [(part[-1][0], sum(y for _, y in part) / len(part)) for part in parts]


def _chart(
    title: str, unit: str, lines: list[Line], levels: dict[str, tuple[str, float]], last: float, smooth: bool = False
) -> Chart | None:
    if not lines:
        return None
    smoothed = {id(line): moving_average(line.points) for line in lines} if smooth else {}
    drawn = [y for line in lines for _, y in smoothed.get(id(line), line.points)]
    if smooth:  # single spikes may leave the plot; the level they rise from may not
        ordered = sorted(y for line in lines for _, y in line.points)
        drawn += ordered[len(ordered) // 50 : len(ordered) - len(ordered) // 50]
    drawn += [y for _, y in levels.values()]
    ticks = nice_ticks(min(drawn), max(drawn))
    x_ticks = [tick for tick in nice_ticks(0, last, 5) if tick <= last]
    x_range, y_range = (0.0, last), (ticks[0], ticks[-1])
    for line in lines:
        line.path = svg_path(line.points, x_range, y_range)
        if smooth and len(line.points) > 10:
            line.smooth = svg_path(smoothed[id(line)], x_range, y_range)
    return Chart(
        title,
        unit,
        lines,
        x_ticks=[Mark(100 * share(tick, x_range), compact(tick)) for tick in x_ticks],
        y_ticks=[Mark(100 * share(tick, y_range), compact(tick)) for tick in ticks],
        levels=[Mark(100 * share(y, y_range), label, role) for label, (role, y) in levels.items()],
        x_range=x_range,
        y_range=y_range,
    )


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return at most about ``most`` round numbers that reach from ``low`` to ``high`` and beyond.

    >>> nice_ticks(0.3, 9.1)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    span = high - low or abs(high) or 1.0
    raw = span / max(most - 1, 1)
    magnitude = 10 ** math.floor(math.log10(raw))
    step = next(factor * magnitude for factor in (1, 2, 2.5, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{index * step:.10g}") for index in range(first, max(last, first + 1) + 1)]


def moving_average(points: Sequence[Point]) -> list[Point]:
    """Return the points' centred mean over about a twelfth of the curve, as many points as there were."""
    reach = max(1, len(points) // 24)
    averaged = []
    for index, (x, _) in enumerate(points):
        near = min(reach, index, len(points) - 1 - index)  # symmetric, so that the ends are not drawn inwards
        part = points[index - near : index + near + 1]
        averaged.append((x, sum(y for _, y in part) / len(part)))
    return averaged


def share(value: float, span: Point) -> float:
    """Return where ``value`` lies in ``span``: 0 at its start, 1 at its end."""
    return (value - span[0]) / ((span[1] - span[0]) or 1.0)


def svg_path(points: Sequence[Point], x_range: Point, y_range: Point) -> str:
    """Return the SVG path through ``points``, in a drawing of ``SPAN`` by ``SPAN``."""
    places = (f"{SPAN * share(x, x_range):.1f},{SPAN * (1 - share(y, y_range)):.1f}" for x, y in points)
    return "M" + "L".join(places)
