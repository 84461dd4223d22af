"""KL divergence between the teacher's and the student's similarities, a few anchors at a time."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from segtailor.losses import OUTSIDE

BLOCK = {"cpu": 2**21, "cuda": 2**24}
"""Similarities held at a time: few enough for a processor's cache, enough to fill a GPU."""
SMALL = 1e-4
"""Vectors shorter than this are not stretched to length 1, so that their gradients stay bounded."""


def directions(maps: Tensor) -> Tensor:
    """Return the vectors of ``maps`` (B,C,h,w) at each position, of length 1: (B,h*w,C).

    >>> directions(torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])).tolist()
    [[[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]]
    """
    return unit(maps.flatten(2).transpose(1, 2).contiguous())


def unit(vectors: Tensor) -> Tensor:
    """Return ``vectors`` (...,C) with length 1; zero vectors stay zero."""
    return F.normalize(vectors, dim=-1, eps=SMALL)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def relation_kl(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    weight: Tensor,
    temperature: float,
    multiplicity: Tensor | None = None,
) -> Tensor:
    """Sum over anchors and groups of weight times KL(teacher || student) between softmaxes over the group's keys.

    ``student`` and ``teacher`` are (anchors (N,C), keys (G,n,C)), each with its own C; the logits are their products
    divided by ``temperature``. ``weight`` (N,G). ``multiplicity`` (G,n) says how often each key counts; 0 leaves it
    out, and a group without keys gives 0. The N x G x n similarities are never held at once. The gradient is computed
    along with the value, since recomputing them would cost more than keeping it. Not compiled, since the loop over
    blocks would be unrolled.

    >>> anchors, keys = torch.eye(2), torch.eye(2).unsqueeze(0)
    >>> teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> round(relation_kl((anchors, keys), (teacher, keys), torch.ones(2, 1), 1.0).item(), 5)
    0.46212
    """
    bias = None
    if multiplicity is not None:
        inside = multiplicity > 0
        bias = torch.where(inside, torch.where(inside, multiplicity, 1).to(weight.dtype).log(), OUTSIDE).flatten()
    total: Tensor = _RelationKL.apply(*student, *teacher, weight, temperature, bias)
    return total


def _probabilities(anchors: Tensor, keys: Tensor, groups: int, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits and softmax over each group's keys, both (r,G,n), and the log of its denominator (r,G)."""
    logits = anchors @ keys.t() if bias is None else torch.addmm(bias, anchors, keys.t())
    logits = logits.view(len(anchors), groups, -1)
    probabilities = logits.softmax(-1)
    # Of the largest logit the softmax is at least 1/n: cheaper than a sum of exponentials, and as exact.
    return logits, probabilities, logits.amax(-1).sub_(probabilities.amax(-1).log_())


class _RelationKL(torch.autograd.Function):
    """With p = softmax(anchor . key / T): dL/dlogit = weight (p_s - p_t), from which both sides' gradients follow."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        keys: Tensor,
        guide_anchors: Tensor,
        guide_keys: Tensor,
        weight: Tensor,
        temperature: float,
        bias: Tensor | None,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        groups, shape = len(keys), keys.shape
        keys, guide_keys = keys.flatten(0, 1), guide_keys.flatten(0, 1)
        anchors, guide_anchors = anchors / temperature, guide_anchors / temperature
        grad_anchors = torch.empty_like(anchors) if wanted[0] else None
        grad_keys = torch.zeros_like(keys) if wanted[1] else None
        total = weight.new_zeros(())
        rows = max(1, BLOCK.get(anchors.device.type, BLOCK["cuda"]) // max(1, len(keys)))
        for start in range(0, len(anchors), rows):
            part = slice(start, start + rows)
            own, found, own_rate = _probabilities(anchors[part], keys, groups, bias)
            guide, expected, guide_rate = _probabilities(guide_anchors[part], guide_keys, groups, bias)
            divergence = guide.sub_(own).mul_(expected).sum(-1).add_(own_rate).sub_(guide_rate)
            total += (divergence * weight[part]).sum()
            if not any(wanted):
                continue
            slope = found.sub_(expected).mul_(weight[part].unsqueeze(-1)).flatten(1)
            if grad_anchors is not None:
                torch.mm(slope, keys, out=grad_anchors[part])
            if grad_keys is not None:
                grad_keys.addmm_(slope.t(), anchors[part])
        ctx.save_for_backward(
            None if grad_anchors is None else grad_anchors.div_(temperature),
            None if grad_keys is None else grad_keys.view(shape),
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        grad_anchors, grad_keys = (None if saved is None else saved * gradient for saved in ctx.saved_tensors)
        return grad_anchors, grad_keys, None, None, None, None, None
