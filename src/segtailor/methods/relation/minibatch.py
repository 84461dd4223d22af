"""How alike the pixels of a batch are: each pixel as an anchor, each image's pixels as its keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segtailor.methods.relation.divergence import directions, relation_kl


def minibatch_relations(
    student: Tensor, teacher: Tensor, counts: Tensor | None, temperature: float, within_image: bool = True
) -> Tensor:
    """Sum over pixels of the mean over images of KL(teacher || student) between softmaxes over an image's pixels.

    ``student`` (B,C,h,w), ``teacher`` (B,C',h,w); ``counts`` (B,h*w) says how many label pixels each position stands
    for, as an anchor and as a key (1 where None). The mean is over the images that have any, an anchor's own among
    them only ``within_image``; without a pair the value is 0.
    """
    anchors, guides = directions(student), directions(teacher)
    images = len(anchors)
    weight = anchors.new_ones(anchors.shape[:2]) if counts is None else counts.to(anchors.dtype)
    present = (weight.sum(1) > 0).to(anchors.dtype)
    pairs = torch.ones(images, images, dtype=anchors.dtype, device=anchors.device)
    if not within_image:
        pairs.fill_diagonal_(0)
    share = pairs / (pairs @ present).clamp(min=1).unsqueeze(1)
    total: Tensor = relation_kl(
        (anchors.flatten(0, 1), anchors),
        (guides.flatten(0, 1), guides),
        (weight.unsqueeze(2) * share.unsqueeze(1)).flatten(0, 1),
        temperature,
        counts,
    )
    return total


def pooled(maps: Tensor, counts: Tensor | None, side: int) -> Tensor:
    """Average ``maps`` (B,C,h,w) over squares of ``side``, each position as often as ``counts`` (B,h*w) says.

    >>> pooled(torch.tensor([[[[1.0, 4.0, 7.0]]]]), torch.tensor([[1.0, 2.0, 0.0]]), 2).tolist()
    [[[[3.0, 0.0]]]]
    """
    if counts is None:
        return F.avg_pool2d(maps, side, ceil_mode=True)
    weight = counts.view(len(maps), 1, *maps.shape[-2:]).to(maps.dtype)
    return _sums(maps * weight, side) / _sums(weight, side).clamp(min=1)


def pooled_counts(counts: Tensor, size: tuple[int, int], side: int) -> Tensor:
    """Sum ``counts`` (B,h*w) over squares of ``side``: (B, squares)."""
    return _sums(counts.view(len(counts), 1, *size), side).flatten(1)


def _sums(maps: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(maps, side, ceil_mode=True, divisor_override=1)
