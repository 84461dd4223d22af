"""FitNet's hint: the student's projected feature follows the teacher's, value by value."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from segtailor.losses import full_precision, pixel_mean, to_grid
from segtailor.methods.base import Channels, Method, MethodOptions, VariantOptions, projector, read_tap
from segtailor.models.network import SegOutput


class FitNetOptions(VariantOptions):
    """Options of ``fitnet``."""

    sources: ClassVar[dict[str, str]] = {"fitnet": "CIRKD benchmark"}
    fitnet: NonNegativeFloat = Field(10.0, description="weight of the term")


class FitNet(Method):
    """Squared error between the features in front of the classifier, after a projection (Romero et al., ICLR 2015).

    Term ``fitnet``. The paper trains a middle layer by such a hint first, and the whole network afterwards; here, as in
    the CIRKD benchmark, the hint is one more loss on the last feature. ``published`` reads the feature after dropout,
    which only the student applies, and averages over all cells; ``clean`` reads it before dropout, weighs each cell by
    its valid label pixels and averages over the global batch.
    """

    name: ClassVar[str] = "fitnet"
    summary: ClassVar[str] = "hint: squared error between the teacher's feature and the student's, projected"
    formula: ClassVar[str] = "fitnet = mean_x mean_c ((W f_s)(c,x) - f_t(c,x))^2"
    source: ClassVar[str] = "Romero et al., ICLR 2015 (arXiv 1412.6550), as run in the CIRKD benchmark"
    widths: ClassVar[str] = "a trained 1x1 convolution without bias, student to teacher, also between equal widths"
    extra_modules: ClassVar[str] = "the projector: student width x teacher width parameters"
    unsuited: ClassVar[str] = (
        "the error is in units of the teacher's feature, so a teacher of another scale needs another weight; a student "
        "far narrower than the teacher cannot follow every channel (at, skd and ifvd ask for less)"
    )
    Options: ClassVar[type[MethodOptions]] = FitNetOptions
    void_only = True
    compares_logits = False
    options: FitNetOptions
    projector: nn.Module | None

    def __init__(
        self, num_classes: int, student_channels: Channels, teacher_channels: Channels, options: FitNetOptions
    ) -> None:
        super().__init__(num_classes, student_channels, teacher_channels, options)
        self.projector = None
        if options.fitnet:
            clean = options.variant == "clean"
            self.tap = "feature" if clean else "classifier_input"
            self.reads = frozenset({self.tap, "feature"})
            self.needs = frozenset({"feature", "labels"} if clean else {"feature"})
            self.projector = projector(student_channels, teacher_channels, "feature", always=True)

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return ``{"fitnet": ...}``, or nothing where its weight is 0."""
        if self.projector is None:
            return {}
        lifted = self.projector(full_precision(read_tap(student, self.tap, "student")))
        guide = to_grid(read_tap(teacher, self.tap, "teacher"), (lifted.shape[-2], lifted.shape[-1]))
        errors = (lifted - guide).square().mean(1)
        return {"fitnet": self.options.fitnet * pixel_mean(errors, target if self.options.variant == "clean" else None)}
