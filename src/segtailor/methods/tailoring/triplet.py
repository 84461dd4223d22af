"""The clean triplet, whose gradient is taken on the way forward.

Its goals are constants and its value is one number, so that the gradient is known up to a factor as soon as the value
is. Nothing is kept for backward but that gradient, of the student's width, and nothing is computed again there.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

FLOOR = 1e-6
"""Added to variances and squared distances: roots keep a finite slope where a channel is constant, or two agree."""


def triplet(
    student: Tensor, projector: Tensor | None, near: Tensor, far: Tensor, valid: Tensor, margin: float
) -> Tensor:
    """Return relu(|anchor - near| - |anchor - far| + margin), averaged over channels and images.

    The anchor is ``projector @ student``, or the student where there is no projector, standardised over valid
    positions. ``student`` (B,C,h,w), ``projector`` (D,C), ``near`` and ``far`` (B,D,h,w) standardised and constant,
    ``valid`` (B,h*w) weighs the positions, by which a channel has unit norm. Wholly void images give 0.

    >>> line = torch.tensor([[[[1.0, 2.0, 3.0]]]])
    >>> goal = (line - 2) / (2 / 3) ** 0.5
    >>> round(triplet(line, None, -goal, goal, torch.ones(1, 3), 0.4).item(), 2)
    2.4
    """
    flat = student.flatten(2)
    value: Tensor = _Triplet.apply(flat, projector, near.flatten(2), far.flatten(2), valid, margin)
    return value


class _Triplet(torch.autograd.Function):
    """With weights w, the slope of a distance d is w (anchor - goal) / d; standardising takes its moments out of it."""

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, projector: Tensor | None, near: Tensor, far: Tensor, valid: Tensor, margin: float
    ) -> Tensor:
        total = valid.sum(1, keepdim=True)
        weight = valid / total.clamp(min=1)
        column, row = weight.unsqueeze(2), weight.unsqueeze(1)
        anchor = student if projector is None else torch.matmul(projector, student)
        anchor = (anchor - torch.bmm(anchor, column)).mul_(row > 0)
        rate = (torch.bmm(anchor.square(), column) + FLOOR).rsqrt_()
        anchor.mul_(rate)
        to_near, to_far = (_distance(anchor, goal, column) for goal in (near, far))
        excess = to_near - to_far + margin
        share = (total > 0).unsqueeze(2) / excess.numel()
        value = (excess.relu() * share).sum()
        pull = share * (excess > 0)
        pull, push = pull / to_near, pull / to_far
        slope = (anchor * (pull - push)).addcmul_(near, pull, value=-1).addcmul_(far, push).mul_(row)
        along = (slope * anchor).sum(2, keepdim=True)
        slope.sub_(anchor.mul_(along).add_(slope.sum(2, keepdim=True)).mul_(row)).mul_(rate)
        of_projector = None
        if projector is not None:
            if ctx.needs_input_grad[1]:
                of_projector = torch.bmm(slope, student.mT).sum(0)
            slope = torch.matmul(projector.mT, slope)
        ctx.save_for_backward(slope, of_projector)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        slope, of_projector = ctx.saved_tensors
        return slope * gradient, None if of_projector is None else of_projector * gradient, None, None, None, None


def _distance(anchor: Tensor, goal: Tensor, column: Tensor) -> Tensor:
    return (torch.bmm((anchor - goal).square_(), column) + FLOOR).sqrt_()
