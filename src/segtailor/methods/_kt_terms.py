"""The terms of Knowledge Tailoring: logit tailoring, and feature tailoring with its triplet, clean and as published."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segtailor.losses import (
    channel_divergence,
    channel_kl,
    class_counts,
    class_kl,
    full_precision,
    recomputed,
    standardize,
)

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
    """The tailors of one tap, and its terms in one phase.

    ``student_to_teacher_tailor`` (width C_t) and ``student_projector`` (C_s to C_t, no bias) serve the early phase,
    ``teacher_to_student_tailor`` (width C_s) the late one. Frozen ones are part of the state all the same; ``tailored``
    and ``projected`` say which there are.
    """

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        trained: bool,
        seed: int,
        tailored: bool = True,
        projected: bool = True,
    ) -> None:
        super().__init__()
        self.tailored = tailored
        with torch.random.fork_rng(devices=[]):
            # Frozen tailors define the objective: every process and every rerun must draw the same ones.
            torch.manual_seed(seed)
            if tailored:
                self.student_to_teacher_tailor = Tailor(teacher_width)
                self.teacher_to_student_tailor = Tailor(student_width)
            if projected:
                self.student_projector = nn.Conv2d(student_width, teacher_width, 1, bias=False)
        self.requires_grad_(trained)

    def tailor(self, early: bool) -> Tailor:
        """Return the tailor of the phase."""
        return self.student_to_teacher_tailor if early else self.teacher_to_student_tailor

    def projector(self, early: bool) -> nn.Conv2d | None:
        """Return the convolution that takes the student's feature to the width of the phase's goals; None if equal."""
        return self.student_projector if early else None


FLOOR = 1e-6
"""Added to variances and squared distances: roots keep a finite slope where a channel is constant, or two agree."""


def triplet(
    student: Tensor, projector: Tensor | None, near: Tensor, far: Tensor, valid: Tensor, margin: float
) -> Tensor:
    """Return relu(|anchor - near| - |anchor - far| + margin), averaged over channels and images.

    The anchor is ``projector @ student``, or the student where there is no projector, standardized over valid
    positions. ``student`` (B,C,h,w), ``projector`` (D,C), ``near`` and ``far`` (B,D,h,w) standardized and constant,
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
    """With weights w, the slope of a distance d is w (anchor - goal) / d; standardizing takes its moments out of it."""

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
        to_near, to_far = ((torch.bmm((anchor - goal).square_(), column) + FLOOR).sqrt_() for goal in (near, far))
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


def mixing_weights(
    student: Tensor, teacher: Tensor, valid: Tensor, early: bool, sharpness: float
) -> tuple[Tensor, Tensor]:
    """Return convex weights (B,C,D) that favour correlated channels, and weights that favour the others.

    Softmax over the recombined channels of the correlation, and of its complement, divided by ``sharpness``. ``valid``
    (B,h*w) weighs the positions. Constants.
    """
    with torch.no_grad():
        student, teacher = standardize(student, valid), standardize(teacher, valid)
        mixing = cosines(teacher, student) if early else cosines(student, teacher)
        return (mixing / sharpness).softmax(2), ((1 - mixing) / sharpness).softmax(2)


def matching(
    student: Tensor, teacher: Tensor, valid: Tensor, tailoring: Tailoring | None, mixing: Tensor, early: bool
) -> Tensor:
    """Return the feature term: 1 minus the correlation of a channel with its goal, averaged over channels and images.

    ``early`` compares the tailored student with the teacher, otherwise the student with the tailored teacher; the
    gradient reaches the tailor and a trained ``mixing`` in both. Without ``tailoring`` channels are only recombined.
    Wholly void images give 0.
    """

    def compute(student: Tensor, teacher: Tensor, mixing: Tensor) -> Tensor:
        student, teacher = standardize(student, valid), standardize(teacher, valid)
        if early:
            student = _tailored(student, valid, tailoring, mixing)
        else:
            teacher = _tailored(teacher, valid, tailoring, mixing)
        return channel_squares(student, teacher, valid).mean() / 2

    return recomputed(compute, student, teacher, mixing)


def contrast(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor,
    projector: nn.Conv2d | None,
    tailoring: Tailoring | None,
    mixing: tuple[Tensor, Tensor],
    early: bool,
    margin: float,
) -> Tensor:
    """Return the triplet on whole channels at unit norm; positive and negative are constants.

    Neither the student nor a tailor may move the goals to please this term; it reaches the student through the anchor,
    which ``projector``, a 1x1 convolution, takes to the width of the goals where they differ.
    """
    with torch.no_grad():
        feature = standardize(student if early else teacher, valid)
        near, far = (_tailored(feature, valid, tailoring, weights) for weights in mixing)
    matrix = None if projector is None else projector.weight.flatten(1)
    return triplet(student, matrix, near, far, valid, margin)


def _tailored(feature: Tensor, valid: Tensor, tailoring: Tailoring | None, mixing: Tensor) -> Tensor:
    recombined = recombine(mixing, feature)
    return standardize(recombined if tailoring is None else tailoring(mixing, feature).add_(recombined), valid)


def channel_squares(first: Tensor, second: Tensor, valid: Tensor) -> Tensor:
    """Return the squared distances, in [0,4], between channels of two standardized maps: (B,C,h,w) give (B,C).

    ``valid`` (B,h*w) weighs the positions. Half the square is 1 minus the correlation; wholly void images give 0.

    >>> maps = standardize(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    >>> round(channel_squares(maps, -maps, torch.ones(1, 3)).item(), 3)
    4.0
    """
    weight = valid / valid.sum(1, keepdim=True).clamp(min=1)
    return torch.bmm((first - second).flatten(2).square(), weight.unsqueeze(2)).squeeze(2)


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


