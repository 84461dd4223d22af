"""Stage-wise regression: the student's maps, linearly projected, follow the teacher's at the decoder and all stages."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segtailor.losses import Step, channel_kl, full_precision, standardize, to_grid, valid_counts
from segtailor.methods.base import Channels, Method, MethodOptions, option, read_tap, widths_of
from segtailor.models.network import SegOutput

CHOSEN = "our choice, on CamVid's dev split (docs/study.md)"
FEATURE = "feature"


class StagewiseOptions(MethodOptions):
    """Options of ``stagewise``."""

    kd: NonNegativeFloat = option(1.0, "weight of the channel-wise KL on logits; 0 turns it off", source=CHOSEN)
    temperature: PositiveFloat = option(
        4.0, "divides the logits before the softmax over space", source="CWD's paper and code"
    )
    regression: NonNegativeFloat = option(8.0, "weight of the regression at each tap; 0 turns it off", source=CHOSEN)
    taps: Literal["all"] | Annotated[list[str], Field(min_length=1)] = option(
        "all",
        "the maps that are regressed: a list of `feature` (in front of the classifier) and `stages.N`; `all`: the "
        "feature and the stages, as far as both networks have them",
        source=CHOSEN,
    )


class Stagewise(Method[StagewiseOptions]):
    """Regression of the teacher's standardized maps at the decoder and at all stages, beside a channel-wise KL.

    Terms ``kd`` and ``regression``, with several taps ``regression.TAP``. A map of the student is standardized (mean 0,
    variance 1 for each channel of each image, over valid pixels), projected by a trained 1x1 convolution without bias
    and compared with the teacher's by correlation, which is half a squared error of standardized channels. KL as in
    ``cwd`` on logits.

        kd         = chKL(s, t), KL between softmaxes over space, mean over channels and images
        regression = mean over images and the teacher's channels of 1 - corr(P standardize(s), t)

    - Extra modules: a 1x1 convolution per tap, not part of the student
    - Published figures: none, the composition is ours. Ours, CamVid val, five seeds: 50.8, the student alone 39.6
      (docs/study.md)
    - Limitations: teachers that give logits alone (then `regression: 0`); a teacher whose stages mean something else
      than the student's (then `taps: [feature]`)
    - Source: regression through a projector, FitNets (arXiv 1412.6550); standardized channels, PKD (arXiv 2207.02039);
      the KL, CWD (arXiv 2011.13256)
    """

    name = "stagewise"
    summary = "regression of the teacher's maps at the decoder and all stages, and a channel-wise KL on logits"
    channel_alignment = "a trained 1x1 convolution per tap lifts the student to the teacher's width"

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make a projector for each tap."""
        options = self.options
        self.taps = common_taps(options.taps, student, teacher) if options.regression else []
        self.projectors = nn.ModuleList()
        for tap in self.taps:
            own, guide = widths_of(student, teacher, tap)
            self.projectors.append(nn.Conv2d(own, guide, 1, bias=False))
        self.inputs = frozenset(self.taps) | ({"logits"} if options.kd else frozenset())

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the terms whose weight is not 0."""
        options, terms = self.options, {}
        if options.kd:
            own, size = student.logits, student.logits.shape[-2:]
            valid = valid_counts(target, size).unsqueeze(1)
            terms["kd"] = options.kd * channel_kl(own, to_grid(teacher.logits, size), options.temperature, valid)
        for tap, projector in zip(self.taps, self.projectors, strict=True):
            assert isinstance(projector, nn.Conv2d)
            own, guide = read_tap(student, tap, "student"), read_tap(teacher, tap, "teacher")
            size = own.shape[-2:]
            guide = guide if guide.shape[-2:] == size else to_grid(guide, size)
            value = regression(own, guide, valid_counts(target, size), projector.weight.flatten(1))
            terms["regression" if len(self.taps) == 1 else f"regression.{tap}"] = options.regression * value
        return terms


def common_taps(taps: str | list[str], student: Channels, teacher: Channels) -> list[str]:
    """Return ``taps`` without repeats; for `all` the feature and the stages of both networks, or the feature alone."""
    if isinstance(taps, list):
        return list(dict.fromkeys(taps))
    common = student.keys() & teacher.keys()
    stages = sorted((tap for tap in common if tap.startswith("stages.")), key=lambda tap: int(tap.split(".")[1]))
    return [FEATURE, *stages] if FEATURE in common or not stages else stages


def regression(student: Tensor, teacher: Tensor, valid: Tensor, matrix: Tensor, shares: Tensor | None = None) -> Tensor:
    """Return 1 minus the correlation of ``matrix @ standardized student`` with the teacher.

    ``student`` (B,C,h,w), ``teacher`` (B,D,h,w) without gradient, ``matrix`` (D,C), ``valid`` (B,h*w) weighs the
    positions; the mean over images and the teacher's channels, these weighed by ``shares`` (D), which sum to 1, if
    given. Wholly void images give 0. Maps of few cells are projected as they are; of larger ones only covariances are
    formed.

    >>> line = torch.tensor([[[[1.0, 2.0, 4.0]]]])
    >>> regression(line, -3 * line, torch.ones(1, 3), torch.ones(1, 1)).round(decimals=3).item()
    2.0
    """
    matrix = full_precision(matrix)
    weight = valid.to(matrix.dtype)
    weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-6)
    parts = (matrix.new_full((len(matrix),), 1 / len(matrix)) if shares is None else shares) / len(student)
    if student.shape[2] * student.shape[3] <= student.shape[1]:
        maps = matrix @ standardize(student, valid).flatten(2), teacher.flatten(2)
        projected, goal = (standardize(values.unsqueeze(2), valid) for values in maps)
        halves = (projected - goal).square().squeeze(2) * weight.unsqueeze(1) / 2
        return (halves.sum(2) * parts).sum()
    value: Tensor = _Regression.apply(student.flatten(2), teacher.flatten(2), weight, matrix, parts)
    return value


CHUNK = 256
"""Channels of the teacher that are in full precision at a time."""


class _Regression(torch.autograd.Function):
    """Takes its gradient on the way forward, so that backward keeps none of the teacher's maps.

    From covariances, no projected map is formed: with x the standardized student, t the teacher, m a row of the matrix
    and weights w, v = m (x w x') m' and c = m (x w t') are variance and covariance of the projected student.
    """

    @staticmethod
    def forward(
        ctx: Any, student: Tensor, teacher: Tensor, weight: Tensor, matrix: Tensor, parts: Tensor, eps: float = 1e-6
    ) -> Tensor:
        column, row = weight.unsqueeze(2), weight.unsqueeze(1)
        own = full_precision(student)
        own = (own - torch.bmm(own, column)).mul_(row > 0)
        deviation = (torch.bmm(own.square(), column) + eps).rsqrt_()
        own.mul_(deviation)
        weighted = own * row
        second = torch.bmm(weighted, own.mT)
        value, slope, of_matrix = own.new_zeros(()), torch.zeros_like(own), torch.zeros_like(matrix)
        of_second = torch.zeros_like(second)
        for first in range(0, len(matrix), CHUNK):
            rows, part = matrix[first : first + CHUNK], parts[first : first + CHUNK]
            guide = full_precision(teacher[:, first : first + CHUNK])
            mean = torch.bmm(guide, column)
            variance = torch.bmm((guide - mean).square_(), column).squeeze(2)
            across = torch.bmm(guide, weighted.mT)
            through = torch.matmul(rows, second)
            spread, covariance = (through * rows).sum(2), (across * rows).sum(2)
            rate, scale = (spread + eps).rsqrt(), (variance + eps).rsqrt()
            covariance = covariance * rate * scale
            value += (((spread * rate.square() + variance * scale.square()) / 2 - covariance) * part).sum()
            of_spread = (rate.square() * (eps * rate.square() + covariance) / 2 * part).unsqueeze(2)
            of_covariance = (-rate * scale * part).unsqueeze(2)
            of_matrix[first : first + CHUNK] = (2 * of_spread * through + of_covariance * across).sum(0)
            of_second += torch.matmul(rows.mT, of_spread * rows)
            # x weighs every term below, and its mean is 0: the teacher's mean makes no difference.
            slope.baddbmm_((of_covariance * rows).mT, guide)
        slope.baddbmm_(of_second, own, alpha=2)
        slope.mul_(row)
        along = (slope * own).sum(2, keepdim=True)
        slope.sub_(own.mul_(along).add_(slope.sum(2, keepdim=True)).mul_(row)).mul_(deviation)
        ctx.dtype = student.dtype
        # Half precision could not hold it before the loss is scaled.
        ctx.save_for_backward(slope.bfloat16() if student.dtype == torch.bfloat16 else slope, of_matrix)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, Tensor, None]:
        slope, of_matrix = ctx.saved_tensors
        return (slope * gradient).to(ctx.dtype), None, None, of_matrix * gradient, None
