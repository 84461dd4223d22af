"""Counting pixels: the confusion matrix, and every figure that is read from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.files import VOID

SCALE = 2**24
"""Sums of fractions are kept as integers, so that batches and processes add up to the same last bit.

A confidence loses nothing that a float32 near 1 has, and 2**38 pixels fit, more than any data set has.
"""
MIOU_RULE = (
    "mIoU is the mean over classes of summed intersection over summed union, all images counted together; "
    "a class absent from both prediction and target is left out (miou_all counts it as 0)"
)


def count_images(prediction: Tensor, target: Tensor, num_classes: int) -> Tensor:
    """Count each (target, prediction) pair of each image, and each target value that is no class.

    Shapes: ``prediction`` and ``target`` (B,H,W), class indices, any integer type; the result is int64 (B,
    num_classes**2 + 256): the confusion matrix, rows target, flattened; then 256 bins, one a target value, that hold
    the pixels not scored (void is bin 255). Counts of images and of processes add up; nothing here waits for the
    device's values, so a wrong mask value is found later by :func:`check_counts`.

    torchmetrics' MulticlassConfusionMatrix takes two to three times as long (boolean selection) and 3 s to import.

    >>> count_images(torch.tensor([[[0, 1]], [[1, 1]]]), torch.tensor([[[0, 1]], [[0, 255]]]), 2)[:, :4].tolist()
    [[1, 0, 0, 1], [0, 1, 0, 0]]
    """
    cells = num_classes * num_classes
    rows = target.long()
    bins = torch.where(rows < num_classes, rows * num_classes + prediction, rows + cells)
    bins += torch.arange(len(rows), device=rows.device).view(-1, 1, 1) * (cells + 256)
    return tally(bins, len(rows) * (cells + 256)).view(-1, cells + 256)


def tally(index: Tensor, bins: int, values: Tensor | None = None) -> Tensor:
    """Count how often each of ``bins`` occurs in ``index``, or sum the integer ``values`` there; int64 (bins,).

    ``index`` has any shape and values below ``bins``. Unlike ``bincount`` on a GPU, which looks for the largest index
    first, it waits for no value of the device; on a CPU it is ``bincount``, which is faster there.

    >>> tally(torch.tensor([0, 2, 2]), 4).tolist()
    [1, 0, 2, 0]
    """
    index = index.flatten()
    if index.device.type == "cpu":  # weights are summed in double precision: exact for integers below 2**53
        weights = None if values is None else values.flatten().double()
        return torch.bincount(index, weights, bins).long()
    sums = torch.zeros(bins, dtype=torch.int64, device=index.device)
    values = torch.ones((), dtype=torch.int64, device=index.device).expand_as(index) if values is None else values
    return sums.scatter_add_(0, index.long(), values.flatten())


def check_counts(counts: Tensor, num_classes: int, where: str) -> None:
    """Raise SegtailorError when a target held a value that is neither a class nor void; ``where`` is named in it."""
    outside = counts[num_classes * num_classes :][:VOID].nonzero().flatten().tolist()
    if outside:
        value = outside[0]
        pixels = int(counts[num_classes * num_classes + value])
        raise SegtailorError(
            f"mask value {value} ({pixels} pixels) in {where} is outside the {num_classes} classes; "
            f"use 0 to {num_classes - 1} for classes and {VOID} for void"
        )


@dataclass
class EvaluationResult:
    """The counts of one evaluation; every figure is derived from ``confusion``.

    ``confusion`` is int64 (K,K), rows target, columns prediction, void pixels left out; ``images`` were scored in
    ``seconds`` (reading included). A class absent from both prediction and target has no IoU and no Dice (None).
    What was not asked for is None: ``per_image``, int32 (N,K,K), each image's own confusion matrix in data set order;
    and the sections of plain numbers that ``Metrics`` makes.
    """

    confusion: Tensor
    classes: tuple[str, ...]
    images: int = 0
    seconds: float = 0.0
    void_pixels: int = 0
    per_image: Tensor | None = None
    boundary: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    agreement: dict[str, Any] | None = None

    def __str__(self) -> str:
        """Return the scores as the command prints them."""
        from segtailor.evaluation.format import format_result

        return format_result(self)

    def _repr_html_(self) -> str:
        from segtailor.evaluation.format import html_result

        return html_result(self)

    @property
    def _hits(self) -> Tensor:
        return self.confusion.diagonal().double()

    @property
    def _target(self) -> Tensor:
        return self.confusion.sum(1).double()

    @property
    def _predicted(self) -> Tensor:
        return self.confusion.sum(0).double()

    @property
    def iou(self) -> list[float | None]:
        """Intersection over union of each class."""
        return ratios(self._hits, self._target + self._predicted - self._hits)

    @property
    def dice(self) -> list[float | None]:
        """Dice coefficient (F1) of each class."""
        return ratios(2 * self._hits, self._target + self._predicted)

    @property
    def accuracy(self) -> list[float | None]:
        """Share of each class's pixels that were found; None for a class absent from the target."""
        return ratios(self._hits, self._target)

    @property
    def miou(self) -> float:
        """Mean IoU over the classes present in prediction or target; 0 when nothing was scored."""
        return mean_present(self.iou)

    @property
    def miou_all(self) -> float:
        """Mean IoU over all classes, an absent one counting 0."""
        return sum(value or 0.0 for value in self.iou) / max(len(self.iou), 1)

    @property
    def pixel_accuracy(self) -> float:
        """Share of scored pixels that are right."""
        return float(self._hits.sum() / self._target.sum().clamp(min=1))

    @property
    def mean_accuracy(self) -> float:
        """Mean of the classes' accuracies over the classes present in the target."""
        return mean_present(self.accuracy)

    @property
    def mean_dice(self) -> float:
        """Mean Dice over the classes present in prediction or target."""
        return mean_present(self.dice)

    def to_dict(self) -> dict[str, Any]:
        """Return every figure as plain JSON values; a section that was not asked for is left out."""
        sections = {"boundary": self.boundary, "calibration": self.calibration, "agreement": self.agreement}
        return {
            "miou": self.miou,
            "miou_all": self.miou_all,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "mean_dice": self.mean_dice,
            "classes": list(self.classes),
            "iou": self.iou,
            "accuracy": self.accuracy,
            "dice": self.dice,
            "confusion": self.confusion.tolist(),
            "images": self.images,
            "void_pixels": self.void_pixels,
            "seconds": self.seconds,
            "rule": MIOU_RULE,
            **{name: section for name, section in sections.items() if section is not None},
        }


def ratios(numerator: Tensor, denominator: Tensor) -> list[float | None]:
    """Divide element by element; None where the denominator is 0."""
    pairs = zip(numerator.tolist(), denominator.tolist(), strict=True)
    return [above / below if below > 0 else None for above, below in pairs]


def mean_present(values: list[float | None]) -> float:
    """Average what is not None; 0 when nothing is left."""
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else 0.0
