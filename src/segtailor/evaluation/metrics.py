"""What an evaluation measures beside the confusion matrix, in one pass over the same predictions."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from segtailor.evaluation.boundary import BoundaryMetrics, BoundarySettings
from segtailor.evaluation.calibration import Agreement, Calibration


class Metrics:
    """The measures that were asked for; their sums stay on ``device`` until :meth:`result`.

    >>> metrics = Metrics(2, boundary=BoundarySettings())
    >>> metrics.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]]))
    >>> metrics.result()["boundary"]["miou"]
    1.0
    """

    def __init__(
        self,
        num_classes: int,
        device: str | torch.device = "cpu",
        *,
        boundary: BoundarySettings | None = None,
        calibration: bool = False,
        agreement: bool = False,
    ) -> None:
        self._boundary = BoundaryMetrics(num_classes, boundary, device) if boundary else None
        self._calibration = Calibration(num_classes, device) if calibration else None
        self._agreement = Agreement(num_classes, device) if agreement else None

    @property
    def _parts(self) -> dict[str, BoundaryMetrics | Calibration | Agreement]:
        parts = {"boundary": self._boundary, "calibration": self._calibration, "agreement": self._agreement}
        return {name: part for name, part in parts.items() if part is not None}

    def update(
        self,
        output: Tensor,
        target: Tensor,
        teacher_prediction: Tensor | None = None,
        *,
        prediction: Tensor | None = None,
    ) -> None:
        """Add images of one size.

        ``output`` is logits (B,K,H,W), or a prediction (B,H,W) where calibration is not asked for; ``prediction``
        spares an argmax of logits where it is known. ``target`` and ``teacher_prediction`` (B,H,W) are class indices;
        whatever is no class in ``target`` is void. Raises ValueError for an ``output`` or a teacher that is missing.
        """
        if prediction is None:
            prediction = output.argmax(1) if output.ndim == 4 else output
        if self._boundary:
            self._boundary.update(prediction, target)
        if self._calibration:
            if output.ndim != 4:
                raise ValueError("calibration needs logits (B,K,H,W), not a prediction")
            self._calibration.update(output, target, prediction)
        if self._agreement:
            if teacher_prediction is None:
                raise ValueError("agreement needs the teacher's prediction")
            self._agreement.update(prediction, target, teacher_prediction)

    def all_reduce(self) -> None:
        """Add up the sums of all processes, once; nothing without a process group."""
        parts = list(self._parts.values())
        if not parts or not (dist.is_available() and dist.is_initialized()):
            return
        total = torch.cat([part.state for part in parts])
        dist.all_reduce(total)
        for part, state in zip(parts, torch.split(total, [len(part.state) for part in parts]), strict=True):
            part.state.copy_(state)

    def result(self) -> dict[str, Any]:
        """Return a section of plain numbers for each measure that was asked for."""
        return {name: part.result() for name, part in self._parts.items()}
