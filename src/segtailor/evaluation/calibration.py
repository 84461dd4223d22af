"""Calibration error, Brier score and teacher-student agreement."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segtailor.evaluation.confusion import SCALE, ratios, tally

CALIBRATION_RULE = (
    "over valid pixels at the masks' own size. Expected calibration error: bins of equal width over the confidence "
    "(softmax) of the predicted class, upper ends included; the mean of |accuracy - mean confidence| over bins, each "
    "weighted by its pixels. Brier score: mean over pixels of the squared distance between the class probabilities and "
    "the one-hot target, summed over classes: 0 is best, 2 worst"
)
CHUNK = 2**22
"""Probabilities made at a time: a copy of all logits would double the memory of an evaluation."""


class Calibration:
    """Sums over pixels, all in ``state`` (int64, on the device), of which :meth:`result` makes the figures.

    Expected calibration error: Guo et al., ICML 2017.
    """

    def __init__(self, num_classes: int, device: str | torch.device = "cpu", bins: int = 15) -> None:
        self.num_classes = num_classes
        self.bins = bins
        # for each bin: pixels that are wrong, pixels that are right, the sum of confidences; then the Brier sum
        self.state = torch.zeros(3 * bins + 1, dtype=torch.int64, device=device)
        self._pixels, self._confidence, self._brier = torch.split(self.state, [2 * bins, bins, 1])

    def update(self, logits: Tensor, target: Tensor, prediction: Tensor | None = None) -> None:
        """Add images: ``logits`` (B,K,H,W), ``target`` (B,H,W), void from K up, ``prediction`` (B,H,W) if known."""
        prediction = logits.argmax(1) if prediction is None else prediction
        images, classes, height, width = logits.shape
        rows = max(1, CHUNK // (classes * width))
        for image in range(images):
            for top in range(0, height, rows):
                here = slice(top, top + rows)
                self._add(logits[image, :, here], target[image, here], prediction[image, here])

    def _add(self, logits: Tensor, target: Tensor, prediction: Tensor) -> None:
        void = target >= self.num_classes
        probability = logits.float().softmax(0)
        confidence = probability.amax(0)
        place = (confidence * self.bins).ceil_().long().sub_(1).clamp_(0, self.bins - 1)
        right = prediction == target
        self._pixels += tally((place * 2 + right).masked_fill_(void, 2 * self.bins), 2 * self.bins + 1)[:-1]
        fixed = (confidence * SCALE).round_().long()
        self._confidence += tally(place.masked_fill_(void, self.bins), self.bins + 1, fixed)[:-1]
        of_target = probability.gather(0, target.clamp(max=self.num_classes - 1).long().unsqueeze(0)).squeeze(0)
        squares = probability.square_().sum(0) - 2 * of_target + 1
        self._brier += (squares * SCALE).round_().long().masked_fill_(void, 0).sum()

    def result(self) -> dict[str, Any]:
        """Return all figures as plain numbers; None where no pixel was valid, or none lay in the bin."""
        wrong, right = self._pixels.view(self.bins, 2).cpu().unbind(1)
        pixels = wrong + right
        confidences = self._confidence.cpu().double() / SCALE
        total = int(pixels.sum())
        rows = zip(ratios(confidences, pixels), ratios(right, pixels), pixels.tolist(), strict=True)
        return {
            "ece": float((right - confidences).abs().sum()) / total if total else None,
            "brier": self._brier.item() / SCALE / total if total else None,
            "pixels": total,
            "bins": [
                {"above": place / self.bins, "confidence": mean, "accuracy": share, "pixels": count}
                for place, (mean, share, count) in enumerate(rows)
            ],
            "rule": CALIBRATION_RULE,
        }


class Agreement:
    """Counts of pixels by whether teacher and student are right and agree, in ``state`` (int64, on the device)."""

    def __init__(self, num_classes: int, device: str | torch.device = "cpu") -> None:
        self.num_classes = num_classes
        # teacher right: student wrong, right; teacher wrong: student wrong otherwise, right, wrong as the teacher is
        self.state = torch.zeros(5, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, target: Tensor, teacher_prediction: Tensor) -> None:
        """Add images; all (B,H,W), class indices, in ``target`` void from K up."""
        right = prediction == target
        mistaken = teacher_prediction != target
        index = torch.where(mistaken, 2, 0) + right + 2 * (mistaken & (prediction == teacher_prediction)).int()
        self.state += tally(index.masked_fill_(target >= self.num_classes, 5), 6)[:-1]

    def result(self) -> dict[str, Any]:
        """Return shares of valid pixels as plain numbers; None where there is nothing to share."""
        counts = self.state.tolist()
        total, mistakes, right = sum(counts), sum(counts[2:]), sum(counts[:2])
        return {
            "agreement": (counts[1] + counts[4]) / total if total else None,
            "teacher_accuracy": right / total if total else None,
            "agreement_where_teacher_is_right": counts[1] / right if right else None,
            "agreement_where_teacher_is_wrong": counts[4] / mistakes if mistakes else None,
            "student_right_where_teacher_is_wrong": counts[3] / mistakes if mistakes else None,
            "pixels": total,
        }
