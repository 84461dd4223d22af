"""Where labels change, and what lies near it: integer planes, dilated by ORs of shifted copies.

A window that doubles with every OR needs few of them for any radius, and bits stand for classes, so that no
plane a class is needed. All of it is exact, waits for no value of the device and knows no images beyond their edges.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

BITS = 31
"""Classes that one int32 plane holds."""


def label_edges(labels: Tensor) -> Tensor:
    """Mark the pixels of ``labels`` (...,H,W) of which one of the 8 neighbours has another label; uint8 (...,H,W).

    >>> label_edges(torch.tensor([[[0, 0, 0, 1, 1]]])).tolist()
    [[[0, 0, 1, 1, 0]]]
    """
    height, width = labels.shape[-2:]
    edges = torch.zeros(labels.shape, dtype=torch.uint8, device=labels.device)
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = slice(0, height - down), slice(max(0, -right), width - max(0, right))
        there = slice(down, height), slice(max(0, right), width + min(0, right))
        differs = (labels[(..., *here)] != labels[(..., *there)]).view(torch.uint8)
        edges[(..., *here)] |= differs
        edges[(..., *there)] |= differs
    return edges


def dilate_square(plane: Tensor, start: int, stop: int) -> Tensor:
    """Return ``plane`` (...,H,W), already dilated by ``start`` pixels in Chebyshev distance, dilated by ``stop``.

    Equal to ``stop - start`` dilations with a 3 x 3 square.

    >>> dilate_square(torch.tensor([[[0, 0, 4, 0, 0, 1]]]), 0, 1).tolist()
    [[[0, 4, 4, 4, 1, 1]]]
    """
    return _spread(_spread(plane, start, stop, -1), start, stop, -2)


def dilate_disk(plane: Tensor, radius: int) -> Tensor:
    """Return ``plane`` (...,H,W) dilated by ``radius`` pixels in Euclidean distance.

    >>> dilate_disk(torch.tensor([[[0, 0, 0], [0, 4, 0], [0, 0, 1]]]), 1).tolist()
    [[[0, 4, 0], [4, 4, 5], [0, 5, 1]]]
    """
    near = torch.zeros_like(plane)
    reach = 0
    for step in range(radius, -1, -1):  # rows of the disk from the narrow outer ones inwards
        half = math.isqrt(radius * radius - step * step)
        plane, reach = _spread(plane, reach, half, -1), half
        _or_shifted(near, plane, step, -2)
    return near


def class_bits(labels: Tensor, marked: Tensor, first: int) -> Tensor:
    """Return int32 (...,H,W): bit ``label - first`` where ``marked`` is 1, for the BITS classes from ``first`` on.

    >>> class_bits(torch.tensor([[[0, 1, 2]]]), torch.tensor([[[1, 0, 1]]]), 0).tolist()
    [[[1, 0, 4]]]
    """
    shift = labels.int() - first
    held = (shift >= 0) & (shift < BITS) & (marked == 1)
    return held.int() << shift.clamp_(0, BITS - 1)


def has_class(bits: Tensor, labels: Tensor, first: int) -> Tensor:
    """Return int32 (...,H,W): 1 where ``bits`` of :func:`class_bits` holds the pixel's own label.

    >>> has_class(torch.tensor([[[3, 1]]]).int(), torch.tensor([[[1, 1]]]), 0).tolist()
    [[[1, 0]]]
    """
    shift = labels.int() - first
    held = (shift >= 0) & (shift < BITS)
    return (bits >> shift.clamp_(0, BITS - 1)) & held


def _spread(plane: Tensor, start: int, stop: int, dim: int) -> Tensor:
    """Dilate along one dimension from half width ``start`` to ``stop``."""
    while start < stop:
        # no further, or a pixel beyond the image's edge would have to hand on what it has seen
        step = min(start + 1, stop - start)
        wider = plane.clone()
        _or_shifted(wider, plane, step, dim)
        plane, start = wider, start + step
    return plane


def _or_shifted(out: Tensor, plane: Tensor, step: int, dim: int) -> None:
    """Add ``plane``, moved by ``step`` both ways along ``dim``, to ``out`` in place."""
    rest = plane.shape[dim] - step
    if rest > 0:
        out.narrow(dim, step, rest).bitwise_or_(plane.narrow(dim, 0, rest))
        if step:
            out.narrow(dim, 0, rest).bitwise_or_(plane.narrow(dim, step, rest))
