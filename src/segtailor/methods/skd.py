"""Structured knowledge distillation, pair-wise part: how alike two places are follows the teacher."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from torch.autograd.function import once_differentiable

from segtailor.losses import Step, recomputed, valid_counts
from segtailor.methods.base import Channels, Method, VariantOptions, option, read_pair, widths_of
from segtailor.models.network import SegOutput

ROWS, ENTRIES = 512, 2**24
"""A block of similarities has at most so many rows, and, over all images, about so many entries."""


class PairwiseOptions(VariantOptions):
    """Options of ``skd``."""

    pairwise: NonNegativeFloat = option(
        10.0, "weight of the term", source="CIRKD benchmark (SKD's code: 1.0, its run script: 0.5)"
    )
    pool: PositiveInt = option(2, "side of the windows of the max pooling that comes first", source="CIRKD benchmark")
    nodes: PositiveInt | None = option(
        None,
        "pool to about this many rows and columns instead, as SKD's own code does",
        source="off in the CIRKD benchmark (SKD's code: 2)",
    )


class _PairDifferences(torch.autograd.Function):
    """Sum over i, j of (s_i.s_j - t_i.t_j)^2, for each image.

    The gradient, 4 sum_j (s_i.s_j - t_i.t_j) s_j, is made on the way: no block is formed twice, none is kept.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor) -> Tensor:
        batch, _, count = student.shape
        rows = max(1, min(ROWS, ENTRIES // (batch * count)))
        total, slope = student.new_zeros(batch), torch.empty_like(student)
        for start in range(0, count, rows):
            block = slice(start, start + rows)
            difference = torch.bmm(student[:, :, block].mT, student)
            difference.sub_(torch.bmm(teacher[:, :, block].mT, teacher))
            slope[:, :, block] = torch.bmm(student, difference.mT).mul_(4)
            total += difference.square_().sum((1, 2))
        ctx.save_for_backward(slope)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return slope * gradient.view(-1, 1, 1), None


def pair_differences(student: Tensor, teacher: Tensor) -> Tensor:
    """Return, for each image, the sum over pairs (i, j) of the squared difference of dot products: (B,).

    ``student`` (B,C,N) and ``teacher`` (B,D,N) hold a vector for each of N places. Blocks of rows are worked on in
    turn, so memory grows with N, not N x N; the differences are formed before they are squared, so nothing cancels.

    >>> pair_differences(torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), torch.tensor([[[1.0, 1.0]]])).item()
    2.0
    """
    totals: Tensor = _PairDifferences.apply(student, teacher.detach())
    return totals


def pooled_units(feature: Tensor, inside: Tensor | None, window: tuple[int, int], eps: float) -> Tensor:
    """Max-pool ``feature`` (B,C,h,w) and bring every pooled vector to norm 1: (B,C,N).

    Cells where ``inside`` (B,1,h,w) is False do not enter; windows without any other give zeros.
    """
    if inside is not None:
        feature = feature.masked_fill(~inside, torch.finfo(feature.dtype).min)
    pooled = F.max_pool2d(feature, window, window, ceil_mode=True)
    if inside is not None:
        pooled = torch.where(pooled_inside(inside, window), pooled, 0)
    return F.normalize(pooled.flatten(2), dim=1, eps=eps)


def pooled_inside(inside: Tensor, window: tuple[int, int]) -> Tensor:
    """Return which windows have any cell inside, for ``inside`` (B,1,h,w)."""
    return F.max_pool2d(inside.float(), window, window, ceil_mode=True) > 0


class Pairwise(Method[PairwiseOptions]):
    """Squared error between cosine similarities of all pairs of places in an image (Liu et al., CVPR 2019).

    Term ``pairwise``; the other parts of SKD are the methods ``kd`` and ``adversarial``. ``published`` reads the
    feature after dropout and averages over all pairs; ``clean`` reads it before dropout, keeps void out of the pooling,
    and averages over the pairs of windows that have any valid label pixel. Neither holds all pairs at once.

        pairwise = mean_ij (g_s(i).g_s(j) - g_t(i).g_t(j))^2, g = unit vectors of maxpool(f)

    - Published figures: Cityscapes val, DeepLabV3-R18, with kd and adversarial: 75.42, alone 74.21 (CIRKD benchmark)
    - Limitations: time grows with the square of the number of places, so large grids (SegFormer's stride 4) want a
      larger `pool`; similarities do not change when a feature is rotated, so alike networks may still disagree on
      classes
    - Source: Liu et al., CVPR 2019 (arXiv 1903.04197), as run in the CIRKD benchmark
    """

    name = "skd"
    summary = "pair-wise: cosine similarities between all places of a pooled feature"
    channel_alignment = "nothing to align: similarities have no channels"
    inputs = frozenset()

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        self.labels = "ignore_mask" if options.clean and options.pairwise else "unused"
        if options.pairwise:
            widths_of(student, teacher)
            self.inputs = frozenset({options.feature_tap, "feature"})

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return ``{"pairwise": ...}``, or nothing where its weight is 0."""
        options = self.options
        if not options.pairwise:
            return {}
        own, guide = read_pair(student, teacher, options.feature_tap)
        size = own.shape[-2:]
        window = (options.pool, options.pool)
        if options.nodes is not None:
            window = (max(1, size[0] // options.nodes), max(1, size[1] // options.nodes))
        if not options.clean:
            units = [pooled_units(feature, None, window, 1e-12) for feature in (own, guide)]
            pairs: Tensor | int = units[0].shape[2] ** 2
        else:
            inside = (valid_counts(target, size) > 0).view(-1, 1, *size)
            # A larger floor, so that a silent place does not send back a gradient of 1e12.
            units = [recomputed(pooled_units, feature, inside, window, 1e-4) for feature in (own, guide)]
            pairs = pooled_inside(inside, window).sum((1, 2, 3)).float().square().clamp(min=1)
        return {"pairwise": options.pairwise * (pair_differences(*units) / pairs).mean()}
