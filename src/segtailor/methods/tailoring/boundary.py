"""Label pixels near another class, which the terms on logits may count more than once.

A pixel that counts more often weighs more in the softmaxes over space and in the tailoring's means alike, and both stay
what they are: probabilities, and means of logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segtailor.losses import valid_counts
from segtailor.methods.bpkd import over_window

VOID = 255


def boundary_band(target: Tensor, num_classes: int, width: int) -> Tensor:
    """Return ``target`` (B,H,W) with void wherever no pixel of another class is within ``width`` pixels (Chebyshev).

    Void, which is every value from ``num_classes`` up, makes no boundary and is in no band. Returns uint8 (B,H,W).

    >>> boundary_band(torch.tensor([[[0, 0, 0, 1, 255, 255, 2]]]), 3, 2).tolist()
    [[[255, 0, 0, 1, 255, 255, 255]]]
    """
    labels = torch.where(target < num_classes, target, VOID).to(torch.uint8)
    void = labels == VOID
    window = 2 * width + 1
    least = over_window(labels, window, torch.minimum, VOID)
    most = over_window(labels.masked_fill(void, 0), window, torch.maximum, 0)
    return labels.masked_fill_(least >= most, VOID)


def weigh_cells(target: Tensor, band: Tensor | None, boundary: float, size: tuple[int, int]) -> Tensor:
    """Return the valid pixels of each cell, those of ``band`` counted 1 + ``boundary`` times: float32 (B,h*w).

    >>> weigh_cells(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[255, 0, 1, 255]]]), 2.0, (1, 2)).tolist()
    [[4.0, 4.0]]
    """
    valid = valid_counts(target, size)
    return valid if band is None else valid + boundary * valid_counts(band, size)
