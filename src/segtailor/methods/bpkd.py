"""Boundary-privileged distillation: near the labels' edges pixel by pixel, elsewhere channel by channel."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, field_validator
from torch import Tensor

from segtailor.files import VOID
from segtailor.losses import Step, channel_kl, class_kl, full_precision, recomputed, to_grid, valid_counts
from segtailor.methods.base import Method, MethodOptions, option
from segtailor.models.network import SegOutput

READING = "BPKD, as a third party reads it"
BLOCK = 16
"""Classes whose masks are made at a time; a mask has label size and one byte a pixel."""


class BoundaryPrivilegedOptions(MethodOptions):
    """Options of ``bpkd``."""

    body: NonNegativeFloat = option(20.0, "weight of the term away from edges; 0 turns it off", source=READING)
    edge: NonNegativeFloat = option(50.0, "weight of the term at edges; 0 turns it off", source=READING)
    alpha: PositiveFloat = option(2.0, "weight of each class in the edge term", source=READING)
    temperature: PositiveFloat = option(1.0, "divides the masked logits before both softmaxes", source=READING)
    edge_width: int = option(
        7, "side of the window of dilation and erosion, in label pixels; odd", ge=3, source=READING
    )

    @field_validator("edge_width")
    @classmethod
    def _is_odd(cls, width: int) -> int:
        if width % 2 == 0:
            raise ValueError("Input should be odd, so that the window has a center")
        return width


class BoundaryPrivileged(Method[BoundaryPrivilegedOptions]):
    """KL over space on logits away from the labels' edges, KL over classes at them (Liu et al., WACV 2024).

    Reconstructed: the authors' training code is not public, the formula is a third party's reading. A label pixel is an
    edge pixel of class c where dilation minus erosion of c's mask is 1: its window holds both c and another class. Void
    pixels, and those beyond the image, are neither. ``m`` is the share of edge pixels among a cell's valid ones.

    Term ``body`` is the channel-wise KL on ``(1 - m) logits``. Term ``edge`` takes at each cell the KL over classes on
    ``m logits``, all K of them; each class averages it, weighed by its ``m``, over the cells that its edges touch; the
    classes of an image are summed and images averaged. The published exponent or factor "alpha 2" is read as a factor,
    the same for all classes. Cells count by their valid pixels.

        body = T^2 mean_bc KL(softmax_x((1 - m) t / T) || softmax_x((1 - m) s / T)), m_c(x) = share of edge pixels
        edge = alpha mean_b sum_c mean_{x: m_c(x) > 0} m_c(x) T^2 KL(softmax_k(m t / T) || softmax_k(m s / T))

    - Published figures: Cityscapes, PSPNet-R101 to R18: 77.57, alone 74.23 (BPKD's README; the loss here is
      reconstructed)
    - Limitations: labels with rough or missing outlines (its edges are the labels'), and images that are mostly void;
      masks are made at label size, so many classes on large crops take time and memory
    - Source: BPKD, Liu et al., WACV 2024 (arXiv 2306.08075); reconstructed, no training code is public
    """

    name = "bpkd"
    summary = "boundary-privileged: KL over classes at the labels' edges, over space elsewhere"
    labels = "classes"

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the terms whose weight is not 0."""
        options = self.options
        terms: dict[str, Tensor] = {}
        if not (options.body or options.edge):
            return terms
        size = student.logits.shape[-2:]
        guide = to_grid(teacher.logits, size)
        edges, valid = edge_shares(target, self.num_classes, size, options.edge_width, guide.dtype)
        if options.body:
            terms["body"] = options.body * recomputed(
                body_divergence, student.logits, guide, edges, valid, options.temperature
            )
        if options.edge:
            value = recomputed(edge_divergence, student.logits, guide, edges, valid, options.temperature)
            terms["edge"] = options.edge * options.alpha * value
        return terms


def body_divergence(student: Tensor, teacher: Tensor, edges: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """Channel-wise KL on logits times ``1 - edges``; all (B,K,h,w), ``valid`` (B,h*w)."""
    body = 1 - edges
    return channel_kl(full_precision(student) * body, teacher * body, temperature, valid.unsqueeze(1))


def edge_divergence(student: Tensor, teacher: Tensor, edges: Tensor, valid: Tensor, temperature: float) -> Tensor:
    """KL over classes on logits times ``edges``: summed over classes, each its mean over its edge cells, per image."""
    cells = class_kl(full_precision(student) * edges, teacher * edges, temperature).flatten(1)
    shares = edges.flatten(2)
    total = torch.einsum("bkn,bn->bk", shares, cells * valid)
    count = torch.einsum("bkn,bn->bk", (shares > 0).to(shares.dtype), valid)
    return (total / count.clamp(min=1)).sum(1).mean()


def edge_shares(
    target: Tensor, num_classes: int, size: Sequence[int], width: int, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return each class's share of edge pixels among a cell's valid ones (B,K,h,w), and their number (B,h*w).

    >>> shares, valid = edge_shares(torch.tensor([[[0, 0, 0, 1, 1, 255]]]), 2, (1, 3), 3)
    >>> shares.tolist(), valid.tolist()
    ([[[[0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]]], [[2.0, 2.0, 1.0]])
    """
    labels = torch.where(target < num_classes, target, VOID).to(torch.uint8)
    void = labels == VOID
    least = over_window(labels, width, torch.minimum, VOID)
    most = over_window(labels.masked_fill(void, 0), width, torch.maximum, 0)
    several = ((least < most) & ~void).unsqueeze(1)  # the window holds two classes
    counts = []
    for first in range(0, num_classes, BLOCK):
        classes = torch.arange(first, min(first + BLOCK, num_classes), dtype=torch.uint8, device=labels.device)
        planes = labels.unsqueeze(1) == classes.view(1, -1, 1, 1)
        counts.append(count_in_cells(over_window(planes, width, torch.logical_or, 0) & several, size))
    valid = valid_counts(labels, size).to(dtype)
    return torch.cat(counts, 1) / valid.view(len(valid), 1, *size).clamp(min=1), valid


def over_window(planes: Tensor, width: int, combine: Callable[[Tensor, Tensor], Tensor], outside: int) -> Tensor:
    """Combine the ``width`` x ``width`` window around every pixel, in logarithmically many shifts along each axis.

    Works on bytes and bools, which max-pooling does not take. Pixels beyond the border are ``outside``.

    >>> over_window(torch.tensor([[0, 1, 0, 0]]), 3, torch.maximum, 0).tolist()
    [[1, 1, 1, 0]]
    """
    reach = width // 2
    planes = F.pad(planes, (reach, reach, reach, reach), value=outside)
    for axis in (-1, -2):
        covered = 1
        while covered < width:
            step = min(covered, width - covered)
            length = planes.shape[axis] - step
            planes = combine(planes.narrow(axis, 0, length), planes.narrow(axis, step, length))
            covered += step
    return planes


def count_in_cells(planes: Tensor, size: Sequence[int]) -> Tensor:
    """Count the true pixels of bool ``planes`` (B,C,H,W) in each cell of a grid: int32 (B,C,h,w).

    Pixel (i, j) belongs to cell (floor(i*h/H), floor(j*w/W)), as everywhere else.
    """
    batch, channels, height, width = planes.shape
    row = torch.arange(height, device=planes.device) * size[0] // height
    column = torch.arange(width, device=planes.device) * size[1] // width
    strips = torch.zeros(batch, channels, size[0], width, dtype=torch.int16, device=planes.device)
    strips.index_add_(2, row, planes.to(torch.int16))
    counts = torch.zeros(batch, channels, *size, dtype=torch.int32, device=planes.device)
    return counts.index_add_(3, column, strips.to(torch.int32))
