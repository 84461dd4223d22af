"""The loss functions that methods share: pure functions of tensors, in fp32 inside autocast, with void masked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from segtailor.files import VOID


class Step:
    """The training step of a loss: its progress through the run, and the counts that means divide by.

    ``progress`` is step / steps, counted from 1; a plain float. ``targets`` are this process's targets of the whole
    step, one a micro-batch, where a step has several or several processes share it; empty, the given target is all.

    >>> halves = torch.tensor([[[0, 1]]]), torch.tensor([[[0, 255]]])
    >>> Step(targets=halves).count(lambda labels: (labels != 255).sum(), halves[0]).item()
    1.5
    """

    # No tuple or dataclass: data parallelism and precision plugins take those apart.
    def __init__(self, progress: float = 1.0, targets: Sequence[Tensor] = ()) -> None:
        self.progress = progress
        self.targets = targets

    def count(self, count: Callable[[Tensor], Tensor], target: Tensor) -> Tensor:
        """Return the divisor that makes a sum over this micro-batch a mean over the global batch.

        ``count`` maps a target (B,H,W) to the number of things summed over. Averaging ``sum / step.count(...)`` over
        micro-batches and ranks gives the sum over all divided by the count over all. The total is at least 1, so a
        wholly void batch divides by 1. Only with ``targets`` and a process group do processes communicate; every rank
        must then call it equally often.

        >>> target = torch.tensor([[[0, 1, 255]]])
        >>> valid = lambda labels: (labels != 255).sum()
        >>> Step().count(valid, target).item()
        2.0
        >>> Step(targets=[target, torch.tensor([[[0, 255, 255]]])]).count(valid, target).item()
        1.5
        """
        if not self.targets:
            return count(target).float().clamp(min=1)
        total = torch.stack([count(item).float() for item in self.targets]).sum()
        shares = len(self.targets)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
            shares *= dist.get_world_size()
        return total.clamp(min=1) / shares


def class_counts(target: Tensor, num_classes: int, size: Sequence[int]) -> Tensor:
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


def valid_pixels(target: Tensor) -> Tensor:
    """Return the number of label pixels that are not void; what most means divide by (see :meth:`Step.count`).

    >>> valid_pixels(torch.tensor([[[0, 7, 255]]])).item()
    2
    """
    return (target != VOID).sum()


def valid_counts(target: Tensor, size: Sequence[int]) -> Tensor:
    """Count the label pixels that are not void in each cell: float32 (B, h*w), see :func:`class_counts`.

    >>> valid_counts(torch.tensor([[[0, 7, 1, 255]]]), (1, 2)).tolist()
    [[2.0, 1.0]]
    """
    return class_counts((target == VOID).to(torch.uint8), 1, size)[:, 0].float()


def pixel_mean(cells: Tensor, target: Tensor | None, step: Step) -> Tensor:
    """Average ``cells`` (B,h,w) over the valid label pixels of the global batch; equally over all cells without labels.

    >>> pixel_mean(torch.tensor([[[1.0, 5.0]]]), torch.tensor([[[0, 0, 1, 255]]]), Step()).item()
    2.3333332538604736
    """
    if target is None:
        return cells.mean()
    weight = valid_counts(target, cells.shape[-2:])
    return (cells.flatten(1) * weight).sum() / step.count(valid_pixels, target)


def nearest_labels(target: Tensor, size: Sequence[int]) -> Tensor:
    """Return ``target`` (B,H,W) on a coarser (or equal) grid: each cell takes its top-left pixel; int64 (B,h,w).

    >>> nearest_labels(torch.tensor([[[3, 0, 255, 1]]]), (1, 2)).tolist()
    [[[3, 255]]]
    """
    height, width = target.shape[-2:]
    row = torch.arange(size[0], device=target.device) * height // size[0]
    column = torch.arange(size[1], device=target.device) * width // size[1]
    return target[:, row.unsqueeze(1), column].long()


R = TypeVar("R")


def recomputed(term: Callable[..., R], *inputs: object) -> R:
    """Return ``term(*inputs)``, keeping nothing for backward but the inputs; ``term`` must draw no random numbers.

    >>> recomputed(lambda values: values.exp().sum(), torch.zeros(2, requires_grad=True)).item()
    2.0
    """
    result: R = checkpoint(term, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


def full_precision(values: Tensor) -> Tensor:
    """Return ``values`` in float32, or unchanged where they are float32 or float64 already.

    >>> full_precision(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return values if values.element_size() >= 4 else values.float()


def to_grid(values: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``values`` (B,C,h,w) bilinearly to ``size``, in float32; equal sizes are returned as they are.

    A map that is much finer (see `is_much_finer`) is averaged: bilinear values would come from few of its cells.

    >>> to_grid(torch.tensor([[[[0.0, 2.0]]]]), (1, 4)).flatten().tolist()
    [0.0, 0.5, 1.5, 2.0]
    """
    values = full_precision(values)
    if values.shape[-2:] == tuple(size):
        return values
    if is_much_finer(values.shape[-2:], size):
        return F.adaptive_avg_pool2d(values, (size[0], size[1]))
    return F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)


def is_much_finer(grid: Sequence[int], size: Sequence[int]) -> bool:
    """Return whether a cell of ``size`` covers at least 4 x 4 cells of ``grid``, as with full-size logits.

    >>> is_much_finer((360, 480), (90, 120)), is_much_finer((180, 240), (90, 120))
    (True, False)
    """
    return all(fine >= 4 * coarse for fine, coarse in zip(grid, size, strict=True))


def standardize(values: Tensor, multiplicity: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """Shift and scale every channel of every image to mean 0 and variance 1 over its positions.

    ``values`` (B,C,h,w); ``multiplicity`` (B,h*w), zero where a position is void, weighs the two moments (all positions
    equally when None). Constant channels and wholly void images give zeros, with finite gradients.

    >>> maps = standardize(torch.tensor([[[[1.0, 3.0, 100.0]]]]), torch.tensor([[1.0, 1.0, 0.0]]))
    >>> maps.round().flatten().tolist()
    [-1.0, 1.0, 0.0]
    """
    flat = full_precision(values).flatten(2)
    if multiplicity is None:
        weight = flat.new_full((flat.shape[0], flat.shape[2]), 1 / flat.shape[2])
    else:
        weight = multiplicity.to(flat.dtype)
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
    result: Tensor = _Standardize.apply(flat, weight, eps)
    return result.view(values.shape)


class _Standardize(torch.autograd.Function):
    """Keeps only its result for backward: with weights w, dx = r (m dy - w (sum dy + y sum (dy y)))."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, weight: Tensor, eps: float) -> Tensor:
        column = weight.unsqueeze(2)
        # Void positions are zeroed as well, so that nothing they hold can reach a later sum.
        result = (flat - torch.bmm(flat, column)).mul_((weight > 0).unsqueeze(1))
        rate = (torch.bmm(result.square(), column) + eps).rsqrt()
        result.mul_(rate)
        ctx.save_for_backward(result, weight, rate)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        result, weight, rate = ctx.saved_tensors
        gradient = gradient * (weight > 0).unsqueeze(1)
        slope = (gradient * result).sum(2, keepdim=True)
        through_moments = torch.mul(result, slope).add_(gradient.sum(2, keepdim=True)).mul_(weight.unsqueeze(1))
        return gradient.sub_(through_moments).mul_(rate), None, None


OUTSIDE = -1e30
"""Used for log 0: exp of it is 0, and unlike -inf it gives no NaN when a whole row is empty."""


def cross_entropy(logits: Tensor, target: Tensor, step: Step) -> Tensor:
    """Cross-entropy at label size, averaged over the valid pixels of the global batch.

    ``logits`` (B,K,H,W), ``target`` (B,H,W) integer. A wholly void batch gives 0 with zero gradients.

    >>> cross_entropy(torch.tensor([[[[0.0]], [[0.0]]]]), torch.tensor([[[1]]]), Step()).item()
    0.6931471824645996
    """
    total = F.cross_entropy(full_precision(logits), target.long(), ignore_index=VOID, reduction="sum")
    return total / step.count(valid_pixels, target)


def _log_probabilities(values: Tensor, log_multiplicity: Tensor | None, temperature: float) -> Tensor:
    """Log-softmax over the last axis of ``values / temperature``, each atom repeated by its multiplicity."""
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
    student: Tensor, teacher: Tensor, temperature: float = 1.0, target: Tensor | None = None, step: Step | None = None
) -> Tensor:
    """KL(teacher || student) over classes, averaged over pixels, times temperature squared (Hinton et al., 2015).

    ``student`` and ``teacher`` (B,K,h,w). With ``target`` (B,H,W) each cell of the grid weighs as many pixels as it has
    valid ones, and the mean is over the global batch; without, all cells count equally.

    >>> round(pixel_kl(torch.zeros(1, 2, 1, 1), torch.tensor([[[[0.0]], [[1.0]]]])).item(), 5)
    0.11094
    """
    return pixel_mean(class_kl(student, teacher.detach(), temperature), target, step or Step())


def class_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) over classes at each cell, times temperature squared: (B,K,h,w) give (B,h,w).

    >>> class_kl(torch.zeros(1, 2, 1, 1), torch.tensor([[[[0.0]], [[1.0]]]]), 1.0).shape
    torch.Size([1, 1, 1])
    """
    own, guide = (F.log_softmax(full_precision(logits) / temperature, dim=1) for logits in (student, teacher))
    return (guide.exp() * (guide - own)).sum(1) * temperature**2
