"""Knowledge distillation pixel by pixel: the student's class probabilities follow the teacher's."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.losses import Step, full_precision, pixel_kl
from segtailor.methods.base import Channels, Method, VariantOptions, option, read_pair
from segtailor.models.network import SegOutput

DESCRIPTION = "bring each cell's logits to mean 0 and deviation 1 over the classes, in both networks"
"""What the option ``standardise`` of ``kd`` and ``dist`` does."""


def standardized(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """Return ``(logits - mean_k) / (eps + std_k)`` of (B,K,h,w), the deviation unbiased; constant cells give zeros.

    >>> import torch
    >>> standardized(torch.tensor([[[[3.0]], [[5.0]], [[7.0]]]])).flatten().round().tolist()
    [-1.0, 0.0, 1.0]
    """
    values = full_precision(logits)
    # The deviation of a constant cell has gradient 0, not infinity, in PyTorch.
    return (values - values.mean(1, keepdim=True)) / (eps + values.std(1, keepdim=True))


def check_classes(method: str, num_classes: int) -> None:
    """Raise SegtailorError for two classes, of which standardization leaves a sign without a gradient."""
    if num_classes < 3:
        raise SegtailorError(
            f"method '{method}', option 'standardise': two classes leave only the sign of the logits; set it to false"
        )


class PixelKDOptions(VariantOptions):
    """Options of ``kd``."""

    kd: NonNegativeFloat = option(1.0, "weight of the term", source="CIRKD benchmark")
    temperature: PositiveFloat = option(1.0, "divides the logits before the softmax", source="CIRKD benchmark")
    standardise: bool = option(False, DESCRIPTION, source="off in the CIRKD benchmark")


class PixelKD(Method[PixelKDOptions]):
    """KL divergence between the class probabilities of each cell of the student's logit grid (Hinton et al., 2015).

    Term ``kd``. ``published`` averages over all cells, as the CIRKD benchmark does; ``clean`` weighs each cell by its
    valid label pixels and averages over the global batch. ``standardise`` (Sun et al., CVPR 2024) was published for
    image classification, with temperature 2 and weight 9.

        kd = T^2 mean_x sum_k p_t(k,x) (log p_t(k,x) - log p_s(k,x)), p = softmax_k(logits / T)

    - Limitations: relations between pixels and features are not transferred; a teacher that is nearly certain
      everywhere adds little to the labels (raise the temperature)
    - Source: Hinton et al. 2015 (arXiv 1503.02531), as run in the CIRKD benchmark
    """

    name = "kd"
    summary = "pixel-wise: KL over classes at each cell of the logit grid"

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        if self.options.standardise:
            check_classes(self.name, self.num_classes)
        self.labels = "ignore_mask" if self.options.clean else "unused"

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return ``{"kd": ...}``, or nothing where its weight is 0."""
        options = self.options
        if not options.kd:
            return {}
        own, guide = read_pair(student, teacher, "logits")
        if options.standardise:
            own, guide = standardized(own), standardized(guide)
        labels = target if options.clean else None
        return {"kd": options.kd * pixel_kl(own, guide, options.temperature, labels, step)}
