"""Channel-wise distillation: where each channel of the student is active follows the teacher."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from segtailor.losses import Step, channel_kl, to_grid, valid_counts
from segtailor.methods.base import Channels, Method, VariantOptions, option, projector, read_pair
from segtailor.models.network import SegOutput


class ChannelWiseOptions(VariantOptions):
    """Options of ``cwd``."""

    logits: NonNegativeFloat = option(
        3.0, "weight of the term on logits; 0 turns it off", source="paper and CIRKD benchmark"
    )
    feature: NonNegativeFloat = option(
        50.0, "weight of the term on the feature in front of the classifier; 0 turns it off", source="CIRKD benchmark"
    )
    temperature: PositiveFloat = option(
        4.0, "divides the maps before the softmax over space", source="paper and CIRKD benchmark"
    )


class ChannelWise(Method[ChannelWiseOptions]):
    """KL divergence between softmaxes over space, one for each channel of each image (Shu et al., ICCV 2021).

    Terms ``cwd_logits`` and ``cwd_feature``. ``published`` reads the feature after dropout and divides by the student's
    width; ``clean`` reads it before dropout, divides by the projected width and leaves void pixels out of the softmax.
    So at equal weight the clean feature term is half the published one for 128 to 256 channels.
    SegFormer pairs were published with the weights 0.3 and 5.

        T^2 / (B C) sum_bc KL(softmax_x(teacher_bc / T) || softmax_x(student_bc / T))

    - Published figures: Cityscapes val, DeepLabV3-R18, with kd and adversarial: 75.55, alone 74.21 (CIRKD benchmark)
    - Limitations: pairs of a CNN and a transformer, whose features are active in other places (the published SegFormer
      figure is below the student alone); teachers without a feature, with which `feature: 0` leaves the logit term
    - Source: Shu et al., ICCV 2021 (arXiv 2011.13256), as run in the CIRKD benchmark
    """

    name = "cwd"
    summary = "channel-wise: KL over space for each channel of the logits and of the feature"
    channel_alignment = "a trained 1x1 convolution without bias lifts the student's feature where the widths differ"
    projector: nn.Module | None

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        self.projector = None
        self.labels = "ignore_mask" if options.clean else "unused"
        self.inputs = frozenset({"logits"} if options.logits else ())
        if options.feature:
            self.inputs |= {options.feature_tap, "feature"}
            self.projector = projector(student, teacher, "feature")

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the terms whose weight is not 0."""
        options, terms = self.options, {}
        if options.logits:
            terms["cwd_logits"] = options.logits * self._divergence(student.logits, teacher.logits, target)
        if self.projector is not None:
            own, guide = read_pair(student, teacher, options.feature_tap)
            lifted = self.projector(own)
            # The published code counts the channels before it projects them.
            factor = 1.0 if options.clean else lifted.shape[1] / own.shape[1]
            terms["cwd_feature"] = options.feature * factor * self._divergence(lifted, guide, target)
        return terms

    def _divergence(self, student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
        size = student.shape[-2:]
        valid = valid_counts(target, size).unsqueeze(1) if self.options.clean else None
        return channel_kl(student, to_grid(teacher, size), self.options.temperature, valid)
