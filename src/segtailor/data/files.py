"""A split whose images and masks are files: what CamVid, Cityscapes and a user's folder share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segtailor.data.base import MAX_CLASSES, VOID, Color, Sample, SegmentationDataset, check_classes
from segtailor.data.pairs import Pair
from segtailor.data.read import (
    Size,
    UnreadableFile,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
    unreadable,
)
from segtailor.errors import SegtailorError


class MaskValues:
    """What each number stored in a mask means: a class, void, or nothing (an error).

    ``classes`` maps stored values to class indices, ``void`` lists the stored values that are ignored; 255 always is,
    unless ``classes`` names it.
    """

    def __init__(self, classes: Mapping[int, int], void: Iterable[int] = ()) -> None:
        self.target = np.full(256, VOID, np.uint8)
        self.known = np.zeros(256, np.bool_)
        self.known[[VOID, *void]] = True
        for value, index in classes.items():
            self.target[value], self.known[value] = index, True
        self._all_known = bool(self.known.all())

    def to_target(self, mask: NDArray[Any]) -> NDArray[np.uint8] | None:
        """Return the target of ``mask`` (H,W); None when it holds a value that means nothing."""
        if mask.dtype != np.uint8 or not (self._all_known or self.known.take(mask).all()):
            return None
        return self.target.take(mask)

    def unknown(self, mask: NDArray[Any]) -> dict[int, int]:
        """Return value -> count of pixels for the values of ``mask`` that mean nothing."""
        if mask.dtype != np.uint8:
            values, counts = np.unique(mask, return_counts=True)
        else:
            counts = np.bincount(mask.ravel(), minlength=256)
            values = np.flatnonzero(counts)
            counts = counts[values]
        pairs = zip(values.tolist(), counts.tolist(), strict=True)
        return {value: count for value, count in pairs if not (0 <= value <= 255 and self.known[value])}


class FileDataset(SegmentationDataset):
    """Pairs of an image and a mask file, read when asked for.

    ``size`` (height, width) is what images are resized to, None for their own; masks follow when ``training``.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        *,
        name: str,
        split: str,
        classes: tuple[str, ...],
        palette: tuple[Color, ...],
        mean_color: Color,
        licence: str,
        values: MaskValues,
        size: Size | None,
        training: bool,
    ) -> None:
        check_classes(name, classes)
        assert len(classes) == len(palette) <= MAX_CLASSES
        self.pairs = tuple(pairs)
        self.name, self.split, self.licence = name, split, licence
        self.classes, self.palette, self.mean_color = classes, palette, mean_color
        self.values, self.size, self.training = values, size, training

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int, /) -> Sample:
        """Return sample ``index``; raises ``SegtailorError`` for unreadable files, other sizes and unknown values."""
        pair = self.pairs[index]
        path = pair.image
        try:
            image = read_image(path)
            path = pair.mask
            mask = read_mask(path)
        except UnreadableFile as error:
            raise unreadable(path, error) from error
        if tuple(image.shape[-2:]) != mask.shape:
            raise SegtailorError(f"{pair.image} is {shape(image.shape)}, but its mask {path} is {shape(mask.shape)}")
        target = self.values.to_target(mask)
        if target is None:
            value, count = next(iter(self.values.unknown(mask).items()))
            raise SegtailorError(
                f"{path} holds the value {value} ({count} pixels), which is none of the {self.num_classes} classes and "
                "not void"
            )
        if self.size is not None:
            image = resize_image(image, self.size)
            if self.training:
                target = resize_mask(target, self.size)
        return Sample(image, torch.from_numpy(target), pair.name)


def shape(sizes: Sequence[int]) -> str:
    """Return the last two of ``sizes`` as 'height x width'."""
    return f"{sizes[-2]} x {sizes[-1]}"
