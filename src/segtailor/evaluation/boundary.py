"""Scores near label boundaries: Boundary IoU, boundary F1, and scores by distance from a boundary.

The mask of a class is its valid pixels: void is cut out of the prediction as it is out of the target, so what touches
void has a boundary there in both, and a perfect prediction scores 1. Void pixels are scored nowhere.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.evaluation.confusion import SCALE, EvaluationResult, mean_present, ratios, tally
from segtailor.files import VOID

# Dilations are ORs of shifted integer planes with one bit a class: exact, few for any radius (a window doubles
# with every OR), and no plane per class.
BITS = 31
"""Classes that one int32 plane holds."""


def label_edges(labels: Tensor) -> Tensor:
    """Mark the pixels of ``labels`` (...,H,W) with another label among their 8 neighbors; uint8 (...,H,W).

    >>> label_edges(torch.tensor([[[0, 0, 0, 1, 1]]])).tolist()
    [[[0, 0, 1, 1, 0]]]
    """
    height, width = labels.shape[-2:]
    edges = torch.zeros(labels.shape, dtype=torch.uint8, device=labels.device)
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = slice(0, height - down), slice(max(0, -right), width - max(0, right))
        there = slice(down, height), slice(max(0, right), width + min(0, right))
        differs = (labels[(..., *here)] != labels[(..., *there)]).view(torch.uint8)
        edges[(..., *here)] |= differs
        edges[(..., *there)] |= differs
    return edges


def dilate_square(plane: Tensor, start: int, stop: int) -> Tensor:
    """Return ``plane`` (...,H,W), already dilated by ``start`` pixels in Chebyshev distance, dilated by ``stop``.

    Equal to ``stop - start`` dilations with a 3 x 3 square.

    >>> dilate_square(torch.tensor([[[0, 0, 4, 0, 0, 1]]]), 0, 1).tolist()
    [[[0, 4, 4, 4, 1, 1]]]
    """
    return _spread(_spread(plane, start, stop, -1), start, stop, -2)


def dilate_disk(plane: Tensor, radius: int) -> Tensor:
    """Return ``plane`` (...,H,W) dilated by ``radius`` pixels in Euclidean distance.

    >>> dilate_disk(torch.tensor([[[0, 0, 0], [0, 4, 0], [0, 0, 1]]]), 1).tolist()
    [[[0, 4, 0], [4, 4, 5], [0, 5, 1]]]
    """
    near = torch.zeros_like(plane)
    reach = 0
    for step in range(radius, -1, -1):  # rows of the disk from the narrow outer ones inwards
        half = math.isqrt(radius * radius - step * step)
        plane, reach = _spread(plane, reach, half, -1), half
        _or_shifted(near, plane, step, -2)
    return near


def class_bits(labels: Tensor, marked: Tensor, first: int) -> Tensor:
    """Return int32 (...,H,W): bit ``label - first`` where ``marked`` is 1, for the BITS classes from ``first`` on.

    >>> class_bits(torch.tensor([[[0, 1, 2]]]), torch.tensor([[[1, 0, 1]]]), 0).tolist()
    [[[1, 0, 4]]]
    """
    shift = labels.int() - first
    held = (shift >= 0) & (shift < BITS) & (marked == 1)
    return held.int() << shift.clamp_(0, BITS - 1)


def has_class(bits: Tensor, labels: Tensor, first: int) -> Tensor:
    """Return int32 (...,H,W): 1 where ``bits`` of :func:`class_bits` holds the pixel's own label.

    >>> has_class(torch.tensor([[[3, 1]]]).int(), torch.tensor([[[1, 1]]]), 0).tolist()
    [[[1, 0]]]
    """
    shift = labels.int() - first
    held = (shift >= 0) & (shift < BITS)
    return (bits >> shift.clamp_(0, BITS - 1)) & held


def _spread(plane: Tensor, start: int, stop: int, dim: int) -> Tensor:
    """Dilate along one dimension from half width ``start`` to ``stop``."""
    while start < stop:
        # no further, or a pixel beyond the image's edge would have to pass on its values
        step = min(start + 1, stop - start)
        wider = plane.clone()
        _or_shifted(wider, plane, step, dim)
        plane, start = wider, start + step
    return plane


def _or_shifted(out: Tensor, plane: Tensor, step: int, dim: int) -> None:
    """Add ``plane``, moved by ``step`` both ways along ``dim``, to ``out`` in place."""
    rest = plane.shape[dim] - step
    if rest > 0:
        out.narrow(dim, step, rest).bitwise_or_(plane.narrow(dim, 0, rest))
        if step:
            out.narrow(dim, 0, rest).bitwise_or_(plane.narrow(dim, step, rest))


BOUNDARY_RULE = (
    "masks hold valid pixels only, so void counts as another label where boundaries are drawn, and is scored nowhere; "
    "counts of all images are summed first; a class absent from both prediction and target is left out. "
    "Boundary IoU: IoU of the pixels within d = max(1, round(ratio * image diagonal)) of a pixel outside their mask, "
    "counted in 3 x 3 steps (Chebyshev); everything beyond the image's edge is outside every mask. "
    "Boundary F1: contour pixels (of a mask, with one of 8 neighbors outside it, the image's edge not counting) that "
    "have a contour pixel of the other map's mask of that class within the tolerance (Euclidean); per_image averages "
    "each class's F1 over the images where either map has a contour of it. "
    "Distance of a pixel: Chebyshev, to the nearest pixel of another label in the target, so 1 touches a boundary"
)


@dataclass(frozen=True)
class BoundarySettings:
    """What is measured near boundaries.

    ``ratio`` is the width of Boundary IoU's region as a share of the image diagonal; ``tolerances`` of the boundary F1
    and ``widths`` of the trimaps are in pixels of the masks, ascending. Raises SegtailorError for other values.
    """

    ratio: float = 0.02
    tolerances: tuple[int, ...] = (1, 3, 5)
    widths: tuple[int, ...] = (1, 2, 4, 8, 16, 32)

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise SegtailorError(f"the boundary ratio is a share of the image diagonal, above 0, not {self.ratio}")
        for name, values in (("tolerances", self.tolerances), ("widths", self.widths)):
            if not values or values[0] < 1 or any(a >= b for a, b in pairwise(values)):
                raise SegtailorError(f"boundary {name} are ascending whole pixels from 1 on, not {list(values)}")


def boundary_distance(height: int, width: int, ratio: float = 0.02) -> int:
    """Return the width of Boundary IoU's region in pixels.

    >>> boundary_distance(1024, 2048)
    46
    """
    return max(1, round(ratio * math.hypot(height, width)))


class BoundaryMetrics:
    """Sums over images, all in ``state`` (int64, on the device), of which :meth:`result` makes the figures.

    Boundary IoU: Cheng et al., CVPR 2021, by the rule of their code (a one-pixel frame of background around the image,
    then d erosions by 3 x 3). Boundary F1: Csurka et al., BMVC 2013, matched by dilation with a disk as in Perazzi et
    al., CVPR 2016. Trimap: Kohli et al., IJCV 2009. The exact rules are BOUNDARY_RULE.
    """

    def __init__(
        self, num_classes: int, settings: BoundarySettings | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.num_classes = num_classes
        self.settings = settings or BoundarySettings()
        tolerances, bands = len(self.settings.tolerances), len(self.settings.widths) + 1
        # each pixel's band, whether it is in the two boundary regions, its two labels; the last slot takes void
        pixels = bands * 4 * num_classes**2 + 1
        contours = 2 * num_classes * (tolerances + 1)
        scores = num_classes * (tolerances + 1)
        self.state = torch.zeros(pixels + contours + scores, dtype=torch.int64, device=device)
        self._pixels, self._contours, self._scores = torch.split(self.state, [pixels, contours, scores])

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add images of one size: ``prediction`` and ``target`` (B,H,W), class indices; others in target are void."""
        labels = torch.stack([prediction.to(torch.uint8), target.to(torch.uint8)])
        labels.masked_fill_(target >= self.num_classes, VOID)
        together = 1 if labels.device.type == "cpu" else len(target)  # the planes of one image fit a CPU's cache
        for part in torch.split(labels, together, 1):
            self._add(part)

    def _add(self, labels: Tensor) -> None:
        edges = label_edges(labels)
        self._count_pixels(labels, edges)
        self._count_contours(labels, edges)

    def _count_pixels(self, labels: Tensor, edges: Tensor) -> None:
        """Count pixels by band of the target, by boundary region and by both labels; all (2,B,H,W), target last."""
        widths = self.settings.widths
        depth = boundary_distance(labels.shape[-2], labels.shape[-1], self.settings.ratio)
        found, truth = labels
        band = torch.full_like(truth, len(widths))
        near, reach = edges[1], 1
        for width in sorted({*widths, depth}):
            # the nearest pixel of another label is one step beyond the nearest edge pixel
            near, reach = dilate_square(near, reach - 1, width - 1), width
            if width in widths:
                band -= near
            if width == depth:
                truth_region = _add_frame(near, depth)
        found_region = _add_frame(dilate_square(edges[0], 0, depth - 1), depth)
        index = (band.int() * 2 + found_region) * 2 + truth_region
        index = (index * self.num_classes + truth) * self.num_classes + found
        last = len(self._pixels) - 1
        self._pixels += tally(index.masked_fill_(truth == VOID, last), last + 1)

    def _count_contours(self, labels: Tensor, edges: Tensor) -> None:
        """Count contour pixels by side, image, class and the number of tolerances within which they have a match."""
        levels = len(self.settings.tolerances) + 1
        level = torch.zeros(labels.shape, dtype=torch.int32, device=labels.device)
        for first in range(0, self.num_classes, BITS):
            bits = class_bits(labels, edges, first)
            for tolerance in self.settings.tolerances:
                level += has_class(dilate_disk(bits, tolerance).flip(0), labels, first)
        images = labels.shape[1]
        rows = torch.arange(2 * images, dtype=torch.int32, device=labels.device).view(2, images, 1, 1)
        index = (rows * self.num_classes + labels) * levels + level
        last = 2 * images * self.num_classes * levels
        index.masked_fill_((edges == 0) | (labels == VOID), last)
        counts = tally(index, last + 1)[:-1].view(2, images, self.num_classes, levels)
        self._contours += counts.sum(1).flatten()
        f1, present = _f1(counts)
        fixed = torch.cat([(f1 * SCALE).round().long(), present.unsqueeze(-1).long()], -1)
        self._scores += fixed.sum(0).flatten()

    def distance_confusion(self) -> Tensor:
        """Return int64 (widths + 1, K, K): the confusion matrix, rows target, of each band between the widths."""
        return self._pixels[:-1].view(-1, 4, self.num_classes, self.num_classes).sum(1)

    def result(self) -> dict[str, Any]:
        """Return all figures as plain numbers; None for a class, or a band, that holds nothing."""
        pixels = self._pixels[:-1].view(-1, 2, 2, self.num_classes, self.num_classes).sum(0).cpu()
        hits = pixels[1, 1].diagonal()
        iou = ratios(hits, pixels[1].sum((0, 1)) + pixels[:, 1].sum((0, 2)) - hits)
        regions = {"ratio": self.settings.ratio, "miou": mean_present(iou), "iou": iou}
        return {**regions, "f1": self._contour_scores(), **self._bands(), "rule": BOUNDARY_RULE}

    def _contour_scores(self) -> list[dict[str, Any]]:
        counts = self._contours.view(2, self.num_classes, -1).cpu()
        matched = counts.flip(-1).cumsum(-1)  # a pixel matched within one tolerance is within the larger ones
        total = matched[..., -1]
        scores = self._scores.view(self.num_classes, -1).cpu().double()
        rows = []
        for place, tolerance in enumerate(self.settings.tolerances):
            precision = ratios(matched[0, :, place], total[0])
            recall = ratios(matched[1, :, place], total[1])
            per_image = ratios(scores[:, place] / SCALE, scores[:, -1])
            f1 = [
                None if p is None and r is None else 2 * p * r / (p + r) if p and r else 0.0
                for p, r in zip(precision, recall, strict=True)
            ]
            means = {"mean_f1": mean_present(f1), "mean_f1_per_image": mean_present(per_image)}
            classes = {"f1": f1, "precision": precision, "recall": recall, "f1_per_image": per_image}
            rows.append({"tolerance": tolerance, **means, **classes})
        return rows

    def _bands(self) -> dict[str, Any]:
        bands = self.distance_confusion().cpu()
        near = bands.cumsum(0)
        widths = self.settings.widths
        limits = zip((0, *widths), (*widths, None), strict=True)
        return {
            "trimap": [{"width": width, **_scores(near[place])} for place, width in enumerate(widths)],
            "interior": [{"beyond": width, **_scores(near[-1] - near[place])} for place, width in enumerate(widths)],
            "distance": [
                {"above": above, "up_to": up_to, **_scores(bands[place])} for place, (above, up_to) in enumerate(limits)
            ],
        }


def _add_frame(marked: Tensor, depth: int) -> Tensor:
    """Mark the pixels within ``depth`` of the image's edge too."""
    framed = torch.ones_like(marked)
    inner = (..., slice(depth, -depth), slice(depth, -depth))
    framed[inner] = marked[inner]
    return framed


def _f1(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return F1 (B,K,T) and presence (B,K) of contours counted (2,B,K,T+1) by side, image, class and level."""
    matched = counts.flip(-1).cumsum(-1)
    total = matched[..., -1:]
    precision, recall = matched[..., :-1].float() / total.clamp(min=1)
    tiny = torch.finfo(precision.dtype).tiny
    return 2 * precision * recall / (precision + recall).clamp(min=tiny), total.sum((0, 3)) > 0


def _scores(confusion: Tensor) -> dict[str, Any]:
    result, pixels = EvaluationResult(confusion, ()), int(confusion.sum())
    means = {"miou": result.miou, "pixel_accuracy": result.pixel_accuracy} if pixels else {}
    return {"pixels": pixels, "miou": None, "pixel_accuracy": None, **means, "iou": result.iou}
