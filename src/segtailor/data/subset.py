"""A part of a data set: evenly spaced samples."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from segtailor.data.base import Sample, SegmentationDataset
from segtailor.data.paired import FileDataset
from segtailor.errors import SegtailorError


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
