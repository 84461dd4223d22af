"""PSPNet (Zhao et al. 2017, arXiv:1612.01105): pyramid pooling on the last map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segtailor.models.heads.base import Head
from segtailor.models.heads.blocks import conv3x3_norm_relu, pooled_conv_norm_relu, resize

POOL_SIZES = (1, 2, 3, 6)


class PSPNet(Head):
    """Average pools to 1, 2, 3 and 6 cells a side, each reduced to a quarter of the channels, beside the map itself."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__(channels, strides, num_classes, width)
        reduced = max(channels[-1] // 4, 1)
        self.pools = nn.ModuleList(pooled_conv_norm_relu(channels[-1], reduced, size) for size in POOL_SIZES)
        self.block = conv3x3_norm_relu(channels[-1] + len(POOL_SIZES) * reduced, width)
        self.add_classifier(num_classes, nn.Dropout(0.1))

    @staticmethod
    def default_width(channels: Sequence[int]) -> int:
        """Return 512 for a wide backbone, 128 else, as the published benchmark has it."""
        return 512 if channels[-1] >= 1024 else 128

    def decode(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the feature (B,width,h,w) at the last map's size."""
        x = stages[-1]
        size = (x.shape[-2], x.shape[-1])
        pooled = [resize(pool(x), size, self.align_corners) for pool in self.pools]
        return self.block(torch.cat([x, *pooled], dim=1))  # type: ignore[no-any-return]
