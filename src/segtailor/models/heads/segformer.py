"""SegFormer's decoder (Xie et al. 2021, arXiv:2105.15203): each map to one width, all to the finest size, one 1x1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segtailor.models.heads.base import Head
from segtailor.models.heads.blocks import resize


class SegFormer(Head):
    """A linear layer per map, the results enlarged to the finest map and fused, coarsest first."""

    align_corners = False
    output_stride = 32
    fine_maps = 2
    has_aux = False

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__(channels, strides, num_classes, width)
        self.linears = nn.ModuleList(nn.Linear(count, width) for count in reversed(channels))
        # The bias is redundant in front of batch norm, but published checkpoints carry it.
        self.fuse = nn.Sequential(
            nn.Conv2d(len(channels) * width, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.add_classifier(num_classes, nn.Dropout2d(0.0))

    @staticmethod
    def default_width(channels: Sequence[int]) -> int:
        """Return 256; the larger MiT networks set 768."""
        return 256

    def decode(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the feature (B,width,h,w) at the finest map's size."""
        size = (stages[0].shape[-2], stages[0].shape[-1])
        levels = []
        for linear, stage in zip(self.linears, reversed(stages), strict=True):
            level = linear(stage.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, stage.shape[-2:])
            levels.append(resize(level, size, self.align_corners))
        return self.fuse(torch.cat(levels, dim=1))  # type: ignore[no-any-return]
