"""``toy``: small street scenes, drawn rather than photographed, that need no download."""

from __future__ import annotations

import torch

from segtailor.config import DataConfig
from segtailor.data.base import Sample, SegmentationDataset
from segtailor.data.scene import CLASSES, draw_scene
from segtailor.errors import unknown
from segtailor.files import Color, Size

SIZE: Size = (96, 128)
LENGTHS = {"train": 240, "val": 60}
SEEDS = {"train": 1, "val": 2}
MEAN_COLOR: Color = (131, 131, 131)
LICENSE = "CC0-1.0 (drawn by segtailor)"
# Scenes are kept once drawn, up to this many bytes a process.
CACHE_BYTES = 512 * 2**20


class Toy(SegmentationDataset):
    """Street scenes of nine classes in which texture, shape and place give the class, and colour does not.

    Scene ``i`` of a split is a function of the split, ``i`` and ``size`` alone, and is drawn at ``size``: nothing is
    resized.
    """

    name = "toy"
    license = LICENSE
    mean_color = MEAN_COLOR
    classes = tuple(name for name, _ in CLASSES)
    palette = tuple(color for _, color in CLASSES)

    def __init__(self, split: str, size: Size = SIZE, length: int | None = None) -> None:
        if split not in LENGTHS:
            raise unknown("split of toy", split, LENGTHS)
        self.split, self.size = split, size
        self.length = length or LENGTHS[split]
        self._kept: dict[int, Sample] = {}
        self._room = CACHE_BYTES // (4 * size[0] * size[1])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> Sample:
        """Return scene ``index``."""
        if not 0 <= index < self.length:
            raise IndexError(index)
        kept = self._kept.get(index)
        if kept is None:
            image, target = draw_scene((SEEDS[self.split], index), self.size)
            kept = Sample(torch.from_numpy(image), torch.from_numpy(target), f"{self.split}-{index:04d}")
            if len(self._kept) < self._room:
                self._kept[index] = kept
        return Sample(kept.image.clone(), kept.target.clone(), kept.name)


def create_toy(config: DataConfig, split: str, training: bool) -> Toy:
    """Return a split of ``toy`` at ``config.size`` (default 96 x 128); ``config.length`` is that of the train split."""
    return Toy(split, config.size or SIZE, config.length if split == "train" else None)
