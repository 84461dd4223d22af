"""Data sets of images with masks: decoding, checks and resizing that all readers share."""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segtailor.config import DataConfig
from segtailor.data.base import Sample, SegmentationDataset, check_classes, some
from segtailor.data.classes_file import ClassesFile
from segtailor.data.image_io import (
    UnreadableFile,
    read_image,
    read_mask,
    resize_image,
    resize_mask,
    turn_upright,
    unreadable,
)
from segtailor.data.pairing import Pair
from segtailor.errors import SegtailorError
from segtailor.files import VOID


class MaskValues:
    """The meaning of each number stored in a mask: a class, void, or none (an error).

    ``classes`` maps stored values to class indices, ``void`` lists the stored values that are ignored, also those that
    are no bytes, as -1; 255 always is, unless ``classes`` names it. ``hint`` ends an error: where to correct this.
    """

    def __init__(self, classes: Mapping[int, int], void: Iterable[int] = (), hint: str = "") -> None:
        self.classes, self.void, self.hint = dict(classes), frozenset(void), hint
        self._outside = [value for value in self.void if not 0 <= value <= VOID]
        meanings = [self.meaning(value) for value in range(256)]
        self.target = np.array([VOID if index is None else index for index in meanings], np.uint8)
        self.known = np.array([index is not None for index in meanings])
        self._all_known = bool(self.known.all())

    def meaning(self, value: int) -> int | None:
        """Return the class index of the stored ``value``, 255 for void, None for neither."""
        return self.classes.get(value, VOID if value == VOID or value in self.void else None)

    def to_target(self, mask: NDArray[Any]) -> NDArray[np.uint8] | None:
        """Return the target of ``mask`` (H,W); None when it holds a value without a meaning."""
        if mask.dtype != np.uint8:
            void = np.isin(mask, self._outside)
            inside = np.where(void, VOID, mask)
            if not void.any() or inside.min() < 0 or inside.max() > VOID:
                return None
            target = self.to_target(inside.astype(np.uint8))
            return None if target is None else np.where(void, np.uint8(VOID), target)
        return self.target.take(mask) if self._all_known or self.known.take(mask).all() else None

    def unknown(self, mask: NDArray[Any]) -> dict[int, int]:
        """Return value -> count of pixels for the values of ``mask`` without a meaning."""
        values, counts = np.unique(mask, return_counts=True)
        pairs = zip(values.tolist(), counts.tolist(), strict=True)
        return {value: count for value, count in pairs if self.meaning(value) is None}

    def describe(self, value: int) -> str:
        """Return ``value`` as an error names it."""
        return str(value)


class Raw(NamedTuple):
    """A sample as stored: an image (3,H,W), the numbers in its mask (H,W), a name, and where both are, for errors."""

    image: Tensor
    mask: NDArray[Any]
    name: str
    image_at: str
    mask_at: str


class MaskDataset(SegmentationDataset):
    """Images with masks of numbers, which ``values`` explains, in any storage.

    ``described`` are the classes, ``config`` gives name and size; masks are resized, too, when ``training``.
    """

    def __init__(
        self, config: DataConfig, split: str, training: bool, described: ClassesFile, values: MaskValues
    ) -> None:
        check_classes(config.name, tuple(described.classes))
        self.name, self.split, self.size, self.training = config.name, split, config.size, training
        self.classes, self.palette = tuple(described.classes), described.colors()
        self.mean_color, self.license, self.values = described.mean_color, described.license, values

    @abstractmethod
    def read(self, index: int) -> Raw:
        """Return sample ``index`` as stored; raises ``SegtailorError`` when it cannot be decoded."""

    def __getitem__(self, index: int, /) -> Sample:
        image, mask, name, image_at, mask_at = self.read(index)
        if tuple(image.shape[-2:]) != mask.shape:
            raise SegtailorError(f"{image_at} is {shape(image.shape)}, but its mask {mask_at} is {shape(mask.shape)}")
        target = self.values.to_target(mask)
        if target is None:
            unknown = self.values.unknown(mask)
            common = sorted(unknown, key=lambda value: -unknown[value])
            named = some([f"{self.values.describe(value)} ({unknown[value]} pixels)" for value in common])
            raise SegtailorError(
                f"{mask_at} holds the value{'' if len(unknown) == 1 else 's'} {named}: none of the {self.num_classes} "
                f"classes and not void{'; ' if self.values.hint else ''}{self.values.hint}"
            )
        return self.resized(image, target, name)

    def resized(self, image: Tensor, target: NDArray[np.uint8], name: str) -> Sample:
        """Return the sample at ``data.size``, where that is set; the target keeps its size unless training."""
        if self.size is not None:
            image = resize_image(image, self.size)
            target = resize_mask(target, self.size) if self.training else target
        return Sample(image, torch.from_numpy(np.ascontiguousarray(target)), name)


