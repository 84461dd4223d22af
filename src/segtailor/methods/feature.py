"""Canonical feature distillation: the projected student regresses the teacher's last feature."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeFloat
from torch import Tensor, nn

from segtailor.errors import SegtailorError
from segtailor.losses import Step, pixel_mean, recomputed, standardize, valid_counts
from segtailor.methods.base import Channels, Method, MethodOptions, option, projector, read_pair, widths_of
from segtailor.models.network import SegOutput

STUDY = "arXiv 2604.25530"


class FeatureOptions(MethodOptions):
    """Options of ``feature``."""

    feature: NonNegativeFloat = option(1.0, "weight of the term; 0 turns it off", source="our choice, not tuned")
    normalise: Literal["standardised", "unit", "none"] = option(
        "standardised",
        "both features at mean 0 and variance 1 per channel and image, at unit norm per position, or raw",
        source="our choice; the standardization is PKD's, per image instead of per batch",
    )
    projector: Literal["trained", "none"] = option(
        "trained",
        "a 1x1 convolution on the student, also between equal widths; `none` needs equal widths",
        source="arXiv 2604.25530; FitNet in the CIRKD benchmark",
    )
    tap: str = option("feature", "`feature` (in front of the classifier) or `stages.N`", source=STUDY)


class FeatureRegression(Method[FeatureOptions]):
    """Squared error between the projected student's feature and the teacher's.

    Term ``feature``. ``standardised`` compares every channel of an image at mean 0 and variance 1 over its valid
    pixels: the term is twice 1 minus their correlation, averaged over channels, then over images; neither scale nor
    offset of the teacher matters. ``unit`` compares the vectors of each position at unit norm (twice 1 minus the
    cosine), ``none`` the raw features averaged over channels; both average over the valid pixels of the global batch.

        feature = mean_bx mean_c (n(P s) - n(t))^2, P a 1x1 convolution, n the normalization

    - Published figures: Cityscapes, PSPNet-R18 under a teacher of 79.8, long schedules: 79.0 (arXiv 2604.25530)
    - Limitations: a teacher that gives only logits (then `kd`); short runs, since the projector must first be learned;
      `standardised` on crops of a few cells, where moments over one image are noisy
    - Source: FitNets (arXiv 1412.6550) with the standardization of PKD (arXiv 2207.02039); as a baseline: arXiv
      2604.25530
    """

    name = "feature"
    summary = "canonical feature regression: a 1x1 projector and the squared error on the last feature"
    channel_alignment = "a trained 1x1 convolution without bias lifts the student to the teacher's width"
    projector: nn.Module | None

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        self.projector = None
        if not options.feature:
            self.inputs, self.labels = frozenset(), "unused"
            return
        tap = options.tap
        own, guide = widths_of(student, teacher, tap)
        if options.projector == "none" and own != guide:
            raise SegtailorError(
                f"method 'feature', option 'projector': '{tap}' has {own} channels in the student and {guide} in the "
                "teacher; only equal widths go without a projector"
            )
        self.projector = projector(student, teacher, tap, always=options.projector == "trained")
        self.inputs = frozenset({tap})

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return ``{"feature": ...}``, or nothing at weight 0."""
        options, lift = self.options, self.projector
        if lift is None:
            return {}
        own, guide = read_pair(student, teacher, options.tap)
        valid = valid_counts(target, own.shape[-2:])

        def cells(own: Tensor, guide: Tensor) -> Tensor:
            return squares(lift(own), guide, valid, options.normalise)

        errors = recomputed(cells, own, guide)
        if options.normalise == "standardised":  # mean over an image's valid pixels, then over images
            value = ((errors.flatten(1) * valid).sum(1) / valid.sum(1).clamp(min=1)).mean()
        else:
            value = pixel_mean(errors, target, step)
        return {"feature": options.feature * value}


def squares(student: Tensor, teacher: Tensor, valid: Tensor, normalise: str) -> Tensor:
    """Return the squared error of each position, (B,C,h,w) to (B,h,w); ``valid`` (B,h*w) weighs the moments.

    The mean over channels; at unit norm their sum, so that the width does not matter.

    >>> import torch
    >>> student, teacher = torch.tensor([[[[3.0]], [[4.0]]]]), torch.tensor([[[[4.0]], [[3.0]]]])
    >>> [round(squares(student, teacher, torch.ones(1, 1), kind).item(), 4) for kind in ("none", "unit")]
    [1.0, 0.08]
    """
    if normalise == "unit":
        # The constant keeps the root's slope finite at 0.
        student, teacher = (
            values * (values.square().sum(1, keepdim=True) + 1e-6).rsqrt() for values in (student, teacher)
        )
        return (student - teacher).square().sum(1)
    if normalise == "standardised":
        student, teacher = standardize(student, valid), standardize(teacher, valid)
    return (student - teacher).square().mean(1)
