"""A plot of arms: lines with bands over seeds, ready for the template and for the readout under the pointer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from segtailor.report.comparison.series import Quad
from segtailor.report.curves import Mark, Point, moving_average, nice_ticks, share, svg_path
from segtailor.results.formatting import compact


@dataclass
class Curve:
    """One arm's line; ``role`` is its colour class. ``path`` and ``band`` are filled by :func:`draw`."""

    arm: str
    label: str
    role: str
    points: list[Quad]
    path: str = ""
    band: str = ""


@dataclass
class Plot:
    """One plot. ``front`` names the two arms shown in front of the others; empty where all are alike.

    ``names`` are the labels of places on the axis that are no training steps.
    """

    title: str
    unit: str
    axis: str
    curves: list[Curve]
    summary: str
    front: tuple[str, ...] = ()
    names: dict[float, str] = field(default_factory=dict)
    x_ticks: list[Mark] = field(default_factory=list)
    y_ticks: list[Mark] = field(default_factory=list)
    levels: list[Mark] = field(default_factory=list)
    x_range: Point = (0.0, 1.0)

    @property
    def data(self) -> str:
        """The points as JSON, for the readout."""
        lines = [
            {"label": curve.label, "points": [[x, *(float(f"{y:.4g}") for y in ys)] for x, *ys in curve.points]}
            for curve in self.curves
        ]
        names = {f"{x:g}": name for x, name in self.names.items()}
        return json.dumps({"x": self.x_range, "lines": lines, **({"names": names} if names else {})})

    @property
    def front_data(self) -> str:
        """The labels of the arms in front as JSON."""
        return json.dumps(self.front)


def draw(
    plot: Plot,
    x_range: Point,
    levels: Sequence[tuple[str, str, float]] = (),
    y_range: Point | None = None,
    smooth: bool = False,
    steps: int = 5,
) -> Plot:
    """Fill in paths, ticks and ``levels`` (role, label, height); several plots share axes by the same ranges.

    The axis has about ``steps`` ticks.
    """
    drawn = {id(curve): _smoothed(curve.points) if smooth else curve.points for curve in plot.curves}
    if y_range is None:
        y_range = height(list(drawn.values()), [at for _, _, at in levels])
    ticks = nice_ticks(*y_range)
    span = (ticks[0], ticks[-1])
    plot.x_range = x_range
    for curve in plot.curves:
        points = drawn[id(curve)]
        curve.path = svg_path([(x, mean) for x, mean, _, _ in points], x_range, span)
        curve.path += "h0" if len(points) == 1 else ""  # a line of no length has a round end: a dot
        low, high = [(x, y) for x, _, y, _ in points], [(x, y) for x, _, _, y in points]
        if low != high and len(points) > 1:
            curve.band = svg_path(low, x_range, span) + "L" + svg_path(high[::-1], x_range, span)[1:] + "Z"
    plot.y_ticks = [Mark(100 * share(tick, span), compact(tick)) for tick in ticks]
    plot.levels = [Mark(100 * share(at, span), label, role) for role, label, at in levels]
    if plot.names:
        plot.x_ticks = [Mark(100 * share(x, x_range), name) for x, name in plot.names.items()]
    else:
        ticks = [tick for tick in nice_ticks(*x_range, steps) if tick <= x_range[1]]
        plot.x_ticks = [Mark(100 * share(tick, x_range), compact(tick)) for tick in ticks]
    return plot


def height(curves: Sequence[Sequence[Quad]], levels: Sequence[float] = ()) -> Point:
    """Return the lowest and the highest value that a plot of ``curves`` and ``levels`` must hold."""
    low = [point[2] for points in curves for point in points]
    high = [point[3] for points in curves for point in points]
    return min([*low, *levels]), max([*high, *levels])


def _smoothed(points: list[Quad]) -> list[Quad]:
    if len(points) <= 10:
        return points
    columns = [moving_average([(point[0], point[place]) for point in points]) for place in (1, 2, 3)]
    return [(x, mean, low, high) for (x, mean), (_, low), (_, high) in zip(*columns, strict=True)]
