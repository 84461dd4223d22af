"""No distillation: the student trained alone, by the same loop and on the same batches."""

from __future__ import annotations

from torch import Tensor

from segtailor.losses import Step
from segtailor.methods.base import Method
from segtailor.models.network import SegOutput


class NoDistillation(Method):
    """The student alone; the baseline of every comparison.

        no term

    - Limitations: none; every gain is measured from it
    - Source: the baseline of every comparison
    """

    name = "none"
    summary = "the student alone: cross-entropy only, no term from the teacher"
    inputs = frozenset()
    labels = "unused"
    teacher = "none"

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return no terms."""
        return {}
