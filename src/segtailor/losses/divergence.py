"""Cross-entropy and the two Kullback-Leibler divergences: over space per channel, and over classes per pixel."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from segtailor.losses.counts import global_count, pixel_mean
from segtailor.losses.maps import full_precision

OUTSIDE = -1e30
"""Stands for log 0: exp of it is 0, and unlike -inf it gives no NaN when a whole row is empty."""


def cross_entropy(logits: Tensor, target: Tensor, ignore: int = 255) -> Tensor:
    """Cross-entropy at label size, averaged over the valid pixels of the global batch.

    ``logits`` (B,K,H,W), ``target`` (B,H,W) integer. A wholly void batch gives 0 with zero gradients.

    >>> cross_entropy(torch.tensor([[[[0.0]], [[0.0]]]]), torch.tensor([[[1]]])).item()
    0.6931471824645996
    """
    total = F.cross_entropy(full_precision(logits), target.long(), ignore_index=ignore, reduction="sum")
    return total / global_count(lambda labels: (labels != ignore).sum(), target)


def _log_probabilities(values: Tensor, log_multiplicity: Tensor | None, temperature: float) -> Tensor:
    """Log-softmax over the last axis of ``values / temperature``, atoms repeated as their multiplicity says."""
    scaled = full_precision(values) / temperature
    if log_multiplicity is not None:
        scaled = scaled.add_(log_multiplicity)
    return F.log_softmax(scaled, dim=-1)


class _ChannelDivergence(torch.autograd.Function):
    """KL(teacher || student) of each row; backward recomputes the softmaxes, so that only the inputs stay in memory."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, log_multiplicity: Tensor | None, temperature: float
    ) -> Tensor:
        ctx.save_for_backward(student, teacher, log_multiplicity)
        ctx.temperature = temperature
        log_teacher = _log_probabilities(teacher, log_multiplicity, temperature)
        difference = _log_probabilities(student, log_multiplicity, temperature).neg_().add_(log_teacher)
        return log_teacher.exp_().mul_(difference).sum(-1).mul_(temperature**2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        student, teacher, log_multiplicity = ctx.saved_tensors
        result = _log_probabilities(student, log_multiplicity, ctx.temperature).exp_()
        result.sub_(_log_probabilities(teacher, log_multiplicity, ctx.temperature).exp_())
        return result.mul_((gradient * ctx.temperature).unsqueeze(-1)).to(student.dtype), None, None, None


def channel_divergence(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, multiplicity: Tensor | None = None
) -> Tensor:
    """KL(teacher || student) between softmaxes over space, for each image and channel, times temperature squared.

    ``student`` and ``teacher`` (B,C,h,w) or (B,C,n). ``multiplicity``, broadcastable to (B,C,n), says how often each
    position counts; 0 leaves it out. Rows without any position give 0. Returns (B,C).

    >>> rows = channel_divergence(torch.tensor([[[0.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]]))
    >>> [round(value, 5) for value in rows.flatten().tolist()]
    [0.11094]
    """
    log_multiplicity = None
    if multiplicity is not None:
        inside = multiplicity > 0
        counts = torch.where(inside, multiplicity, 1).to(full_precision(student).dtype)
        log_multiplicity = torch.where(inside, counts.log(), OUTSIDE)
    rows: Tensor = _ChannelDivergence.apply(
        student.flatten(2), teacher.detach().flatten(2), log_multiplicity, temperature
    )
    return rows


def channel_kl(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, multiplicity: Tensor | None = None
) -> Tensor:
    """Channel-wise distillation: :func:`channel_divergence`, averaged over images and channels (Shu et al., ICCV 2021).

    >>> student, teacher = torch.zeros(1, 2, 1, 2), torch.tensor([[[[0.0, 1.0]], [[0.0, 0.0]]]])
    >>> round(channel_kl(student, teacher).item(), 5)
    0.05547
    """
    return channel_divergence(student, teacher, temperature, multiplicity).mean()


def pixel_kl(
    student: Tensor, teacher: Tensor, temperature: float = 1.0, target: Tensor | None = None, ignore: int = 255
) -> Tensor:
    """KL(teacher || student) over classes, averaged over pixels, times temperature squared (Hinton et al., 2015).

    ``student`` and ``teacher`` (B,K,h,w). With ``target`` (B,H,W) each cell of the grid weighs as many pixels as it has
    valid ones, and the mean is over the global batch; without, all cells count equally.

    >>> round(pixel_kl(torch.zeros(1, 2, 1, 1), torch.tensor([[[[0.0]], [[1.0]]]])).item(), 5)
    0.11094
    """
    log_student = F.log_softmax(full_precision(student) / temperature, dim=1)
    log_teacher = F.log_softmax(full_precision(teacher.detach()) / temperature, dim=1)
    cells = (log_teacher.exp() * (log_teacher - log_student)).sum(1) * temperature**2
    return pixel_mean(cells, target, ignore)
