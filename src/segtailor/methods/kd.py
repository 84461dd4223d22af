"""Knowledge distillation pixel by pixel: the student's class probabilities follow the teacher's."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from segtailor.losses import pixel_kl, to_grid
from segtailor.methods.base import Channels, Method, MethodOptions, VariantOptions
from segtailor.models.output import SegOutput


class PixelKDOptions(VariantOptions):
    """Options of ``kd``."""

    kd: NonNegativeFloat = Field(1.0, description="weight of the term")
    temperature: PositiveFloat = Field(1.0, description="divides the logits before the softmax")


class PixelKD(Method):
    """KL divergence between the class probabilities of each cell of the student's logit grid (Hinton et al., 2015).

    Term ``kd``. ``published`` averages over all cells, as the CIRKD benchmark does; ``clean`` weighs each cell by its
    valid label pixels and averages over the global batch.
    """

    name: ClassVar[str] = "kd"
    summary: ClassVar[str] = "pixel-wise: KL over classes at each cell of the logit grid"
    formula: ClassVar[str] = "kd = T^2 mean_x sum_k p_t(k,x) (log p_t(k,x) - log p_s(k,x)), p = softmax_k(logits / T)"
    source: ClassVar[str] = "Hinton et al. 2015 (arXiv 1503.02531), as run in the CIRKD benchmark"
    Options: ClassVar[type[MethodOptions]] = PixelKDOptions
    minimal_at_teacher: frozenset[str] = frozenset({"kd"})
    options: PixelKDOptions

    def __init__(
        self, num_classes: int, student_channels: Channels, teacher_channels: Channels, options: PixelKDOptions
    ) -> None:
        super().__init__(num_classes, student_channels, teacher_channels, options)
        self.needs = frozenset({"labels"} if options.variant == "clean" else ())

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return ``{"kd": ...}``."""
        options = self.options
        guide = to_grid(teacher.logits, (student.logits.shape[-2], student.logits.shape[-1]))
        labels = target if options.variant == "clean" else None
        return {"kd": options.kd * pixel_kl(student.logits, guide, options.temperature, labels)}
