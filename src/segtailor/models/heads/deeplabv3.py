"""DeepLabV3 (Chen et al. 2017, arXiv:1706.05587): atrous spatial pyramid pooling on the last map."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from segtailor.models.heads.base import Head
from segtailor.models.heads.blocks import conv3x3_norm_relu, conv_norm_relu, pooled_conv_norm_relu


def atrous_rates(stride: int) -> tuple[int, int, int]:
    """Return the three dilations that cover the same pixels at any stride: 12, 24, 36 at stride 8.

    >>> atrous_rates(16)
    (6, 12, 18)
    """
    base = max(96 // stride, 1)
    return base, 2 * base, 3 * base


class AtrousPyramid(nn.Module):
    """1x1, three dilated 3x3 and a global-pool branch, concatenated and projected; (B,in,h,w) -> (B,width,h,w).

    ``dilated(in_channels, width, dilation=...)`` builds a dilated branch.
    """

    def __init__(
        self, in_channels: int, width: int, rates: Sequence[int], dilated: Callable[..., nn.Module] = conv3x3_norm_relu
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv_norm_relu(in_channels, width)])
        self.branches.extend(dilated(in_channels, width, dilation=rate) for rate in rates)
        self.pool = pooled_conv_norm_relu(in_channels, width, size=1)
        self.project = conv_norm_relu((len(rates) + 2) * width, width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected pyramid."""
        height, width = x.shape[-2:]
        pooled = self.pool(x).expand(-1, -1, height, width)  # what resizing a 1x1 map gives
        mixed: Tensor = self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1))
        return self.dropout(mixed)  # type: ignore[no-any-return]


class DeepLabV3(Head):
    """Atrous pyramid and a 3x3 convolution on the last map, at its stride (8 where the backbone can dilate)."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__(channels, strides, num_classes, width)
        self.pyramid = AtrousPyramid(channels[-1], width, atrous_rates(strides[-1]))
        self.block = conv3x3_norm_relu(width, width)
        self.add_classifier(num_classes, nn.Dropout(0.1))

    def decode(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the feature (B,width,h,w) at the last map's size."""
        return self.block(self.pyramid(stages[-1]))  # type: ignore[no-any-return]
