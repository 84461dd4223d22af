"""What a gain costs: each arm as a dot, its cost to the right and its gain upwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from segtailor.report.comparison.labels import place_labels
from segtailor.report.comparison.source import Source
from segtailor.report.curves import Mark, nice_ticks, share
from segtailor.results.formatting import compact, duration, points
from segtailor.results.leaderboard import ArmResult

# plots in pixels for which labels are placed: names on a wide page, numbers on a narrow one
WIDE, NARROW = (470.0, 320.0), (270.0, 250.0)
LETTER, LINE = 7.2, 15.0


@dataclass
class Dot:
    """One arm; places in percent from the left and from the bottom, label offsets in pixels."""

    number: int
    arm: str
    role: str
    x: float
    y: float
    low: float
    high: float
    wide: tuple[float, float]
    narrow: tuple[float, float]
    cost: str
    gain: str


@dataclass
class Scatter:
    """One plot of gain against one cost."""

    title: str
    axis: str
    dots: list[Dot]
    x_ticks: list[Mark]
    y_ticks: list[Mark]
    zero: float
    summary: str


def cost_plots(source: Source) -> list[Scatter]:
    """Return gain against training time and against peak memory, as far as they were measured."""
    seconds = [result.seconds_alone for result in source.board.arms if result.seconds_alone is not None]
    unit, name = _time_unit(max(seconds, default=0.0))
    plots = [
        _scatter(source, "Training time, each arm trained alone", name, lambda result: result.seconds_alone, unit),
        _scatter(source, "Peak memory of training", "GiB", lambda result: result.peak_bytes, 2.0**30),
    ]
    return [plot for plot in plots if plot is not None]


def _scatter(
    source: Source, title: str, name: str, cost: Callable[[ArmResult], float | None], unit: float
) -> Scatter | None:
    known = [
        (result, value, [100 * gain for gain in result.differences.values()] or [0.0])
        for result in source.board.arms
        if (value := cost(result)) is not None and (result.differences or result.arm == source.baseline)
    ]
    if not any(result.differences for result, _, _ in known):
        return None
    costs = [value / unit for _, value, _ in known]
    margin = 0.05 * (max(costs) - min(costs))
    x_ticks = nice_ticks(max(0.0, min(costs) - margin), max(costs) + margin, 6)
    y_ticks = nice_ticks(
        min(0.0, *(min(gains) for _, _, gains in known)), max(0.0, *(max(gains) for _, _, gains in known))
    )
    x_range, y_range = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])
    dots = []
    for number, ((result, value, gains), place) in enumerate(zip(known, costs, strict=True), start=1):
        mean = sum(gains) / len(gains)
        y, low, high = (100 * share(height, y_range) for height in (mean, min(gains), max(gains)))
        text = duration(value) if name != "GiB" else f"{value / unit:.2f} GiB"
        gain = "the student alone" if result.arm == source.baseline else f"{points(mean / 100)} points"
        dots.append(
            Dot(number, result.arm, source.role(result.arm), 100 * share(place, x_range), y, low, high,
                (0.0, 0.0), (0.0, 0.0), text, gain)
        )  # fmt: skip
    _place(dots)
    return Scatter(
        title, name, dots,
        [Mark(100 * share(tick, x_range), compact(tick)) for tick in x_ticks],
        [Mark(100 * share(tick, y_range), compact(tick)) for tick in y_ticks],
        100 * share(0.0, y_range), "; ".join(f"{dot.arm}: {dot.gain}, {dot.cost}" for dot in dots),
    )  # fmt: skip


def _place(dots: list[Dot]) -> None:
    for width, height in (WIDE, NARROW):
        spots = [(dot.x / 100 * width, (1 - dot.y / 100) * height) for dot in dots]
        if (width, height) == WIDE:
            sizes = [(LETTER * len(dot.arm) + 2, LINE) for dot in dots]
        else:
            sizes = [(LETTER * len(str(dot.number)) + 4, LINE) for dot in dots]
        reaches = [
            (x - 2, (1 - dot.high / 100) * height, x + 2, (1 - dot.low / 100) * height)
            for dot, (x, _) in zip(dots, spots, strict=True)
        ]
        for dot, offset in zip(dots, place_labels(spots, sizes, width, height, reaches), strict=True):
            if (width, height) == WIDE:
                dot.wide = offset
            else:
                dot.narrow = offset


def _time_unit(most: float) -> tuple[float, str]:
    if most < 180:
        return 1.0, "seconds"
    return (60.0, "minutes") if most < 3 * 3600 else (3600.0, "hours")
