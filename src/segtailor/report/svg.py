"""Plots for the pages: ticks, lines with bands over seeds, and labelled dots, as SVG paths that stretch with the page.

Places along an axis are in percent; the templates draw what is computed here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from segtailor.results.formatting import compact, percent

SPAN = 1000.0  # the drawing's own width and height; the page stretches it
SMOOTHED = 10  # curves of more points than this are smoothed where smoothing is asked for

Range = tuple[float, float]
Point = tuple[float, float, float, float]
"""Where, mean, lowest, highest; the last three are equal for a single run."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""


@dataclass
class Mark:
    """A tick, or a level drawn across the plot; ``at`` is in percent from the left or from the bottom."""

    at: float
    label: str
    role: str = ""


@dataclass
class Line:
    """One curve. ``role`` is its color class; :func:`draw` fills in the paths of mean, band, and points as logged."""

    name: str
    label: str
    role: str
    points: list[Point]
    path: str = ""
    band: str = ""
    raw: str = ""


@dataclass
class Plot:
    """One plot. ``front`` names the two lines shown in front of the others; empty where all are alike.

    ``names`` are the labels of places on the axis that are no training steps.
    """

    title: str
    unit: str
    lines: list[Line]
    summary: str = ""
    axis: str = "training step"
    front: tuple[str, ...] = ()
    names: dict[float, str] = field(default_factory=dict)
    x_ticks: list[Mark] = field(default_factory=list)
    y_ticks: list[Mark] = field(default_factory=list)
    levels: list[Mark] = field(default_factory=list)
    x_range: Range = (0.0, 1.0)

    @property
    def data(self) -> str:
        """The points as JSON, for the readout under the pointer."""
        lines = [{"label": line.label, "points": [[x, *_rounded(ys)] for x, *ys in line.points]} for line in self.lines]
        names = {f"{x:g}": name for x, name in self.names.items()}
        return json.dumps({"x": self.x_range, "lines": lines, **({"names": names} if names else {})})


def draw(
    plot: Plot,
    x_range: Range,
    levels: Sequence[tuple[str, str, float]] = (),
    y_range: Range | None = None,
    smooth: bool = False,
    raw: bool = False,
    steps: int = 5,
) -> Plot:
    """Fill in paths, ticks and ``levels`` (role, label, height); several plots share axes by the same ranges.

    ``smooth`` draws moving averages, ``raw`` the points as they are, too, thin behind them. The axis has about
    ``steps`` ticks.
    """
    drawn = [moving_average(line.points) if smooth else line.points for line in plot.lines]
    heights = [at for _, _, at in levels]
    if raw:  # single spikes may leave the plot; the level they rise from may not
        ordered = sorted(mean for line in plot.lines for _, mean, _, _ in line.points)
        heights += ordered[len(ordered) // 50 : len(ordered) - len(ordered) // 50]
    ticks = nice_ticks(*(y_range or extent(drawn, heights)))
    y_range, plot.x_range = (ticks[0], ticks[-1]), x_range
    for line, points in zip(plot.lines, drawn, strict=True):
        line.path = svg_path([(x, mean) for x, mean, _, _ in points], x_range, y_range)
        line.path += "h0" if len(points) == 1 else ""  # a line of no length has a round end: a dot
        low, high = [(x, y) for x, _, y, _ in points], [(x, y) for x, _, _, y in points]
        if low != high and len(points) > 1:
            line.band = svg_path(low, x_range, y_range) + "L" + svg_path(high[::-1], x_range, y_range)[1:] + "Z"
        if raw and points != line.points:
            line.raw = svg_path([(x, mean) for x, mean, _, _ in line.points], x_range, y_range)
    plot.y_ticks = marks(ticks, y_range)
    plot.levels = [Mark(100 * share(at, y_range), label, role) for role, label, at in levels]
    if plot.names:
        plot.x_ticks = [Mark(100 * share(x, x_range), name) for x, name in plot.names.items()]
    else:
        plot.x_ticks = marks([tick for tick in nice_ticks(*x_range, steps) if tick <= x_range[1]], x_range)
    return plot


@dataclass
class Dot:
    """One dot of a scatter plot; places in percent, offsets of its label in pixels, its number in a narrow plot's."""

    number: int
    name: str
    role: str
    x: float
    y: float
    low: float
    high: float
    cost: str
    gain: str
    wide: Range = (0.0, 0.0)
    narrow: Range = (0.0, 0.0)


# the size in pixels for which labels are placed: names on a wide page, numbers on a narrow one
WIDE, NARROW = (470.0, 320.0), (270.0, 250.0)
LETTER, HEIGHT, RADIUS = 7.2, 15.0, 7.0
AROUND = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))


def label_dots(dots: Sequence[Dot]) -> None:
    """Place each dot's name and number where they cover least."""
    for which, (width, height) in (("wide", WIDE), ("narrow", NARROW)):
        names = [dot.name if which == "wide" else str(dot.number) for dot in dots]
        sizes = [(LETTER * len(name) + 3, HEIGHT) for name in names]
        spots = [(dot.x / 100 * width, (1 - dot.y / 100) * height) for dot in dots]
        lines = [
            (x - 2, (1 - dot.high / 100) * height, x + 2, (1 - dot.low / 100) * height)
            for dot, (x, _) in zip(dots, spots, strict=True)
        ]
        for dot, offset in zip(dots, place_labels(spots, sizes, width, height, lines), strict=True):
            setattr(dot, which, offset)


