"""Terms rescaled so that each pulls at its tensor as hard as its weight says, measured by the cross-entropy's pull."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtailor.losses import class_counts, full_precision, global_count
from segtailor.methods.tailoring.running import over_processes

DECAY = 0.9
LARGEST = 1e4
SCALE = 1024.0
"""Multiplies both gradients, so that half precision on their way does not round them to 0."""


class Part(NamedTuple):
    """A term without its ``weight``, the student's tensor that it compares, and the logits whose task it joins."""

    weight: float
    value: Tensor
    place: Tensor
    logits: Tensor


class GradientBalance(nn.Module):
    """A factor for each term: the length of the cross-entropy's gradient at the term's tensor over that of its own.

    An exponential mean over the training's batches that begins with the first ratio, each at most 1e4; lengths are over
    all processes, and the factors part of the state, 0 where nothing was measured yet, which counts as 1. A ratio is
    passed over where either gradient is 0 or not finite, or where there is none: the tensor needs no gradient, or the
    logits do not depend on it.
    """

    def __init__(self, terms: Iterable[str]) -> None:
        super().__init__()
        for term in terms:
            self.register_buffer(_key(term), torch.zeros(()))

    def factor(self, term: str) -> Tensor:
        """Return the factor of ``term``, a constant.

        >>> GradientBalance(["kd"]).factor("kd").item()
        1.0
        """
        stored = self.get_buffer(_key(term))
        return torch.where(stored > 0, stored, 1.0)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def measure(self, parts: Mapping[str, Part], target: Tensor) -> None:
        """Move the factors of ``parts`` by this batch, going back through the graph for both gradients."""
        tasks: dict[int, Tensor | None] = {}
        measured: dict[str, Tensor] = {}
        for term, part in parts.items():
            if id(part.place) not in tasks:
                tasks[id(part.place)] = _squared_length(cell_cross_entropy(part.logits, target), part.place)
            task, own = tasks[id(part.place)], _squared_length(part.value, part.place)
            if task is not None and own is not None:
                measured[term] = torch.stack((task, own))
        if not measured:
            return
        with torch.no_grad():
            squares = over_processes(torch.stack(list(measured.values())))
            for term, (task, own) in zip(measured, squares, strict=True):
                stored = self.get_buffer(_key(term))
                ratio = (task / own).sqrt().clamp(max=LARGEST)
                mean = torch.where(stored > 0, torch.lerp(stored, ratio, 1 - DECAY), ratio)
                usable = (task > 0) & (own > 0) & task.isfinite() & own.isfinite()
                stored.copy_(torch.where(usable, mean, stored))


def cell_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of ``logits`` (B,K,h,w) enlarged to the labels by nearest neighbours, without enlarging them.

    Each cell counts every class as often as it has label pixels of it; averaged over the valid pixels of the global
    batch, as the task's own, which enlarges as the model does.

    >>> round(cell_cross_entropy(torch.tensor([[[[0.0]], [[0.0]]]]), torch.tensor([[[0, 1, 255]]])).item(), 4)
    0.6931
    """
    classes = logits.shape[1]
    counts = class_counts(target, classes, (logits.shape[2], logits.shape[3]))[:, :classes].float()
    surprise = -F.log_softmax(full_precision(logits).flatten(2), dim=1)
    return (counts * surprise).sum() / global_count(lambda labels: (labels < classes).sum(), target)


def _squared_length(value: Tensor, place: Tensor) -> Tensor | None:
    if not (value.requires_grad and place.requires_grad):
        return None
    scale = torch.full_like(value, SCALE)
    (gradient,) = torch.autograd.grad(value, place, scale, retain_graph=True, allow_unused=True)
    return None if gradient is None else full_precision(gradient).square().sum()


def _key(term: str) -> str:
    return term.replace(".", "_")
