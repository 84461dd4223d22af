"""Counts of label pixels: per cell of the logit grid, and over the global batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

_targets: list[Sequence[Tensor]] = []
"""The targets of the step under way, innermost last; a plain list, since backward threads must see it too."""


@contextmanager
def global_batch(targets: Sequence[Tensor]) -> Iterator[None]:
    """Declare this rank's targets of the whole step, one tensor for each micro-batch.

    Inside, :func:`global_count` divides by counts over all micro-batches and ranks. The loop wraps each step in it, and
    the terms of a method that is handed other targets than the task in another one.

    >>> halves = torch.tensor([[[0, 1]]]), torch.tensor([[[0, 255]]])
    >>> with global_batch(halves):
    ...     global_count(lambda labels: (labels != 255).sum(), halves[0]).item()
    1.5
    """
    _targets.append(targets)
    try:
        yield
    finally:
        _targets.pop()


def declared_targets() -> Sequence[Tensor] | None:
    """Return what the innermost :func:`global_batch` was given; None outside."""
    return _targets[-1] if _targets else None


def global_count(count: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
    """Return what a sum over this micro-batch must be divided by to become a mean over the global batch.

    ``count`` maps a target (B,H,W) to the number of things summed over. Averaging ``sum / global_count`` over
    micro-batches and ranks gives the sum over all divided by the count over all. Outside :func:`global_batch` it is
    ``count(target)``. The total is at least 1, so wholly void batches divide by 1. Without a process group nothing is
    communicated; every rank must call it equally often.

    >>> target = torch.tensor([[[0, 1, 255]]])
    >>> valid = lambda labels: (labels != 255).sum()
    >>> global_count(valid, target).item()
    2.0
    >>> with global_batch([target, torch.tensor([[[0, 255, 255]]])]):
    ...     global_count(valid, target).item()
    1.5
    """
    if not _targets:
        return count(target).float().clamp(min=1)
    total = torch.stack([count(item).float() for item in _targets[-1]]).sum()
    shares = len(_targets[-1])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
        shares *= dist.get_world_size()
    return total.clamp(min=1) / shares


def class_counts(target: Tensor, num_classes: int, size: tuple[int, int]) -> Tensor:
    """Count the label pixels of each class in each cell of a coarser (or equal) grid.

    ``target`` (B,H,W) integer; label pixel (i, j) belongs to cell (floor(i*h/H), floor(j*w/W)), as in nearest
    upsampling. Returns int32 (B, num_classes + 1, h*w); the last slot holds void, which is every value from
    ``num_classes`` up.

    >>> class_counts(torch.tensor([[[0, 0, 1, 255]]]), 2, (1, 2)).tolist()
    [[[2, 0], [0, 1], [0, 1]]]
    """
    batch, height, width = target.shape
    rows, columns = size
    row = torch.arange(height, device=target.device) * rows // height
    column = torch.arange(width, device=target.device) * columns // width
    cell = row.unsqueeze(1) * columns + column
    index = target.clamp(max=num_classes).to(torch.int64).mul_(rows * columns).add_(cell)
    counts = torch.zeros(batch, (num_classes + 1) * rows * columns, dtype=torch.int32, device=target.device)
    one = torch.ones((), dtype=torch.int32, device=target.device)
    counts.scatter_add_(1, index.flatten(1), one.expand(batch, height * width))
    return counts.view(batch, num_classes + 1, rows * columns)


def valid_counts(target: Tensor, size: tuple[int, int], ignore: int = 255) -> Tensor:
    """Count the label pixels that are not ``ignore`` in each cell: float32 (B, h*w), see :func:`class_counts`.

    >>> valid_counts(torch.tensor([[[0, 7, 1, 255]]]), (1, 2)).tolist()
    [[2.0, 1.0]]
    """
    return class_counts((target == ignore).to(torch.uint8), 1, size)[:, 0].float()


def pixel_mean(cells: Tensor, target: Tensor | None, ignore: int = 255) -> Tensor:
    """Average ``cells`` (B,h,w) over the valid label pixels of the global batch; equally over all cells without labels.

    Each cell weighs as many pixels as it has that are not ``ignore``.

    >>> pixel_mean(torch.tensor([[[1.0, 5.0]]]), torch.tensor([[[0, 0, 1, 255]]])).item()
    2.3333332538604736
    """
    if target is None:
        return cells.mean()
    weight = valid_counts(target, (cells.shape[-2], cells.shape[-1]), ignore)
    return (cells.flatten(1) * weight).sum() / global_count(lambda labels: (labels != ignore).sum(), target)


def nearest_labels(target: Tensor, size: tuple[int, int]) -> Tensor:
    """Return ``target`` (B,H,W) on a coarser (or equal) grid: each cell takes its top-left pixel; int64 (B,h,w).

    >>> nearest_labels(torch.tensor([[[3, 0, 255, 1]]]), (1, 2)).tolist()
    [[[3, 255]]]
    """
    height, width = target.shape[-2:]
    row = torch.arange(size[0], device=target.device) * height // size[0]
    column = torch.arange(size[1], device=target.device) * width // size[1]
    return target[:, row.unsqueeze(1), column].long()
