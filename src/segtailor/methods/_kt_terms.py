"""The terms of Knowledge Tailoring: logit tailoring, and feature tailoring with its triplet, clean and as published."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segtailor.losses import (
    Step,
    channel_divergence,
    channel_kl,
    class_counts,
    full_precision,
    recomputed,
    standardize,
)
from segtailor.methods.stagewise import regression

Tailoring = Callable[[Tensor, Tensor], Tensor]
"""Takes a mixing matrix (B,C,D) and a feature (B,D,h,w), returns tailored maps (B,C,h,w)."""


def recombine(mixing: Tensor, feature: Tensor) -> Tensor:
    """Return the channel mixtures ``mixing @ feature``: (B,C,D) and (B,D,h,w) give (B,C,h,w)."""
    return torch.bmm(mixing, feature.flatten(2)).view(feature.shape[0], -1, *feature.shape[2:])


class Tailor(nn.Module):
    """Three 1x1 convolutions with ReLU between, halving the width inside, applied to recombined channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 2, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
        )

    def forward(self, mixing: Tensor, feature: Tensor) -> Tensor:
        """Return ``layers(mixing @ feature)``, (B,C,h,w), without forming the recombined maps.

        The first convolution is folded into ``mixing`` (B,C,D); at the published widths that halves the memory.
        """
        batch = feature.shape[0]
        (first, first_bias), (second, second_bias), (third, third_bias) = (
            _matrix(self.layers[index]) for index in (0, 2, 4)
        )
        maps = torch.baddbmm(first_bias, first @ mixing, feature.flatten(2)).relu_()
        maps = torch.baddbmm(second_bias, second.expand(batch, -1, -1), maps).relu_()
        maps = torch.baddbmm(third_bias, third.expand(batch, -1, -1), maps)
        return maps.view(batch, -1, *feature.shape[2:])


def _matrix(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return the weight (out,in) and the bias (out,1) of a 1x1 convolution."""
    assert isinstance(layer, nn.Conv2d)
    assert layer.bias is not None
    return layer.weight.flatten(1), layer.bias.unsqueeze(1)


def cosines(rows: Tensor, columns: Tensor) -> Tensor:
    """Return the cosine between every channel of ``rows`` (B,C,h,w) and of ``columns`` (B,D,h,w): (B,C,D).

    >>> cosines(torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[1.0, 0.0]]]])).item()
    0.6000000238418579
    """
    rows, columns = rows.flatten(2), columns.flatten(2)
    # Dividing the small product instead of the maps spares two copies of them.
    row_lengths, column_lengths = (torch.linalg.vector_norm(maps, dim=-1).clamp(min=1e-12) for maps in (rows, columns))
    products: Tensor = torch.bmm(rows, columns.mT) / row_lengths.unsqueeze(2) / column_lengths.unsqueeze(1)
    return products


class FeatureTailoring(nn.Module):
    """The tailors of one tap, as published: random, and trained only on request.

    ``student_to_teacher_tailor`` (width C_t) and ``student_projector`` (C_s to C_t, no bias) serve the early phase,
    ``teacher_to_student_tailor`` (width C_s) the late one. Frozen ones are part of the state all the same.
    """

    def __init__(self, student_width: int, teacher_width: int, trained: bool, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            # Frozen tailors define the objective: every process and every rerun must draw the same ones.
            torch.manual_seed(seed)
            self.student_to_teacher_tailor = Tailor(teacher_width)
            self.teacher_to_student_tailor = Tailor(student_width)
            self.student_projector = nn.Conv2d(student_width, teacher_width, 1, bias=False)
        self.requires_grad_(trained)

    def tailor(self, early: bool) -> Tailor:
        """Return the tailor of the phase."""
        return self.student_to_teacher_tailor if early else self.teacher_to_student_tailor

    def projector(self, early: bool) -> nn.Conv2d | None:
        """Return the convolution that takes the student's feature to the width of the phase's goals; None if equal."""
        return self.student_projector if early else None


class Components(nn.Module):
    """The teacher's map of one tap, restructured to the student's width: its principal components, and their term.

    The components are eigenvectors of the correlation between the teacher's channels, over the first ``STEPS`` training
    steps of all processes: ``basis`` (D,r), r the smaller width, largest first. ``shares`` (r) are their eigenvalues.
    They are computed before steps 2, 3, 5, 9, ...; the first step sees the first r channels. ``projector`` takes the
    student's channels to the components.
    """

    STEPS = 64
    FEWEST = 8
    POSITIONS = 4096
    """About as many of a finer map's positions are taken in."""
    CHUNK = 256
    """Channels of the teacher that are in full precision at a time."""

    correlation: Tensor
    basis: Tensor
    shares: Tensor

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        rank = min(student_width, teacher_width)
        self.projector = nn.Conv2d(student_width, rank, 1, bias=False)
        self.register_buffer("correlation", torch.zeros(teacher_width, teacher_width))
        self.register_buffer("basis", torch.eye(teacher_width, rank))
        self.register_buffer("shares", torch.ones(rank))
        self.seen = 0
        self.step: Step | None = None

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor, grown: float, step: Step) -> Tensor:
        """Return 1 minus the correlation of each component with its projection, weighed by ``shares``.

        ``student`` (B,C,h,w), ``teacher`` (B,D,h,w) without gradient, ``valid`` (B,h*w) weighs the positions; the mean
        over images, a wholly void one gives 0. ``grown``, from 0 to 1, is how many components take part: from
        ``FEWEST`` to all.
        """
        rank = len(self.shares)
        rank = rank if grown >= 1 else min(rank, self.FEWEST + int((rank - self.FEWEST) * grown))
        matrix, size = self.projector.weight.flatten(1)[:rank], student.shape[2:]
        if self.training:
            self.learn(teacher, valid, step)
        goal = full_precision(teacher).new_zeros(len(teacher), rank, valid.shape[1])
        for first in range(0, len(self.basis), self.CHUNK):
            guide = standardize(teacher[:, first : first + self.CHUNK], valid).flatten(2)
            goal += self.basis[first : first + self.CHUNK, :rank].mT.to(guide) @ guide
        shares = self.shares[:rank] / self.shares[:rank].sum()
        return regression(student, goal.view(-1, rank, *size), valid, matrix, shares)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def learn(self, teacher: Tensor, valid: Tensor, step: Step) -> None:
        """Take in the teacher's maps (B,D,h,w) of a micro-batch of ``step``; a new step may renew the basis."""
        if self.seen > self.STEPS:
            return
        if step is not self.step:
            if self.seen and self.seen & (self.seen - 1) == 0:
                values, vectors = torch.linalg.eigh(self.correlation / self.seen)
                largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
                # A sign of their own, so that rounding, as of another number of processes, turns none around.
                self.basis.copy_((vectors * largest.sign()).flip(1)[:, : len(self.shares)])
                self.shares.copy_(values.flip(0)[: len(self.shares)].clamp(min=1e-6))
            self.seen, self.step = self.seen + 1, step
        every = math.ceil((valid.shape[1] / self.POSITIONS) ** 0.5)
        valid = valid.view(-1, *teacher.shape[2:])[:, ::every, ::every].flatten(1)
        guide = standardize(teacher[:, :, ::every, ::every], valid).flatten(2)
        weighted = guide * (valid / valid.sum(1, keepdim=True).clamp(min=1)).unsqueeze(1)
        found = torch.bmm(weighted, guide.mT).mean(0).to(self.correlation) / max(len(step.targets), 1)
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(found)
            found /= dist.get_world_size()
        self.correlation += found

    def get_extra_state(self) -> Tensor:
        """Return the number of steps that were taken in."""
        return torch.tensor(self.seen)

    def set_extra_state(self, state: Tensor) -> None:
        """Take what :meth:`get_extra_state` returned."""
        self.seen = int(state)


