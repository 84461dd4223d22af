"""Filling the shapes of COCO's annotations: polygons and run lengths, as numbers or as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtailor.files import Size


def paint_shape(target: NDArray[np.uint8], shape: Any, label: int) -> None:
    """Set ``target`` (H,W) to ``label`` within ``shape``: a list of polygons, or the mapping of a run-length mask.

    A pixel belongs to a polygon when its centre does (even-odd rule). Raises ``ValueError`` for what is neither.
    """
    if isinstance(shape, dict):
        target[decode_runs(shape, (target.shape[0], target.shape[1]))] = label
        return
    for polygon in shape:
        _paint_polygon(target, _points(polygon), label)


def shape_area(shape: Any) -> float:
    """Return the pixels that ``shape`` covers, overlaps of its polygons counted twice.

    >>> shape_area([[0, 0, 4, 0, 4, 2, 0, 2]])
    8.0
    """
    if isinstance(shape, dict):
        return float(_counts(shape)[1::2].sum())
    area = 0.0
    for polygon in shape:
        x, y = _points(polygon).T
        area += abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2
    return area


def decode_runs(shape: dict[str, Any], size: Size) -> NDArray[np.bool_]:
    """Return the mask (H,W) of run lengths, which go down the columns and begin with zeros.

    ``shape["counts"]`` are numbers or COCO's text. Raises ``ValueError`` when they do not fill ``size``.
    """
    if list(shape.get("size", size)) != list(size):
        raise ValueError(f"run lengths of {shape['size']} in an image of {list(size)}")
    counts = _counts(shape)
    if counts.min(initial=0) < 0 or counts.sum() != size[0] * size[1]:
        raise ValueError(f"run lengths fill {counts.sum()} of {size[0] * size[1]} pixels")
    inside = np.arange(len(counts)) % 2 == 1
    return np.repeat(inside, counts).reshape(size[1], size[0]).T


def decode_text(text: str) -> NDArray[np.int64]:
    """Return the run lengths that COCO's compressed ``text`` stands for.

    A character holds five bits and a sixth that says whether more follow, lowest first, the last with a sign; from the
    fourth number on, differences to the number two before are stored.

    >>> decode_text("61X13mN000`0").tolist()
    [6, 1, 40, 4, 5, 4, 5, 4, 21]
    """
    codes = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        raise ValueError("run lengths of unknown characters")
    last = codes & 32 == 0
    starts = np.flatnonzero(np.concatenate(([True], last[:-1])))
    lengths = np.diff(np.append(starts, len(codes)))
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    if lengths.max() > 12:
        raise ValueError("a run length of too many characters")
    numbers = np.add.reduceat((codes & 31) << (5 * place), starts)
    numbers -= np.where(codes[last] & 16, np.int64(1) << (5 * lengths), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers


def _counts(shape: dict[str, Any]) -> NDArray[np.int64]:
    counts = shape.get("counts")
    if isinstance(counts, str):
        return decode_text(counts)
    if not isinstance(counts, list):
        raise ValueError("run lengths without counts")
    return np.array(counts, np.int64)


def _points(polygon: Sequence[float]) -> NDArray[np.float64]:
    points = np.array(polygon, np.float64)
    if points.ndim != 1 or len(points) % 2 or not np.isfinite(points).all():
        raise ValueError(f"a polygon of {len(points)} numbers; expected x, y, x, y, ...")
    return points.reshape(-1, 2)


def _paint_polygon(target: NDArray[np.uint8], points: NDArray[np.float64], label: int) -> None:
    height, width = target.shape
    (x, y), (next_x, next_y) = points.T, np.roll(points, -1, axis=0).T
    # the rows whose centres an edge crosses, its lower end not counted, so that a corner counts once
    first = np.clip(np.ceil(np.minimum(y, next_y) - 0.5), 0, height).astype(np.int64)
    counts = np.clip(np.ceil(np.maximum(y, next_y) - 0.5), 0, height).astype(np.int64) - first
    if not counts.sum():
        return
    edge = np.repeat(np.arange(len(points)), counts)
    row = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    slope = (next_x - x)[edge] / (next_y - y)[edge]
    crossing = x[edge] + (row + 0.5 - y[edge]) * slope
    column = np.clip(np.ceil(crossing - 0.5), 0, width).astype(np.int64)
    top, left = row.min(), column.min()
    rows, columns = int(row.max() - top) + 1, int(column.max() - left)
    # from each crossing on, inside and outside change places
    changes = np.bincount((row - top) * (columns + 1) + column - left, minlength=rows * (columns + 1))
    inside = np.cumsum(changes.reshape(rows, columns + 1)[:, :columns].astype(np.uint8), axis=1, dtype=np.uint8) & 1
    target[top : top + rows, left : left + columns][inside == 1] = label
