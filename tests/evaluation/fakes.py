"""A tiny model and a tiny data set that need nothing else of the library."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtailor.models.network import Preprocess, SegOutput


class TinyModel(nn.Module):
    """A stride-2 convolution; refuses sizes that are no multiple of its preprocessing's, as real networks do."""

    name, has_aux, tap_channels, classes = "tiny", False, {}, ()

    def __init__(self, num_classes: int = 3, size_multiple: int = 2, seed: int = 0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.preprocess = Preprocess(size_multiple=size_multiple)
        self.net = nn.Conv2d(3, num_classes, 3, stride=2, padding=1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor) -> SegOutput:
        assert images.shape[-2] % self.preprocess.size_multiple == 0
        assert images.shape[-1] % self.preprocess.size_multiple == 0
        self.seen.append(tuple(images.shape))
        return SegOutput(self.net(self.preprocess(images)))

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return F.interpolate(logits, size, mode="bilinear", align_corners=True)


class Item(NamedTuple):
    image: Tensor
    target: Tensor
    name: str


class TinyData:
    """Random images and masks of given sizes; ``mask_sizes`` default to the images' own."""

    mean_color = (10, 20, 30)
    palette = ((255, 0, 0), (0, 255, 0), (0, 0, 255))

    def __init__(self, sizes, mask_sizes=None, num_classes: int = 3, void: bool = True) -> None:
        self.classes = tuple(f"class {index}" for index in range(num_classes))
        generator = torch.Generator().manual_seed(1)
        self.items = []
        for index, (size, mask_size) in enumerate(zip(sizes, mask_sizes or sizes, strict=True)):
            image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
            target = torch.randint(0, num_classes, mask_size, generator=generator, dtype=torch.uint8)
            if void:
                target[: mask_size[0] // 4] = 255
            self.items.append(Item(image, target, f"image {index}"))

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]
