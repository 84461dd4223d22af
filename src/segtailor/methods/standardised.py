"""Logit standardisation: each cell's logits at mean 0 and deviation 1 over the classes (Sun et al., CVPR 2024)."""

from __future__ import annotations

from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.losses import full_precision

DESCRIPTION = "bring each cell's logits to mean 0 and deviation 1 over the classes, in both networks"
"""What the option ``standardise`` of ``kd`` and ``dist`` does."""


def standardised(logits: Tensor, eps: float = 1e-7) -> Tensor:
    """Return ``(logits - mean_k) / (eps + std_k)`` of (B,K,h,w), the deviation unbiased; constant cells give zeros.

    >>> import torch
    >>> standardised(torch.tensor([[[[3.0]], [[5.0]], [[7.0]]]])).flatten().round().tolist()
    [-1.0, 0.0, 1.0]
    """
    values = full_precision(logits)
    # The deviation of a constant cell has gradient 0, not infinity, in PyTorch.
    return (values - values.mean(1, keepdim=True)) / (eps + values.std(1, keepdim=True))


def check_classes(method: str, num_classes: int) -> None:
    """Raise SegtailorError for two classes, of which standardisation leaves a sign without a gradient."""
    if num_classes < 3:
        raise SegtailorError(
            f"method '{method}', option 'standardise': two classes leave only the sign of the logits; set it to false"
        )