def published_matching(
    student: Tensor, teacher: Tensor, tailoring: Tailoring, early: bool, temperature: float
) -> Tensor:
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


def published_contrast(
    student: Tensor,
    teacher: Tensor,
    projector: Callable[[Tensor], Tensor] | None,
    tailoring: Tailoring,
    early: bool,
    margin: float,
) -> Tensor:
    """Return the triplet; the gradient reaches the student through the anchor and through the mixing matrix."""
    mixing = cosines(teacher, student) if early else cosines(student, teacher)
    feature = student if early else teacher

    def compute(mixing: Tensor, student: Tensor, feature: Tensor) -> Tensor:
        anchor = student if projector is None else projector(student)
        return row_distance(anchor, tailoring(mixing, feature))

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


LogitTerms = tuple[Tensor, Tensor, Tensor]
"""The three terms, unweighted: the whole map, its class pixels, its other pixels."""


class Atoms(NamedTuple):
    """Label pixels of each cell that are of a class, and that are not: two tensors (B,K,n)."""

    inside: Tensor
    outside: Tensor


def count_atoms(target: Tensor, num_classes: int, size: Sequence[int], with_void: bool) -> Atoms:
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
    atoms = count_atoms(target, student.shape[1], student.shape[2:], with_void=True)
    multiplicity = torch.cat(atoms, 2)
    pixels = target.shape[1] * target.shape[2]
    student, teacher = full_precision(student).flatten(2), full_precision(teacher).flatten(2)
    own_raised, own_capped = tailor(student, atoms, atoms.inside * (student > 0), pixels)
    raised, capped = tailor(teacher, atoms, atoms.inside * (teacher > 0), pixels)
    zero = torch.zeros_like(teacher)

    def divergence(own: tuple[Tensor, Tensor], guide: tuple[Tensor, Tensor]) -> Tensor:
        return channel_divergence(torch.cat(own, 2), torch.cat(guide, 2), temperature, multiplicity).mean()

    return (
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
    """Return the three terms with the known defects fixed: only the teacher is tailored, void is left out.

    The class's mean is over pixels where the teacher is right (all of the class where it never is), since the sign of a
    logit means nothing; the others' mean divides by their own number. Terms two and three are softmaxes inside and
    outside the class alone; term two averages over the classes that an image has.
    """
    atoms = count_atoms(target, student.shape[1], student.shape[2:], with_void=False)
    student, teacher = full_precision(student).flatten(2), full_precision(teacher).flatten(2)
    raised, capped = tailor_clean(teacher, atoms)
    guide = torch.cat((raised, capped), 2)
    present = (atoms.inside.sum(2) > 0).float()
    # Absent classes have no atoms, and so no divergence.
    of_class = channel_divergence(student, raised, temperature, atoms.inside)
    return (
        channel_divergence(torch.cat((student, student), 2), guide, temperature, torch.cat(atoms, 2)).mean(),
        (of_class.sum(1) / present.sum(1).clamp(min=1)).mean(),
        channel_divergence(student, capped, temperature, atoms.outside).mean(),
    )
