"""From raw RGB pixels to what a network was trained on; each model carries its own."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ChannelOrder = Literal["rgb", "bgr"]


class Preprocess(nn.Module):
    """Scale, reorder and normalise a raw RGB batch: ``(images * scale - mean) / std``.

    Input: (B,3,H,W), uint8 or float in 0..255, RGB. Output: the same shape, float. ``mean`` and ``std`` are given in
    the network's own channel order. ``size_multiple`` is the multiple that height and width must have; evaluation and
    prediction pad to it and crop after upsampling. ``size`` is for networks that take one size (height, width) only:
    whatever comes is resized to it, bilinear and antialiased.
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
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        # Kept as numbers too, so that the spec is exact whatever the module's precision and device.
        self._mean, self._std = [float(value) for value in mean], [float(value) for value in std]
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.scale = scale
        self.channel_order: ChannelOrder = channel_order
        self.size_multiple = size_multiple
        self.size = None if size is None else (int(size[0]), int(size[1]))

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalised batch (B,3,H,W) of raw RGB ``images`` (B,3,H,W)."""
        images = images.to(self.mean.dtype)
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        if self.channel_order == "bgr":
            images = images.flip(1)
        return (images * self.scale - self.mean) / self.std

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size at which the network sees images of ``size``: its own, or padded to its multiple.

        >>> Preprocess(size_multiple=32).input_size((360, 480))
        (384, 480)
        """
        if self.size is not None:
            return self.size
        height, width = (math.ceil(side / self.size_multiple) * self.size_multiple for side in size)
        return height, width

    def spec(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values, for a model's card."""
        spec: dict[str, Any] = {
            "mean": list(self._mean),
            "std": list(self._std),
            "scale": self.scale,
            "channel_order": self.channel_order,
            "size_multiple": self.size_multiple,
        }
        return spec if self.size is None else {**spec, "size": list(self.size)}
