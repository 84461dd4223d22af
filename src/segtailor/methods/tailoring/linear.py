"""Regression of the teacher's channels by linear mixtures of the student's, from moments alone.

The correlation of a mixture with a channel follows from the covariances of the channels: no map of mixtures is formed,
forward takes one product of the two features, backward another, and nothing is kept but the features. On grids of fewer
cells than the student has channels the maps are the smaller of the two, and are formed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from segtailor.losses import full_precision
from segtailor.methods.tailoring.features_clean import matching


def linear_matching(student: Tensor, teacher: Tensor, valid: Tensor, mixing: Tensor) -> Tensor:
    """Return 1 minus the correlation of ``mixing @ standardised student`` with the teacher.

    ``student`` (B,C,h,w), ``teacher`` (B,D,h,w) without gradient, ``mixing`` (D,C), ``valid`` (B,h*w) weighs the
    positions; the mean over the teacher's channels and over images. The same as
    :func:`~segtailor.methods.tailoring.features_clean.matching` early and without a tailor: constant channels count as
    its standardisation has them, and wholly void images give 0.

    >>> line = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    >>> linear_matching(line, -3 * line, torch.ones(1, 3), torch.ones(1, 1)).round(decimals=3).item()
    2.0
    """
    if student.shape[2] * student.shape[3] <= student.shape[1]:
        return matching(student, teacher, valid, None, mixing.expand(len(student), -1, -1), early=True)
    return from_moments(student, teacher, valid, mixing)


def from_moments(student: Tensor, teacher: Tensor, valid: Tensor, mixing: Tensor, eps: float = 1e-6) -> Tensor:
    """Return :func:`linear_matching` without forming a map."""
    weight = valid / valid.sum(1, keepdim=True).clamp(min=1e-6)
    own, across, guide = _Moments.apply(student.flatten(2), teacher.flatten(2), weight)
    rate = (own.diagonal(dim1=1, dim2=2) + eps).rsqrt()
    scaled = mixing * rate.unsqueeze(1)
    mixed = ((scaled @ own) * scaled).sum(2)
    covariance = (scaled * across.mT).sum(2)
    # Half the squared distance of the standardised channels.
    halves = mixed / (mixed + eps) + guide / (guide + eps)
    term: Tensor = (halves / 2 - covariance * ((mixed + eps) * (guide + eps)).rsqrt()).mean()
    return term


class _Moments(torch.autograd.Function):
    """Weighted covariances of the student's channels, with the teacher's, and the teacher's variances.

    (B,C,n), (B,D,n) and weights (B,n) that add up to 1 give (B,C,C), (B,C,D) and (B,D). The teacher is constant.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(student, teacher, weight)
        column, guide = weight.unsqueeze(2), full_precision(teacher)
        centred, weighted = _centred(student, weight)
        spread = (guide - torch.bmm(guide, column)).square_()
        variances = torch.bmm(spread, column).squeeze(2)
        # The weighted student has mean 0, so the teacher's mean makes no difference to the product.
        return torch.bmm(weighted, centred.mT), torch.bmm(weighted, guide.mT), variances

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, own: Tensor, across: Tensor, _: Tensor) -> tuple[Tensor, None, None]:
        student, teacher, weight = ctx.saved_tensors
        centred, _ = _centred(student, weight)
        slope = torch.baddbmm(torch.bmm(own + own.mT, centred), across, full_precision(teacher))
        slope.sub_(torch.bmm(slope, weight.unsqueeze(2))).mul_(weight.unsqueeze(1))
        return slope.to(student.dtype), None, None


def _centred(student: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the student less its weighted mean, and that times the weights."""
    values = full_precision(student)
    centred = values - torch.bmm(values, weight.unsqueeze(2))
    return centred, centred * weight.unsqueeze(1)
