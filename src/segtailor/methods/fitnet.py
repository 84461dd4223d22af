"""FitNet's hint: the student's projected feature follows the teacher's, value by value."""

from __future__ import annotations

from pydantic import NonNegativeFloat
from torch import Tensor, nn

from segtailor.losses import Step, pixel_mean
from segtailor.methods.base import Channels, Method, VariantOptions, option, projector, read_pair
from segtailor.models.network import SegOutput


class FitNetOptions(VariantOptions):
    """Options of ``fitnet``."""

    fitnet: NonNegativeFloat = option(10.0, "weight of the term", source="CIRKD benchmark")


class FitNet(Method[FitNetOptions]):
    """Squared error between the features in front of the classifier, after a projection (Romero et al., ICLR 2015).

    Term ``fitnet``. The paper trains a middle layer by such a hint first, and the whole network afterwards; here, as in
    the CIRKD benchmark, the hint is one more loss on the last feature. ``published`` reads the feature after dropout,
    which only the student applies, and averages over all cells; ``clean`` reads it before dropout, weighs each cell by
    its valid label pixels and averages over the global batch.

        fitnet = mean_x mean_c ((W f_s)(c,x) - f_t(c,x))^2

    - Limitations: the error is in units of the teacher's feature, so a teacher of another scale needs another weight; a
      student far narrower than the teacher cannot follow every channel (at, skd and ifvd ask for less)
    - Source: Romero et al., ICLR 2015 (arXiv 1412.6550), as run in the CIRKD benchmark
    """

    name = "fitnet"
    summary = "hint: squared error between the teacher's feature and the student's, projected"
    channel_alignment = "a trained 1x1 convolution without bias, student to teacher, also between equal widths"
    inputs = frozenset()
    projector: nn.Module | None

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        self.projector = None
        self.labels = "ignore_mask" if options.clean and options.fitnet else "unused"
        if options.fitnet:
            self.inputs = frozenset({options.feature_tap, "feature"})
            self.projector = projector(student, teacher, "feature", always=True)

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return ``{"fitnet": ...}``, or nothing where its weight is 0."""
        options = self.options
        if self.projector is None:
            return {}
        own, guide = read_pair(student, teacher, options.feature_tap)
        errors = (self.projector(own) - guide).square().mean(1)
        return {"fitnet": options.fitnet * pixel_mean(errors, target if options.clean else None, step)}
