"""No distillation: the student trained alone, by the same loop and on the same batches."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from segtailor.losses import Step
from segtailor.methods.base import Method
from segtailor.models.network import SegOutput


class NoDistillation(Method):
    """The student alone; the baseline of every comparison.

        no term

    - Published figures: Cityscapes val: DeepLabV3-R18 74.21, DeepLabV3-MobileNetV2 73.12, PSPNet-R18 72.55 (CIRKD
      benchmark, weight decay 1e-4); DeepLabV3-R18 retrained by others 76.2 to 76.3
    - Limitations: nothing: every gain is measured from it
    - Source: the baseline of every comparison
    """

    name: ClassVar[str] = "none"
    summary: ClassVar[str] = "the student alone: cross-entropy only, no term from the teacher"
    inputs = frozenset()
    labels = "unused"
    teacher = "none"

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return no terms."""
        return {}
