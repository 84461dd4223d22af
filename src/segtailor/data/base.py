"""The interface of every data set: samples, class names, colors and a license."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.files import Color

MAX_CLASSES = 255
"""Targets are one byte a pixel and 255 is void."""
MEAN_COLOR: Color = (124, 116, 104)
"""The mean color of ImageNet's images."""


class Sample(NamedTuple):
    """One labelled image: ``image`` uint8 RGB (3,H,W), ``target`` uint8 (H,W) with 255 = void, and a name."""

    image: Tensor
    target: Tensor
    name: str


class SegmentationDataset(ABC):
    """One split of a labelled data set.

    ``data[i]`` is a :class:`Sample`: the image resized to the recipe's ``data.size``, the target too when the split is
    read for training, else at the mask's own size. ``classes`` and ``palette`` (RGB) have one entry a class, images are
    padded with ``mean_color`` (RGB), and ``license`` states the terms of use.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    mean_color: Color = MEAN_COLOR
    license: str = "unknown"

    @property
    def num_classes(self) -> int:
        """The number of classes, void not counted."""
        return len(self.classes)

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def __getitem__(self, index: int, /) -> Sample:
        """Return sample ``index``; raises ``SegtailorError`` when its files are unreadable or do not fit together."""


def check_classes(name: str, classes: tuple[str, ...]) -> None:
    """Raise ``SegtailorError`` when a data set has no class, or more than a byte can hold beside void."""
    if not classes:
        raise SegtailorError(f"{name} names no class; list at least one")
    if len(classes) > MAX_CLASSES:
        raise SegtailorError(
            f"{name} has {len(classes)} classes, but at most {MAX_CLASSES} are supported (targets are one byte a pixel "
            "and 255 is void); merge classes"
        )


class Count(int):
    """A number that is formatted with a noun, given in the singular or in both forms.

    >>> f"{Count(1):mask}, {Count(2):mask}, {Count(2):class|classes}"
    '1 mask, 2 masks, 2 classes'
    """

    def __format__(self, spec: str) -> str:
        one, _, many = spec.partition("|")
        return f"{int(self)} {one if self == 1 else many or one + 's'}"


def some(names: list[str], count: int = 3) -> str:
    """Return the first ``count`` of ``names``, and how many more there are.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = len(names) - count
    return ", ".join(names[:count]) + (f" and {more} more" if more > 0 else "")


def spans(values: Iterable[int]) -> str:
    """Return sorted ``values`` with runs joined.

    >>> spans([1, 2, 3, 7, 255])
    '1 to 3, 7, 255'
    """
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    texts = []
    for first, last in runs:
        texts += [f"{first} to {last}"] if last > first + 1 else [str(value) for value in sorted({first, last})]
    return ", ".join(texts)
