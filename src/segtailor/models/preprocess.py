"""From raw RGB pixels to what a network was trained on; each model carries its own."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

ChannelOrder = Literal["rgb", "bgr"]


class Preprocess(nn.Module):
    """Scale, reorder and normalise a raw RGB batch: ``(images * scale - mean) / std``.

    Input: (B,3,H,W), uint8 or float in 0..255, RGB. Output: the same shape, float. ``mean`` and ``std`` are given in
    the network's own channel order. ``size_multiple`` is the multiple that height and width must have; evaluation and
    prediction pad to it and crop after upsampling.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        scale: float = 1 / 255,
        channel_order: ChannelOrder = "rgb",
        size_multiple: int = 1,
    ) -> None:
        super().__init__()
        # Kept as numbers too, so that the spec is exact whatever the module's precision and device.
        self._mean, self._std = [float(value) for value in mean], [float(value) for value in std]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.scale = scale
        self.channel_order: ChannelOrder = channel_order
        self.size_multiple = size_multiple

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised batch (B,3,H,W) of raw RGB ``images`` (B,3,H,W)."""
        images = images.to(self.mean.dtype)
        if self.channel_order == "bgr":
            images = images.flip(1)
        return (images * self.scale - self.mean) / self.std

    def spec(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values, for a model's card."""
        return {
            "mean": list(self._mean),
            "std": list(self._std),
            "scale": self.scale,
            "channel_order": self.channel_order,
            "size_multiple": self.size_multiple,
        }
