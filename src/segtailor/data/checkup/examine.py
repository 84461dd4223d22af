"""What is in the files of one sample: whether they decode, sizes, orientation, mask values, and a small picture."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segtailor.data.base import SegmentationDataset
from segtailor.data.image_io import (
    FORMATS,
    Source,
    UnreadableFile,
    read_image,
    read_orientation,
    resize_image,
    turn_upright,
)
from segtailor.data.paired import FileDataset, MaskDataset, read_index_mask
from segtailor.data.pseudo import UnlabelledImages
from segtailor.errors import SegtailorError
from segtailor.files import Color, Size

SMALL: Size = (32, 32)
COLOR_MODES = ("RGB", "RGBA")
# What the reader of masks says of one that stores colours.
COLORED = "its mode is RGB"
# Of a mask with more values (or colours) than this only the most common are kept.
MOST_VALUES = 512
# One of these is in every file that has a note on its orientation; asking Pillow would decode a PNG again.
EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF", b"exif", b"tiff:Orientation")
TIFF_STARTS = (b"II*\x00", b"MM\x00*")
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(slots=True)
class Examined:
    """What was seen of one sample; ``image`` and ``mask`` say where it lies.

    ``values`` maps the numbers in the mask to pixels, ``mode`` is that of the mask's file, ``colors`` are those that a
    palette gives the mask's values, ``stored_colors`` (most common first) those of a mask that has no numbers.
    """

    split: str
    image: str
    mask: str = ""
    image_problem: str = ""
    mask_problem: str = ""
    image_size: Size | None = None
    mask_size: Size | None = None
    orientation: int = 1
    turned: bool = False
    mode: str = ""
    values: dict[int, int] = field(default_factory=dict)
    colors: dict[int, Color] = field(default_factory=dict)
    stored_colors: list[Color] = field(default_factory=list)
    small: NDArray[np.uint8] | None = None


def examine(dataset: SegmentationDataset | UnlabelledImages, split: str, index: int) -> Examined:
    """Return what is in sample ``index`` of ``dataset``; what cannot be read is said, not raised."""
    if isinstance(dataset, UnlabelledImages):
        found = Examined(split, str(dataset.paths[index]))
        _read_image(found, dataset.paths[index])
        return found
    if isinstance(dataset, FileDataset):
        return _examine_pair(dataset, split, index)
    return _examine_sample(dataset, split, index)


def _examine_pair(dataset: FileDataset, split: str, index: int) -> Examined:
    pair = dataset.pairs[index]
    # masks that all lie in one file go by their image
    in_image_file = pair.mask.suffix.lower() in (".json", "")
    found = Examined(split, str(pair.image), str(pair.image if in_image_file else pair.mask))
    image = _read_image(found, pair.image)
    if dataset.read_mask is read_index_mask:
        _look_at_mask(found, pair.mask)
    try:
        mask = dataset.read_mask(pair)
    except UnreadableFile as error:
        found.mask_problem = str(error)
        if found.mode in COLOR_MODES:
            found.stored_colors = _stored_colors(pair.mask)
        return found
    _count_values(found, mask)
    if image is not None:
        found.turned = turn_upright(image, pair.image, mask.shape) is not image
    return found


def _examine_sample(dataset: SegmentationDataset, split: str, index: int) -> Examined:
    where = f"{dataset.name} {split}"
    try:
        # masks as they are stored, unless the data set has rules of its own on what fits together
        if isinstance(dataset, MaskDataset) and type(dataset).__getitem__ is MaskDataset.__getitem__:
            image, mask, _, image_at, mask_at = dataset.read(index)
            found = Examined(split, image_at, mask_at)
        else:
            sample = dataset[index]
            image, mask = sample.image, sample.target.numpy()
            found = Examined(split, f"{sample.name} of {where}", f"{sample.name} of {where}")
    except SegtailorError as error:
        at, problem = f"sample {index} of {where}", str(error)
        if COLORED in problem:
            return Examined(split, at, at, mask_problem=problem)
        return Examined(split, at, image_problem=problem)
    _count_values(found, mask)
    if isinstance(dataset, MaskDataset) and type(dataset).__getitem__ is MaskDataset.__getitem__:
        found.image_size = (int(image.shape[-2]), int(image.shape[-1]))
    else:
        found.mask_size = None
    found.small = small_picture(image)
    return found


def _read_image(found: Examined, path: Path) -> Tensor | None:
    content: Source
    try:
        content = path.read_bytes()
    except OSError:
        content = path  # reading it again tells why
    try:
        image = read_image(content)
    except UnreadableFile as error:
        found.image_problem = str(error)
        return None
    found.image_size = (int(image.shape[-2]), int(image.shape[-1]))
    if isinstance(content, bytes) and (content.startswith(TIFF_STARTS) or any(mark in content for mark in EXIF_MARKS)):
        found.orientation = read_orientation(content)
    found.small = small_picture(image)
    return image


def small_picture(image: Tensor) -> NDArray[np.uint8]:
    """Return ``image`` (3,H,W) in grey at 32 x 32, bytes: what of it survives another format or size."""
    small = resize_image(image, SMALL).numpy().astype(np.float32)
    return np.rint(np.tensordot(GREY_WEIGHTS, small, 1)).astype(np.uint8)


def _count_values(found: Examined, mask: NDArray[Any]) -> None:
    found.mask_size = (int(mask.shape[0]), int(mask.shape[1]))
    if mask.dtype == np.uint8:
        counts = np.array(Image.fromarray(np.ascontiguousarray(mask)).histogram())
        values = np.flatnonzero(counts)
        counts = counts[values]
    else:
        values, counts = np.unique(mask, return_counts=True)
        kept = np.sort(np.argsort(-counts, kind="stable")[:MOST_VALUES])
        values, counts = values[kept], counts[kept]
    found.values = dict(zip(values.tolist(), counts.tolist(), strict=True))
    found.colors = {value: found.colors[value] for value in found.values if value in found.colors}


def _look_at_mask(found: Examined, path: Path) -> None:
    """Read the header: how the numbers are stored, and the colours that a palette gives them."""
    try:
        with Image.open(path, formats=FORMATS) as file:
            found.mode = file.mode
            palette = file.getpalette("RGB") if file.mode == "P" else None
    except (OSError, RuntimeError, ValueError, SyntaxError, Image.DecompressionBombError):
        return
    if palette:
        found.colors = {at // 3: (palette[at], palette[at + 1], palette[at + 2]) for at in range(0, len(palette), 3)}


def _stored_colors(path: Path) -> list[Color]:
    try:
        with Image.open(path, formats=FORMATS) as file:
            pixels = np.array(file.convert("RGB")).reshape(-1, 3)
    except (OSError, RuntimeError, ValueError, SyntaxError, Image.DecompressionBombError):
        return []
    colors, counts = np.unique(pixels, axis=0, return_counts=True)
    common = np.argsort(-counts, kind="stable")[:MOST_VALUES]
    return [(int(red), int(green), int(blue)) for red, green, blue in colors[common]]
