"""Channels of one network recombined to the other's, by correlation or trained, and small networks that act on them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

Tailoring = Callable[[Tensor, Tensor], Tensor]
"""Takes a mixing matrix (B,C,D) and a feature (B,D,h,w), returns tailored maps (B,C,h,w)."""
Anchoring = Callable[[Tensor], Tensor]
"""Takes the student's feature (B,C_s,h,w) to the width of the tailored maps."""


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


class FeatureTailoring(nn.Module):
    """The tailors of one tap, and its terms in one phase.

    ``student_to_teacher_tailor`` (width C_t) and ``student_projector`` (C_s to C_t, no bias) serve the early phase,
    ``teacher_to_student_tailor`` (width C_s) the late one. Frozen tailors are part of the state all the same; with
    ``tailored`` False there are none. ``recombined`` puts trained 1x1 convolutions without bias between the widths,
    ``student_to_teacher_recombination`` and ``teacher_to_student_recombination``, in the projector's place; the second
    only where there is a ``late`` phase.
    """

    def __init__(
        self,
        student_width: int,
        teacher_width: int,
        trained: bool,
        seed: int,
        tailored: bool = True,
        recombined: bool = False,
        late: bool = True,
    ) -> None:
        super().__init__()
        self.tailored, self.recombined = tailored, recombined
        with torch.random.fork_rng(devices=[]):
            # Frozen tailors define the objective: every process and every rerun must draw the same ones.
            torch.manual_seed(seed)
            if tailored:
                self.student_to_teacher_tailor = Tailor(teacher_width)
                self.teacher_to_student_tailor = Tailor(student_width)
            if not recombined:
                self.student_projector = nn.Conv2d(student_width, teacher_width, 1, bias=False)
            self.requires_grad_(trained)
            if recombined:
                self.student_to_teacher_recombination = nn.Conv2d(student_width, teacher_width, 1, bias=False)
                if late:
                    self.teacher_to_student_recombination = nn.Conv2d(teacher_width, student_width, 1, bias=False)

    def tailor(self, early: bool) -> Tailor:
        """Return the tailor of the phase."""
        return self.student_to_teacher_tailor if early else self.teacher_to_student_tailor

    def anchor(self, early: bool) -> Anchoring:
        """Return what takes the student's feature to the space of the phase."""
        return self.student_projector if early else _unchanged

    def projector(self, early: bool) -> Tensor | None:
        """Return the matrix (C_t,C_s) that takes the student's feature to the space of the phase, where it must be."""
        return self.student_projector.weight.flatten(1) if early else None

    def matrix(self, early: bool) -> Tensor:
        """Return the matrix of the phase's convolution: (C_t,C_s) early, (C_s,C_t) late."""
        layer = self.student_to_teacher_recombination if early else self.teacher_to_student_recombination
        return layer.weight.flatten(1)


def _unchanged(feature: Tensor) -> Tensor:
    return feature