def place_labels(
    dots: Sequence[Range], sizes: Sequence[Range], width: float, height: float, others: Sequence[Box] = ()
) -> list[Range]:
    """Return each label's center relative to its dot, in pixels, for a plot of ``width`` by ``height``.

    One label after another takes the place around its dot, near or farther off, that covers least of the dots, the
    labels placed before and ``others``, and that leaves the plot least.

    >>> place_labels([(50.0, 50.0), (60.0, 50.0)], [(20.0, 10.0)] * 2, 100.0, 100.0)
    [(-17.0, 0.0), (17.0, 0.0)]
    """
    taken: list[Box] = [(x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS) for x, y in dots]
    moves: list[Range] = []
    for (x, y), (wide, high) in zip(dots, sizes, strict=True):
        places = []
        for gap, (right, down) in product((RADIUS, RADIUS + 10, RADIUS + 20), AROUND):
            move = (right * (gap + wide / 2), down * (gap + high / 2))
            left, top = x + move[0] - wide / 2, y + move[1] - high / 2
            box = (left, top, left + wide, top + high)
            outside = wide * high - _common(box, (0.0, 0.0, width, height))
            cost = 3 * outside + 5 * sum(_common(box, each) for each in taken) + gap
            places.append((cost + sum(_common(box, each) for each in others), move, box))
        _, move, box = min(places, key=lambda place: place[0])
        moves.append(move)
        taken.append(box)
    return moves


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


def marks(ticks: Sequence[float], span: Range) -> list[Mark]:
    """Return the ticks with their places in ``span`` and their labels."""
    return [Mark(100 * share(tick, span), compact(tick)) for tick in ticks]


def extent(lines: Sequence[Sequence[Point]], levels: Sequence[float] = ()) -> Range:
    """Return the lowest and the highest value that a plot of ``lines`` and ``levels`` must hold."""
    low = [point[2] for points in lines for point in points]
    high = [point[3] for points in lines for point in points]
    return min([*low, *levels]), max([*high, *levels])


def share(value: float, span: Range) -> float:
    """Return the place of ``value`` in ``span``: 0 at its start, 1 at its end."""
    return (value - span[0]) / ((span[1] - span[0]) or 1.0)


def svg_path(points: Sequence[Range], x_range: Range, y_range: Range) -> str:
    """Return the SVG path through ``points``, in a drawing of ``SPAN`` by ``SPAN``."""
    places = (f"{SPAN * share(x, x_range):.1f},{SPAN * (1 - share(y, y_range)):.1f}" for x, y in points)
    return "M" + "L".join(places)


def moving_average(points: Sequence[Point]) -> list[Point]:
    """Return the points' centered mean over about a twelfth of the curve; short curves stay as they are."""
    if len(points) <= SMOOTHED:
        return list(points)
    reach = max(1, len(points) // 24)
    averaged = []
    for index, point in enumerate(points):
        near = min(reach, index, len(points) - 1 - index)  # symmetric, so that the ends are not drawn inwards
        averaged.append(_mean(point[0], points[index - near : index + near + 1]))
    return averaged


def thinned(points: Sequence[Point], most: int = 300) -> list[Point]:
    """Average neighbors so that at most ``most`` points remain and the page stays small.

    >>> thinned([(1.0, 2.0, 0.0, 4.0), (2.0, 4.0, 2.0, 6.0)], most=1)
    [(2.0, 3.0, 1.0, 5.0)]
    """
    group = math.ceil(len(points) / most) if points else 1
    parts = [points[start : start + group] for start in range(0, len(points), group)]
    return [_mean(part[-1][0], part) for part in parts]


def over_seeds(curves: Mapping[int, Sequence[Range]]) -> list[Point]:
    """Return mean, lowest and highest where every seed has a value.

    >>> over_seeds({0: [(10, 0.5), (20, 0.75)], 1: [(10, 0.25)]})
    [(10, 0.375, 0.25, 0.5)]
    """
    if not curves:
        return []
    by_step = [dict(curve) for curve in curves.values()]
    common = sorted(set(by_step[0]).intersection(*by_step[1:]))
    columns = [(step, [curve[step] for curve in by_step]) for step in common]
    return [(step, sum(values) / len(values), min(values), max(values)) for step, values in columns]


def score_table(curves: Mapping[str, Sequence[Point]]) -> dict[str, Any]:
    """Return scores in percent by step, one column a curve: a chart as text."""
    columns = [{step: mean for step, mean, *_ in points} for points in curves.values()]
    rows = [
        (f"{step:,.0f}", [percent(column[step] / 100 if step in column else None) for column in columns])
        for step in sorted(set().union(*columns))
    ]
    return {"columns": list(curves), "rows": rows}


def _mean(x: float, points: Sequence[Point]) -> Point:
    mean, low, high = (sum(point[place] for point in points) / len(points) for place in (1, 2, 3))
    return (x, mean, low, high)


def _rounded(values: Sequence[float]) -> list[float]:
    rounded = [float(f"{value:.4g}") for value in values]
    return rounded[:1] if len(set(rounded)) == 1 else rounded


def _common(one: Box, other: Box) -> float:
    """Return the area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
