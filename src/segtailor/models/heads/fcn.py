"""FCN (Long et al. 2015, arXiv:1411.4038): one 3x3 convolution and a classifier; also every auxiliary head."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from segtailor.models.heads.base import Head
from segtailor.models.heads.blocks import conv3x3_norm_relu


class FCN(Head):
    """A 3x3 convolution on the last map of those it is given, then the classifier."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__(channels, strides, num_classes, width)
        self.block = conv3x3_norm_relu(channels[-1], width)
        self.add_classifier(num_classes, nn.Dropout(0.1))

    @staticmethod
    def default_width(channels: Sequence[int]) -> int:
        """Return a quarter of the map's channels, at least 8."""
        return max(channels[-1] // 4, 8)

    def decode(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the feature (B,width,h,w) at the last map's size."""
        return self.block(stages[-1])  # type: ignore[no-any-return]
