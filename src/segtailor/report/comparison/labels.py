"""Labels beside the dots of a scatter plot, where they cover least."""

from __future__ import annotations

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels."""
Point = tuple[float, float]

DOT = 7.0
ROUNDS = 4
# the label's centre, in label widths and heights from the dot's edge: beside first, then above and below
PLACES = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (-1, -1), (1, 1), (-1, 1))
FARTHER = 10.0


def place_labels(
    dots: Sequence[Point], sizes: Sequence[Point], width: float, height: float, others: Sequence[Box] = ()
) -> list[Point]:
    """Return each label's centre relative to its dot, in pixels, for a plot of ``width`` by ``height``.

    Each label in turn, a few times over, takes the place, of 8 near and 8 farther off, that covers least of the dots,
    the other labels and ``others``, leaves the plot least, and is not nearer to another dot.

    >>> place_labels([(50.0, 50.0), (60.0, 50.0)], [(20.0, 10.0)] * 2, 100.0, 100.0)
    [(-17.0, 0.0), (17.0, 0.0)]
    """
    fixed: list[Box] = [(x - DOT, y - DOT, x + DOT, y + DOT) for x, y in dots]
    moves: list[Point] = [(DOT + wide / 2, 0.0) for wide, _ in sizes]
    boxes = [_box(dot, move, size) for dot, move, size in zip(dots, moves, sizes, strict=True)]
    for _ in range(ROUNDS):
        for index, (dot, size) in enumerate(zip(dots, sizes, strict=True)):
            taken = [*fixed, *boxes[:index], *boxes[index + 1 :]]

            def cost(move: Point, dot: Point = dot, size: Point = size, taken: list[Box] = taken) -> float:
                box = _box(dot, move, size)
                outside = size[0] * size[1] - _common(box, (0.0, 0.0, width, height))
                covered = sum(_common(box, other) for other in taken) + sum(_common(box, other) for other in others)
                centre = (dot[0] + move[0], dot[1] + move[1])
                astray = min(math.dist(centre, other) for other in dots) < math.dist(centre, dot)
                return 3 * outside + covered + 50 * astray + max(abs(move[0]) - size[0] / 2, abs(move[1]) - size[1] / 2)

            moves[index] = min(_moves(size), key=cost)
            boxes[index] = _box(dot, moves[index], size)
    return moves


def _moves(size: Point) -> list[Point]:
    return [
        (right * (DOT + farther + size[0] / 2), down * (DOT + farther + size[1] / 2))
        for farther in (0.0, FARTHER)
        for right, down in PLACES
    ]


def _box(dot: Point, move: Point, size: Point) -> Box:
    left, top = dot[0] + move[0] - size[0] / 2, dot[1] + move[1] - size[1] / 2
    return (left, top, left + size[0], top + size[1])


def _common(one: Box, other: Box) -> float:
    """Return the area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)