class FileDataset(MaskDataset):
    """Pairs of an image and a mask file, read when asked for.

    ``read_mask`` returns the numbers (H,W) of a pair's mask, by default those in the mask file, and raises
    ``UnreadableFile``. ``expected`` is the published number of pairs, if there is one; any number is read.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        config: DataConfig,
        split: str,
        training: bool,
        described: ClassesFile,
        values: MaskValues,
        read_mask: Callable[[Pair], NDArray[Any]] | None = None,
        expected: int | None = None,
    ) -> None:
        super().__init__(config, split, training, described, values)
        self.pairs, self.expected = tuple(pairs), expected
        self.read_mask = read_mask or read_index_mask

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Raw:
        """Return the content of the files of pair ``index``; a photo is turned upright where its mask is."""
        pair = self.pairs[index]
        path = pair.image
        try:
            image = read_image(path)
            path = pair.mask
            mask = self.read_mask(pair)
        except UnreadableFile as error:
            raise unreadable(path, error) from error
        return Raw(turn_upright(image, pair.image, mask.shape), mask, pair.name, str(pair.image), str(pair.mask))


def read_index_mask(pair: Pair) -> NDArray[Any]:
    """Return the numbers that the mask file of ``pair`` holds (H,W)."""
    return read_mask(pair.mask)


def shape(sizes: Sequence[int]) -> str:
    """Return the last two of ``sizes`` as 'height x width'."""
    return f"{sizes[-2]} x {sizes[-1]}"


def limit_dataset(dataset: SegmentationDataset, count: int) -> SegmentationDataset:
    """Return ``count`` samples of ``dataset``, evenly spaced and in its order.

    Raises ``SegtailorError`` when there are fewer.
    """
    if count > len(dataset):
        raise SegtailorError(
            f"data.limit asks for {count} images, but the split {dataset.split} of {dataset.name} has {len(dataset)}; "
            "lower it or leave it out"
        )
    if count == len(dataset):
        return dataset
    chosen = evenly(len(dataset), count)
    if isinstance(dataset, FileDataset):
        part = copy.copy(dataset)
        part.pairs, part.expected = tuple(dataset.pairs[index] for index in chosen), count
        return part
    return Subset(dataset, chosen)


def evenly(length: int, count: int) -> list[int]:
    """Return ``count`` of the numbers below ``length``, as evenly spaced as whole numbers can be.

    >>> evenly(10, 4)
    [0, 2, 5, 7]
    """
    return [index * length // count for index in range(count)]


class Subset(SegmentationDataset):
    """The samples of ``whole`` at ``indices``, which ascend."""

    def __init__(self, whole: SegmentationDataset, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, tuple(indices)
        self.name, self.split, self.license = whole.name, whole.split, whole.license
        self.classes, self.palette, self.mean_color = whole.classes, whole.palette, whole.mean_color

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int, /) -> Sample:
        return self.whole[self.indices[index]]
