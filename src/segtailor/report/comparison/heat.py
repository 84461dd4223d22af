"""A table of gains whose cells are coloured: blue above the student alone, orange below, each with its number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from segtailor.report.curves import nice_ticks
from segtailor.results.formatting import points


@dataclass
class Cell:
    """One gain: ``text`` in points, ``tone`` gain, loss or empty, ``strength`` from 0 to 1 of the scale."""

    text: str
    tone: str = ""
    strength: float = 0.0
    sort: str = ""


@dataclass
class Heat:
    """Cells by row and column; ``most`` is the scale's end in points."""

    rows: list[list[Cell]]
    most: float


def heat(gains: Sequence[Sequence[float | None]]) -> Heat:
    """Colour fractions by their size; the scale ends at the 98th percentile, so that one cell does not pale the rest.

    >>> heat([[0.02, -0.01, None]]).rows[0][1]
    Cell(text='−1.0', tone='loss', strength=0.5, sort='-0.01')
    """
    sizes = sorted(100 * abs(gain) for row in gains for gain in row if gain is not None)
    top = sizes[math.ceil(0.98 * len(sizes)) - 1] if sizes else 0.0
    most = nice_ticks(0.0, top or 1.0, 4)[-1]
    return Heat([[_cell(gain, most) for gain in row] for row in gains], most)


def mean_gain(pairs: Sequence[tuple[float | None, float | None]]) -> float | None:
    """Return the mean of first minus second over the pairs that have both; None when none has."""
    gains = [first - second for first, second in pairs if first is not None and second is not None]
    return sum(gains) / len(gains) if gains else None


def _cell(gain: float | None, most: float) -> Cell:
    text = points(gain, 1)
    if gain is None or text == "0.0":
        return Cell(text, sort="" if gain is None else f"{gain:.6g}")
    strength = min(1.0, 100 * abs(gain) / most)
    return Cell(text, "gain" if gain > 0 else "loss", round(strength, 3), f"{gain:.6g}")
