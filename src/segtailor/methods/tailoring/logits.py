"""Logit tailoring, computed at logit resolution and exact for labels of any size.

The published code enlarges the logits to label size by nearest neighbours. All label pixels of one cell then share one
logit, so a map of label size is a set of two atoms a cell, "class" and "not class", each repeated as often as the cell
has such pixels. Every mean and softmax over label pixels is a weighted one over these atoms; nothing is enlarged.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from segtailor.losses import channel_divergence, class_counts, full_precision


class LogitTerms(NamedTuple):
    """The three terms, unweighted: the whole map, its class pixels, its other pixels."""

    all: Tensor
    of_class: Tensor
    of_nonclass: Tensor


class Atoms(NamedTuple):
    """Label pixels of each cell that are of a class, and that are not: two tensors (B,K,n)."""

    inside: Tensor
    outside: Tensor

    def both(self) -> Tensor:
        """Return the multiplicities of all atoms (B,K,2n)."""
        return torch.cat(self, dim=2)


def count_atoms(target: Tensor, num_classes: int, size: tuple[int, int], with_void: bool) -> Atoms:
    """Count each class's pixels and the others in every cell of the grid ``size``.

    A void pixel is "not class" for every class when ``with_void`` (as published), otherwise it is nowhere.
    """
    counts = class_counts(target, num_classes, size)
    inside = counts[:, :num_classes]
    total = (counts if with_void else inside).sum(1, keepdim=True, dtype=torch.int32)
    return Atoms(inside.float(), (total - inside).float())


def tailor(values: Tensor, atoms: Atoms, trusted: Tensor, others: Tensor | int) -> tuple[Tensor, Tensor]:
    """Raise class pixels to at least the class's mean over ``trusted`` ones, cap the others at their mean.

    ``values`` (B,K,n); ``trusted`` (B,K,n) counts the class pixels that enter the first mean, no pixel meaning no
    raise; ``others`` is the divisor of the second mean. Returns both maps (B,K,n).

    >>> atoms = Atoms(torch.tensor([[[1.0, 1.0, 0.0]]]), torch.tensor([[[0.0, 0.0, 1.0]]]))
    >>> raised, capped = tailor(torch.tensor([[[1.0, 3.0, -4.0]]]), atoms, atoms.inside, 2)
    >>> raised.tolist(), capped.tolist()
    ([[[2.0, 3.0, 2.0]]], [[[-2.0, -2.0, -4.0]]])
    """
    count = trusted.sum(2, keepdim=True)
    class_mean = (values * trusted).sum(2, keepdim=True) / count.clamp(min=1)
    raised = torch.where((values < class_mean) & (count > 0), class_mean, values)
    other_mean = (values * atoms.outside).sum(2, keepdim=True) / others
    return raised, torch.where(values > other_mean, other_mean, values)


def published_terms(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> LogitTerms:
    """Return the three published terms of logits (B,K,h,w) and a target (B,H,W), each averaged over images and classes.

    Both networks are tailored by their own means: the class's over pixels with a positive logit, the others' divided by
    all pixels. Terms two and three keep zeros where their mask is not. Void counts as "not class".
    """
    atoms = count_atoms(target, student.shape[1], (student.shape[2], student.shape[3]), with_void=True)
    multiplicity = atoms.both()
    pixels = target.shape[1] * target.shape[2]
    student, teacher = full_precision(student).flatten(2), full_precision(teacher).flatten(2)
    own_raised, own_capped = tailor(student, atoms, atoms.inside * (student > 0), pixels)
    raised, capped = tailor(teacher, atoms, atoms.inside * (teacher > 0), pixels)
    zero = torch.zeros_like(teacher)

    def divergence(own: tuple[Tensor, Tensor], guide: tuple[Tensor, Tensor]) -> Tensor:
        return channel_divergence(torch.cat(own, 2), torch.cat(guide, 2), temperature, multiplicity).mean()

    return LogitTerms(
        divergence((student, student), (raised, capped)),
        divergence((own_raised, zero), (raised, zero)),
        divergence((zero, own_capped), (zero, capped)),
    )


def tailor_clean(teacher: Tensor, atoms: Atoms) -> tuple[Tensor, Tensor]:
    """Tailor the teacher's logits (B,K,n), class means over pixels where it is right.

    They are over all of a class where it never is. Returns the maps of class pixels and of the others, as
    :func:`tailor`.
    """
    classes = torch.arange(teacher.shape[1], device=teacher.device).view(1, -1, 1)
    right = atoms.inside * (teacher.argmax(1, keepdim=True) == classes)
    trusted = torch.where(right.sum(2, keepdim=True) > 0, right, atoms.inside)
    return tailor(teacher, atoms, trusted, atoms.outside.sum(2, keepdim=True).clamp(min=1))


def tailored_map(logits: Tensor, target: Tensor, published: bool) -> Tensor:
    """Return the teacher's ``logits`` (B,K,h,w) as tailored for each pixel of ``target`` (B,H,W): (B,K,H,W).

    A void pixel keeps its logits; as published it is one of the others.

    >>> tailored_map(torch.tensor([[[[1.0, 3.0, -4.0]]]]), torch.tensor([[[0, 0, 255]]]), published=False).tolist()
    [[[[2.0, 3.0, -4.0]]]]
    """
    classes, size, (height, width) = logits.shape[1], logits.shape[2:], target.shape[1:]
    flat = full_precision(logits).flatten(2)
    atoms = count_atoms(target, classes, (size[0], size[1]), with_void=published)
    if published:
        raised, capped = tailor(flat, atoms, atoms.inside * (flat > 0), height * width)
    else:
        raised, capped = tailor_clean(flat, atoms)
    row = torch.arange(height, device=target.device) * size[0] // height
    column = torch.arange(width, device=target.device) * size[1] // width
    cell = row.unsqueeze(1) * size[1] + column
    label = target.long().unsqueeze(1)
    inside = label == torch.arange(classes, device=target.device).view(1, -1, 1, 1)
    tailored = torch.where(inside, raised[:, :, cell], capped[:, :, cell])
    return tailored if published else torch.where(label < classes, tailored, flat[:, :, cell])


def clean_terms(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> LogitTerms:
    """Return the three mended terms: only the teacher is tailored, and void is left out everywhere.

    The class's mean is over pixels where the teacher is right (all of the class where it never is), since the sign of a
    logit means nothing; the others' mean divides by their own number. Terms two and three are softmaxes inside and
    outside the class alone; term two averages over the classes that an image has.
    """
    atoms = count_atoms(target, student.shape[1], (student.shape[2], student.shape[3]), with_void=False)
    student, teacher = full_precision(student).flatten(2), full_precision(teacher).flatten(2)
    raised, capped = tailor_clean(teacher, atoms)
    guide = torch.cat((raised, capped), 2)
    present = (atoms.inside.sum(2) > 0).float()
    # Absent classes have no atoms, and so no divergence.
    of_class = channel_divergence(student, raised, temperature, atoms.inside)
    return LogitTerms(
        channel_divergence(torch.cat((student, student), 2), guide, temperature, atoms.both()).mean(),
        (of_class.sum(1) / present.sum(1).clamp(min=1)).mean(),
        channel_divergence(student, capped, temperature, atoms.outside).mean(),
    )
