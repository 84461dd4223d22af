"""Feature tailoring and its triplet as published. Maps of the teacher's width are recomputed in backward, not kept."""

from __future__ import annotations

import torch
from torch import Tensor

from segtailor.losses import channel_kl, recomputed
from segtailor.methods.tailoring.recombination import Anchoring, Tailoring, cosines


def matching(student: Tensor, teacher: Tensor, tailoring: Tailoring, early: bool, temperature: float) -> Tensor:
    """Return the feature term: channel-wise KL between a feature and the other network's, recombined and tailored.

    ``early`` (before the tuning point) compares the tailored student with the teacher, otherwise the student with the
    tailored teacher, which is then a constant. Features (B,C_s,h,w) and (B,C_t,h,w).
    """

    def compute(student: Tensor, teacher: Tensor) -> Tensor:
        if early:
            return channel_kl(tailoring(cosines(teacher, student), student), teacher, temperature)
        with torch.no_grad():
            tailored = tailoring(cosines(student, teacher), teacher)
        return channel_kl(student, tailored, temperature)

    return recomputed(compute, student, teacher)


def contrast(
    student: Tensor, teacher: Tensor, anchor: Anchoring, tailoring: Tailoring, early: bool, margin: float
) -> Tensor:
    """Return the triplet: the anchor is nearer to the recombined maps than to their complement's.

    The gradient reaches the student through the anchor and through the mixing matrix.
    """
    mixing = cosines(teacher, student) if early else cosines(student, teacher)
    feature = student if early else teacher

    def compute(mixing: Tensor, student: Tensor, feature: Tensor) -> Tensor:
        return row_distance(anchor(student), tailoring(mixing, feature))

    near = recomputed(compute, mixing, student, feature)
    far = recomputed(compute, 1 - mixing, student, feature)
    return (near - far + margin).relu().mean()


def row_distance(first: Tensor, second: Tensor) -> Tensor:
    """Return the distances between rows of two maps, reducing the width only, as published: (B,C,h,w) give (B,C,h).

    >>> round(row_distance(torch.tensor([[[[3.0, 0.0]]]]), torch.tensor([[[[0.0, 4.0]]]])).item(), 4)
    5.0
    """
    distance: Tensor = torch.linalg.vector_norm((first - second).add_(1e-7), dim=-1)
    return distance
