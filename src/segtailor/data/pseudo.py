"""Images without masks, which the teacher labels during training: the folder, its checks, their rows of a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from segtailor.config import UnlabelledConfig
from segtailor.data.base import Count, Sample, SegmentationDataset, some
from segtailor.data.image_io import IMAGE_SUFFIXES, UnreadableFile, list_files, read_image, resize_image, unreadable
from segtailor.data.paired import FileDataset, evenly
from segtailor.errors import SegtailorError
from segtailor.files import Color, Size

WHERE = "data.unlabelled.images"


class UnlabelledImages:
    """The image files of a folder; ``images[i]`` is a sample whose target (H,W) is 0 at every pixel.

    Images are resized to ``size`` (height, width) where it is given. They are padded with ``mean_color``.
    """

    def __init__(self, folder: Path, paths: Sequence[Path], size: Size | None, mean_color: Color) -> None:
        self.folder, self.paths = folder, tuple(paths)
        self.size, self.mean_color = size, mean_color

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Sample:
        path = self.paths[index]
        try:
            image = read_image(path)
        except UnreadableFile as error:
            raise unreadable(path, error) from error
        if self.size is not None:
            image = resize_image(image, self.size)
        name = path.relative_to(self.folder).with_suffix("").as_posix()
        return Sample(image, torch.zeros(image.shape[-2:], dtype=torch.uint8), name)


class Mix(NamedTuple):
    """Which rows of a global batch of ``batch`` are unlabelled: ``unlabelled`` of them, spread evenly.

    >>> [Mix(6, 2).place(row) for row in range(6)]
    [(False, 0), (False, 1), (True, 0), (False, 2), (False, 3), (True, 1)]
    """

    batch: int
    unlabelled: int = 0

    @property
    def labelled(self) -> int:
        """The number of labelled rows."""
        return self.batch - self.unlabelled

    def place(self, row: int) -> tuple[bool, int]:
        """Return whether ``row`` is unlabelled, and how many rows of its kind come before it."""
        before = row * self.unlabelled // self.batch
        if (row + 1) * self.unlabelled // self.batch > before:
            return True, before
        return False, row - before

    def fewest_labelled(self, rows: int) -> int:
        """Return the smallest number of labelled rows in any of the consecutive parts of ``rows`` rows."""
        parts = range(0, self.batch, rows)
        return min(sum(not self.place(row)[0] for row in range(first, first + rows)) for first in parts)


def mix_of(config: UnlabelledConfig | None, batch: int) -> Mix:
    """Return the rows of a global batch: at least one of each kind where ``config`` asks for unlabelled images.

    Raises ``SegtailorError`` for a batch that has no room for two kinds.
    """
    if config is None:
        return Mix(batch)
    if batch < 2:
        raise SegtailorError(
            f"train.batch {batch} has no room for labelled and unlabelled images; set it to at least 2, or remove "
            "data.unlabelled"
        )
    return Mix(batch, min(max(round(config.share * batch), 1), batch - 1))


def open_unlabelled(config: UnlabelledConfig, size: Size | None, mean_color: Color) -> UnlabelledImages:
    """Return the images of ``config``, sorted by path, ``config.limit`` of them evenly chosen; nothing is read yet.

    Raises ``SegtailorError`` for a folder that is missing or holds no image, and for a limit above their number.
    """
    folder = config.images
    if not folder.is_dir():
        raise SegtailorError(f"no such folder: {folder}; set {WHERE} to the folder that holds your unlabelled images")
    paths = sorted(path for path in list_files(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise SegtailorError(f"no images in {folder} ({WHERE}); their names end in {', '.join(sorted(IMAGE_SUFFIXES))}")
    if config.limit is not None and config.limit > len(paths):
        raise SegtailorError(
            f"data.unlabelled.limit asks for {config.limit} images, but {folder} holds {len(paths)}; lower it or leave "
            "it out"
        )
    if config.limit is not None:
        paths = [paths[index] for index in evenly(len(paths), config.limit)]
    return UnlabelledImages(folder, paths, size, mean_color)


def check_apart(images: UnlabelledImages, val: SegmentationDataset) -> str | None:
    """Return a warning, on one line, about images that have the name of a validation image; None without any.

    Raises ``SegtailorError`` for images that are validation images, byte for byte. Only files are compared.
    """
    if not isinstance(val, FileDataset):
        return None
    scored = {pair.image for pair in val.pairs}
    # only files of equal length are read
    sizes = [{path: path.stat().st_size for path in paths if path.is_file()} for paths in (images.paths, scored)]
    common = set(sizes[0].values()) & set(sizes[1].values())
    digests = {_digest(path) for path, size in sizes[1].items() if size in common}
    if same := [path.name for path, size in sizes[0].items() if size in common and _digest(path) in digests]:
        raise SegtailorError(
            f"{Count(len(same)):image is a validation image|images are validation images} in {images.folder} "
            f"({WHERE}): {some(same)}; remove them there, or the student is scored on images that it learned from"
        )
    stems = {path.stem for path in scored}
    named = [path.name for path in images.paths if path.stem in stems]
    if not named:
        return None
    return (
        f"{Count(len(named)):image has|images have} the name of a validation image in {images.folder} ({WHERE}): "
        f"{some(named)}; if they show the same scenes, the student is scored on images that it learned from"
    )


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()
