"""Feature tailoring: one network's channels, recombined by their correlation with the other's, and the triplet on them.

Early in the run the student's channels are recombined into the teacher's space, later the teacher's into the student's.
Maps of the teacher's width are large, so each term is recomputed in backward instead of being kept.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from segtailor.losses import channel_kl, standardise

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
    row_lengths, column_lengths = _lengths(rows), _lengths(columns)
    return torch.bmm(rows, columns.mT) / row_lengths.unsqueeze(2) / column_lengths.unsqueeze(1)


def _lengths(vectors: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return lengths.clamp(min=1e-12)


def row_triplet(anchor: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """Triplet hinge whose vectors are the rows of the maps (B,C,h,w): distances reduce the width only, as published.

    >>> row_triplet(*torch.tensor([0.0, 3.0, 2.5]).view(3, 1, 1, 1, 1), margin=1.0).item()
    1.5
    """
    near: Tensor = torch.linalg.vector_norm(anchor - positive + 1e-7, dim=-1)
    far: Tensor = torch.linalg.vector_norm(anchor - negative + 1e-7, dim=-1)
    return (near - far + margin).relu().mean()


def published_matching(
    student: Tensor, teacher: Tensor, tailoring: Tailoring, early: bool, temperature: float
) -> Tensor:
    """Return the published feature term: channel-wise KL between a feature and the other network's, recombined.

    ``early`` (before the tuning point) compares the tailored student with the teacher, otherwise the student with the
    tailored teacher, which is then a constant. Features (B,C_s,h,w) and (B,C_t,h,w).
    """
    if early:
        return channel_kl(tailoring(cosines(teacher, student), student), teacher, temperature)
    with torch.no_grad():
        tailored = tailoring(cosines(student, teacher), teacher)
    return channel_kl(student, tailored, temperature)


def published_contrast(
    anchor: Tensor, student: Tensor, teacher: Tensor, tailoring: Tailoring, early: bool, margin: float
) -> Tensor:
    """Return the published triplet: the anchor is nearer to the recombined maps than to their complement's.

    The gradient reaches the student through the anchor and through the mixing matrix.
    """
    mixing = cosines(teacher, student) if early else cosines(student, teacher)
    feature = student if early else teacher
    return row_triplet(anchor, tailoring(mixing, feature), tailoring(1 - mixing, feature), margin)


def mixing_weights(student: Tensor, teacher: Tensor, early: bool, sharpness: float) -> tuple[Tensor, Tensor]:
    """Return the convex weights of similar and of dissimilar channels, (B,C,D) each, as constants.

    Softmax over the recombined channels of the correlation, and of its complement, divided by ``sharpness``. Inputs are
    standardised maps, whose cosines are correlations.
    """
    with torch.no_grad():
        mixing = cosines(teacher, student) if early else cosines(student, teacher)
        return (mixing / sharpness).softmax(2), ((1 - mixing) / sharpness).softmax(2)


def matching_distance(student: Tensor, teacher: Tensor, multiplicity: Tensor) -> Tensor:
    """Return 1 minus the correlation of two standardised maps (B,C,h,w), averaged over channels, then images.

    ``multiplicity`` (B,h*w) weighs the positions; a wholly void image gives 0.

    >>> maps = standardise(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    >>> round(matching_distance(maps, -maps, torch.ones(1, 3)).item(), 4)
    2.0
    """
    weight = multiplicity / multiplicity.sum(1, keepdim=True).clamp(min=1)
    return ((student - teacher).square().mean(1).flatten(1) * weight).sum(1).mean() / 2


def channel_triplet(anchor: Tensor, positive: Tensor, negative: Tensor, multiplicity: Tensor, margin: float) -> Tensor:
    """Triplet hinge whose vectors are whole channels at unit norm; maps (B,C,h,w) are standardised, distances in [0,2].

    >>> maps = standardise(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    >>> round(channel_triplet(maps, -maps, maps, torch.ones(1, 3), margin=0.4).item(), 3)
    2.399
    """
    total = multiplicity.sum(1, keepdim=True)
    weight = (multiplicity / total.clamp(min=1)).unsqueeze(1)

    def distance(other: Tensor) -> Tensor:
        # The small constant keeps the root's slope finite where two channels agree.
        return ((anchor - other).flatten(2).square().mul(weight).sum(2) + 1e-6).sqrt()

    hinge = (distance(positive) - distance(negative) + margin).relu().mean(1)
    return (hinge * (total.squeeze(1) > 0)).mean()


def recomputed(term: Callable[..., Tensor], *inputs: object) -> Tensor:
    """Return ``term(*inputs)``, keeping nothing for backward but the inputs."""
    result: Tensor = checkpoint(term, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


class FeatureTailoring(nn.Module):
    """The tailors of one tap, and its two terms.

    ``student_to_teacher_tailor`` (width C_t) and ``student_projector`` (C_s to C_t, no bias) serve the early phase,
    ``teacher_to_student_tailor`` (width C_s) the late one. Frozen tailors are part of the state all the same.
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

    def published(
        self,
        student: Tensor,
        teacher: Tensor,
        early: bool,
        temperature: float,
        margin: float,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the published (feature, contrastive) terms, None where not ``wanted``."""
        matching = contrast = None
        tailoring = self.tailor(early)
        if wanted[0]:
            matching = recomputed(published_matching, student, teacher, tailoring, early, temperature)
        if wanted[1]:

            def compute(student: Tensor, teacher: Tensor) -> Tensor:
                anchor = self.student_projector(student) if early else student
                return published_contrast(anchor, student, teacher, tailoring, early, margin)

            contrast = recomputed(compute, student, teacher)
        return matching, contrast

    def clean(
        self,
        student: Tensor,
        teacher: Tensor,
        multiplicity: Tensor,
        early: bool,
        sharpness: float,
        margin: float,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the mended (feature, contrastive) terms, None where not ``wanted``.

        Both features are standardised per channel over valid positions; tailors are residual and their output is
        standardised again, so a constant output costs as much as an unrelated one.
        """
        matching = contrast = None
        if wanted[0]:
            matching = recomputed(self._clean_matching, student, teacher, multiplicity, early, sharpness)
        if wanted[1]:
            contrast = recomputed(self._clean_contrast, student, teacher, multiplicity, early, sharpness, margin)
        return matching, contrast

    def _tailored(self, mixing: Tensor, feature: Tensor, multiplicity: Tensor, early: bool) -> Tensor:
        return standardise(recombine(mixing, feature) + self.tailor(early)(mixing, feature), multiplicity)

    def _clean_matching(
        self, student: Tensor, teacher: Tensor, multiplicity: Tensor, early: bool, sharpness: float
    ) -> Tensor:
        student, teacher = standardise(student, multiplicity), standardise(teacher, multiplicity)
        similar, _ = mixing_weights(student, teacher, early, sharpness)
        if early:
            return matching_distance(self._tailored(similar, student, multiplicity, early), teacher, multiplicity)
        return matching_distance(student, self._tailored(similar, teacher, multiplicity, early), multiplicity)

    def _clean_contrast(
        self, student: Tensor, teacher: Tensor, multiplicity: Tensor, early: bool, sharpness: float, margin: float
    ) -> Tensor:
        student, teacher = standardise(student, multiplicity), standardise(teacher, multiplicity)
        feature = student if early else teacher
        with torch.no_grad():
            # Goals, not players: neither the student nor a tailor may move them to please this term.
            positive, negative = (
                self._tailored(mixing, feature, multiplicity, early)
                for mixing in mixing_weights(student, teacher, early, sharpness)
            )
        anchor = standardise(F.conv2d(student, self.student_projector.weight), multiplicity) if early else student
        return channel_triplet(anchor, positive, negative, multiplicity, margin)
