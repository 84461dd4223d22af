"""Small steps on maps (B,C,h,w) that come before a comparison: precision, grid, scale."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def full_precision(values: Tensor) -> Tensor:
    """Return ``values`` in float32, or unchanged where they are float32 or float64 already.

    >>> full_precision(torch.ones(1, dtype=torch.bfloat16)).dtype
    torch.float32
    """
    return values if values.element_size() >= 4 else values.float()


def to_grid(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``values`` (B,C,h,w) bilinearly to ``size``, in float32; equal sizes are returned as they are.

    A map that is much finer (see `is_much_finer`) is averaged: bilinear values would come from few of its cells.

    >>> to_grid(torch.tensor([[[[0.0, 2.0]]]]), (1, 4)).flatten().tolist()
    [0.0, 0.5, 1.5, 2.0]
    """
    values = full_precision(values)
    if values.shape[-2:] == tuple(size):
        return values
    if is_much_finer(values.shape[-2:], size):
        return F.adaptive_avg_pool2d(values, size)
    return F.interpolate(values, size=tuple(size), mode="bilinear", align_corners=False)


def is_much_finer(grid: tuple[int, ...], size: tuple[int, ...]) -> bool:
    """Return whether a cell of ``size`` covers at least 4 x 4 cells of ``grid``, as with full-size logits.

    >>> is_much_finer((360, 480), (90, 120)), is_much_finer((180, 240), (90, 120))
    (True, False)
    """
    return all(fine >= 4 * coarse for fine, coarse in zip(grid, size, strict=True))


def standardise(values: Tensor, multiplicity: Tensor | None = None, eps: float = 1e-6) -> Tensor:
    """Shift and scale every channel of every image to mean 0 and variance 1 over its positions.

    ``values`` (B,C,h,w); ``multiplicity`` (B,h*w), zero where a position is void, weighs the two moments (all positions
    equally when None). Constant channels and wholly void images give zeros, with finite gradients.

    >>> maps = standardise(torch.tensor([[[[1.0, 3.0, 100.0]]]]), torch.tensor([[1.0, 1.0, 0.0]]))
    >>> maps.round().flatten().tolist()
    [-1.0, 1.0, 0.0]
    """
    flat = full_precision(values).flatten(2)
    if multiplicity is None:
        weight = flat.new_full((flat.shape[0], flat.shape[2]), 1 / flat.shape[2])
    else:
        weight = multiplicity.to(flat.dtype)
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
    result: Tensor = _Standardise.apply(flat, weight, eps)
    return result.view(values.shape)


class _Standardise(torch.autograd.Function):
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
