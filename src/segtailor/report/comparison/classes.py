"""What each arm gains in each class."""

from __future__ import annotations

from dataclasses import dataclass

from segtailor.report.comparison.heat import Heat, heat, mean_gain
from segtailor.report.comparison.source import Source
from segtailor.results.formatting import percent


@dataclass
class ClassGains:
    """A heat map with a row a class and a column an arm; ``alone`` is the student alone's IoU in percent."""

    classes: list[tuple[str, str]]
    alone: list[tuple[str, str]]
    arms: list[str]
    heat: Heat


def class_gains(source: Source) -> ClassGains | None:
    """Return gains of IoU over the student alone, means over the seeds of both; None without such seeds."""
    arms = [result for result in source.rivals if result.differences]
    if source.baseline is None or not arms:
        return None
    alone = source.comparison.finished(source.baseline)
    gains = []
    for place in range(len(source.comparison.classes)):
        row = []
        for result in arms:
            own = source.comparison.finished(result.arm)
            row.append(mean_gain([(own[seed].iou[place], alone[seed].iou[place]) for seed in result.differences]))
        gains.append(row)
    colors = ["#{:02x}{:02x}{:02x}".format(*color) for color in source.palette()]
    return ClassGains(
        list(zip(source.comparison.classes, colors, strict=True)),
        [_mean([run.iou[place] for run in alone.values()]) for place in range(len(source.comparison.classes))],
        [result.arm for result in arms],
        heat(gains),
    )


def _mean(values: list[float | None]) -> tuple[str, str]:
    """Return the mean as text and as what to sort by."""
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if known else None
    return percent(mean, 1), "" if mean is None else f"{mean:.6g}"