def tailor_clean(
    teacher: Tensor, atoms: Atoms, corrective: bool = False, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Tailor the teacher's logits (B,K,n), class means over pixels where it is right.

    They are over all of a class where it never is. Returns the maps of class pixels and of the others, as
    :func:`tailor`.
    """
    classes = torch.arange(teacher.shape[1], device=teacher.device).view(1, -1, 1)
    given = teacher.argmax(1, keepdim=True) == classes
    right = atoms.inside * given
    trusted = torch.where(right.sum(2, keepdim=True) > 0, right, atoms.inside)
    raised, capped = tailor(teacher, atoms, trusted, atoms.outside.sum(2, keepdim=True).clamp(min=1))
    if cap is not None:
        others = torch.where(atoms.outside > 0, teacher, torch.nan)
        level = torch.nanquantile(others, cap, 2, keepdim=True)
        capped = torch.minimum(teacher, torch.where(level.isnan(), teacher, level))
    if corrective:
        raised, capped = torch.where(given, teacher, raised), torch.where(given, capped, teacher)
    return raised, capped


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


def clean_terms(student: Tensor, teacher: Tensor, target: Tensor, temperature: float, options: Any) -> LogitTerms:
    """Return the three terms with the known defects fixed: only the teacher is tailored, void is left out.

    The class's mean is over pixels where the teacher is right (all of the class where it never is), since the sign of a
    logit means nothing; the others' mean divides by their own number. Terms two and three are softmaxes inside and
    outside the class alone; term two averages over the classes that an image has.
    """
    atoms = count_atoms(target, student.shape[1], student.shape[2:], with_void=False)
    student, teacher = full_precision(student).flatten(2), full_precision(teacher).flatten(2)
    raised, capped = tailor_clean(teacher, atoms, options.lt_target == "corrective", options.lt_cap)
    guide = torch.cat((raised, capped), 2)
    pixels = atoms.inside.sum(2)
    share = {"classes": (pixels > 0).float(), "roots": pixels.sqrt(), "pixels": pixels}[options.lt_weighting]
    # Absent classes have no atoms, and so no divergence.
    of_class = channel_divergence(student, raised, temperature, atoms.inside) * share
    return (
        channel_divergence(torch.cat((student, student), 2), guide, temperature, torch.cat(atoms, 2)).mean(),
        (of_class.sum(1) / share.sum(1).clamp(min=1)).mean(),
        channel_divergence(student, capped, temperature, atoms.outside).mean(),
    )


def exchanged(student: Tensor, teacher: Tensor, target: Tensor, temperature: float, cells: str) -> Tensor:
    """KL over classes to the teacher with the top logit and the label's exchanged where it is wrong."""
    classes = student.shape[1]
    counts = class_counts(target, classes, student.shape[2:]).view(len(student), classes + 1, *student.shape[2:])
    valid = counts[:, :classes].sum(1).float()
    label = counts[:, :classes].argmax(1, keepdim=True)
    top, where = teacher.max(1, keepdim=True)
    wanted = teacher.gather(1, label)
    guide = teacher.scatter(1, where, wanted).scatter(1, label, top)
    if cells == "edges":
        present = (counts[:, :classes] > 0).float()
        near = torch.nn.functional.max_pool2d(present, 5, 1, 2).sum(1) > 1
        valid = valid * near
    return (class_kl(student, guide, temperature) * valid).sum() / valid.sum().clamp(min=1)


class Components(nn.Module):
    """Regression of the teacher's principal components, whose number grows over the run from 8 to the student's width.

    ``basis`` (D,r) holds the eigenvectors of the correlation of the teacher's channels over the first batches,
    ``shares`` (r) their eigenvalues, by which the components count.
    """

    correlation: Tensor
    basis: Tensor
    shares: Tensor
    seen: Tensor

    def __init__(self, student_width: int, teacher_width: int) -> None:
        super().__init__()
        rank = min(student_width, teacher_width)
        self.projector = nn.Conv2d(student_width, rank, 1, bias=False)
        self.register_buffer("correlation", torch.zeros(teacher_width, teacher_width))
        self.register_buffer("basis", torch.zeros(teacher_width, rank))
        self.register_buffer("shares", torch.zeros(rank))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def forward(self, student: Tensor, teacher: Tensor, valid: Tensor, grown: float) -> Tensor:
        """Return 1 - correlation with the components, by their shares, averaged over images; ``grown`` from 0 to 1."""
        guide = standardize(teacher, valid).flatten(2)
        weight = valid / valid.sum(1, keepdim=True).clamp(min=1)
        seen = int(self.seen)
        if self.training and seen < 64:
            self.correlation += torch.bmm(guide * weight.unsqueeze(1), guide.mT).mean(0)
            self.seen += 1
            if (seen + 1) & seen == 0:
                values, vectors = torch.linalg.eigh(self.correlation / (seen + 1))
                rank = self.basis.shape[1]
                self.basis.copy_(vectors.flip(1)[:, :rank])
                self.shares.copy_(values.flip(0)[:rank].clamp(min=0))
        full = self.basis.shape[1]
        rank = full if grown >= 1 else min(full, 8 + round((full - 8) * grown))
        goal = standardize(
            torch.matmul(self.basis[:, :rank].mT, guide).view(len(guide), rank, *teacher.shape[2:]), valid
        )
        own = standardize(student, valid).flatten(2)
        own = standardize(
            (self.projector.weight.flatten(1)[:rank] @ own).view(len(own), rank, *teacher.shape[2:]), valid
        )
        squares = channel_squares(own, goal, valid) / 2
        shares = self.shares[:rank]
        return ((squares * shares).sum(1) / shares.sum().clamp(min=1e-6)).mean()
