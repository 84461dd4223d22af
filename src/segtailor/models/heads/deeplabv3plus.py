"""DeepLabV3+ (Chen et al. 2018, arXiv:1802.02611): a separable atrous pyramid, refined with the finest map."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segtailor.models.heads.base import Head
from segtailor.models.heads.blocks import conv_norm_relu, resize, separable_conv_norm_relu
from segtailor.models.heads.deeplabv3 import AtrousPyramid, atrous_rates


class DeepLabV3Plus(Head):
    """Separable atrous pyramid on the last map, enlarged and mixed with the finest map (stride 4 as a rule)."""

    output_stride = 16
    fine_maps = 1

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__(channels, strides, num_classes, width)
        detail = min(48, channels[0])
        rates = atrous_rates(strides[-1])
        self.pyramid = AtrousPyramid(channels[-1], width, rates, separable_conv_norm_relu)
        self.detail = conv_norm_relu(channels[0], detail)
        self.block = nn.Sequential(
            separable_conv_norm_relu(width + detail, width), separable_conv_norm_relu(width, width)
        )
        self.add_classifier(num_classes, nn.Dropout(0.1))

    def decode(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the feature (B,width,h,w) at the finest map's size."""
        size = (stages[0].shape[-2], stages[0].shape[-1])
        enlarged = resize(self.pyramid(stages[-1]), size, self.align_corners)
        return self.block(torch.cat([enlarged, self.detail(stages[0])], dim=1))  # type: ignore[no-any-return]
