"""An arm's curves over its seeds: the mean, and the band from the lowest to the highest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from segtailor.report.comparison.source import Source
from segtailor.report.curves import MOST_POINTS, Point
from segtailor.report.read import Records

Quad = tuple[float, float, float, float]
"""Where, mean, lowest, highest."""


@dataclass(frozen=True)
class Series:
    """One figure of one arm along the steps, over ``seeds``."""

    arm: str
    seeds: tuple[int, ...]
    points: list[Quad]


def arm_series(source: Source, arm: str, value: Callable[[Records], list[Point]]) -> Series | None:
    """Return what ``value`` finds in the arm's finished runs; None when it finds nothing.

    An arm without a finished run is shown by the one that came furthest: a mean over runs of different length would
    jump where one ends.
    """
    found = {seed: value(records) for seed, records in source.records[arm].items()}
    found = {seed: points for seed, points in found.items() if points}
    finished = {seed: found[seed] for seed in source.comparison.finished(arm) if seed in found}
    if not finished and found:
        furthest = max(found, key=lambda seed: found[seed][-1][0])
        finished = {furthest: found[furthest]}
    points = over_seeds(finished)
    return Series(arm, tuple(finished), thinned(points)) if points else None


def over_seeds(curves: Mapping[int, Sequence[Point]]) -> list[Quad]:
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


def thinned(points: Sequence[Quad], most: int = MOST_POINTS) -> list[Quad]:
    """Average neighbours so that at most ``most`` points stay.

    >>> thinned([(1.0, 2.0, 0.0, 4.0), (2.0, 4.0, 2.0, 6.0)], most=1)
    [(2.0, 3.0, 1.0, 5.0)]
    """
    group = math.ceil(len(points) / most) if points else 1
    parts = [points[start : start + group] for start in range(0, len(points), group)]
    return [
        (part[-1][0], *(sum(point[place] for point in part) / len(part) for place in (1, 2, 3)))  # type: ignore[misc]
        for part in parts
    ]


def scores(records: Records) -> list[Point]:
    """Return validation mIoU in percent by step; of the averaged weights where a run keeps them."""
    lines = [record for record in records if record["kind"] == "evaluate" and _finite(record.get("miou"))]
    averaged = [record for record in lines if record.get("weights") == "ema"]
    return [(record["step"], 100 * record["miou"]) for record in averaged or lines]


def term(name: str) -> Callable[[Records], list[Point]]:
    """Return the function that finds the term ``name`` by step."""

    def found(records: Records) -> list[Point]:
        values: list[tuple[float, Any]] = [(line["step"], (line.get("terms") or {}).get(name)) for line in records]
        return [(step, value) for step, value in values if _finite(value)]

    return found


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and math.isfinite(value)
