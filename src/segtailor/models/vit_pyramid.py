"""Plain vision transformers as backbones: four maps of one stride, and finer ones for heads that want them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

MAPS = 4
FINEST = 4
"""The least stride to which a map is enlarged."""


def is_plain(net: Any) -> bool:
    """Return whether a timm feature network reads the blocks of a transformer that has one stride."""
    strides = set(net.feature_info.reduction())
    return len(strides) == 1 and hasattr(net, "out_indices") and hasattr(getattr(net, "model", None), "blocks")


def evenly_spaced(blocks: int) -> list[int]:
    """Return the blocks whose tokens are the maps: at even depths, the last among them.

    >>> evenly_spaced(12), evenly_spaced(3)
    ([2, 5, 8, 11], [0, 1, 2])
    """
    maps = min(MAPS, blocks)
    return [blocks * (part + 1) // maps - 1 for part in range(maps)]


class TokenPyramid(nn.Module):
    """Enlarges the first of the maps (B,C,h,w) 4 times and the second twice, where that leaves a stride of at least 4.

    By transposed convolutions, as in ViTDet's simple feature pyramid (Li et al. 2022, arXiv:2203.16527), on blocks of
    different depth as in BEiT's segmentation (arXiv:2106.08254). No more than ``fine`` maps are enlarged, so that none
    has parameters that nobody uses. ``channels`` and ``strides`` describe what comes out.
    """

    def __init__(self, channels: int, stride: int, maps: int, fine: int = 2) -> None:
        super().__init__()
        fitting = (factor for factor in (4, 2) if stride % factor == 0 and stride // factor >= FINEST)
        first = next(fitting, 1)
        factors = [*[first, min(first, 2)][:fine], *[1] * maps][:maps]
        self.enlarge = nn.ModuleList(_enlarge(channels, factor) for factor in factors)
        self.channels = [channels // factor for factor in factors]
        self.strides = [stride // factor for factor in factors]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return the maps, finest first."""
        return [enlarge(item) for enlarge, item in zip(self.enlarge, maps, strict=True)]


def _enlarge(channels: int, factor: int) -> nn.Module:
    half = channels // 2
    if factor == 1:
        return nn.Identity()
    if factor == 2:
        return nn.ConvTranspose2d(channels, half, 2, stride=2)
    return nn.Sequential(
        nn.ConvTranspose2d(channels, half, 2, stride=2),
        nn.BatchNorm2d(half),
        nn.GELU(),
        nn.ConvTranspose2d(half, half // 2, 2, stride=2),
    )
