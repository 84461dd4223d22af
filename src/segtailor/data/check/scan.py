"""Opening all splits of a data set in spite of defects, and statistics of every sample, each file read once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor

from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.data.base import SegmentationDataset
from segtailor.data.image_io import (
    DECODE_ERRORS,
    FORMATS,
    UnreadableFile,
    read_content,
    read_image,
    read_orientation,
    resize_image,
    turn_upright,
)
from segtailor.data.paired import FileDataset, MaskDataset, MaskValues, Subset, read_index_mask
from segtailor.data.pairing import MissingFiles, collect_missing
from segtailor.data.pseudo import UnlabelledImages, open_unlabelled
from segtailor.errors import SegtailorError
from segtailor.files import VOID, Color, Size

T = TypeVar("T")
TEST, UNLABELLED = "test", "unlabelled"
SMALL: Size = (32, 32)
COLOR_MODES = ("RGB", "RGBA")
# Part of the error about a mask that stores colors.
COLORED = "its mode is RGB"
# How many values (or colors) of a mask are kept, the most common first.
MOST_VALUES = 512
# One of these is in every file with an EXIF orientation; asking Pillow would decode a PNG again.
EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF", b"exif", b"tiff:Orientation")
TIFF_STARTS = (b"II*\x00", b"MM\x00*")
GREY_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)


class Opened(NamedTuple):
    """The splits by name, the files left out of them, errors of splits that cannot be opened, and unlabelled images."""

    splits: dict[str, SegmentationDataset]
    missing: MissingFiles
    failed: dict[str, str]
    unlabelled: UnlabelledImages | None


def open_splits(config: DataConfig, splits: Sequence[str] | None = None) -> Opened:
    """Open ``splits``, by default the recipe's two and ``test`` where there is one, without files that lack a partner.

    Raises ``SegtailorError`` when none can be opened, or one that ``splits`` names.
    """
    whole = config.model_copy(update={"limit": None, "unlabelled": None})
    opened: dict[str, SegmentationDataset] = {}
    missing: MissingFiles = {}
    failed: dict[str, SegtailorError] = {}
    for name in dict.fromkeys(splits or (config.train_split, config.val_split)):
        try:
            opened[name] = _open(whole, name, missing)
        except SegtailorError as error:
            if splits is not None:
                raise
            failed[name] = error
    if not opened:
        raise next(iter(failed.values()))
    # the Hub is not asked for splits that the recipe does not name
    if splits is None and TEST not in opened and TEST not in failed and config.name != "hf":
        with suppress(SegtailorError):  # there is none
            missing_in_test: MissingFiles = {}
            test = _open(whole, TEST, missing_in_test)
            # where a path does not depend on the split, every name opens the same files
            files = _images(test)
            if not files or all(files != _images(split) for split in opened.values()):
                opened[TEST] = test
                for problem, paths in missing_in_test.items():
                    missing.setdefault(problem, []).extend(paths)
    unlabelled = None
    if config.unlabelled is not None:
        everything = config.unlabelled.model_copy(update={"limit": None})
        try:
            unlabelled = open_unlabelled(everything, config.size, next(iter(opened.values())).mean_color)
        except SegtailorError as error:
            failed[UNLABELLED] = error
    return Opened(opened, missing, {name: str(error) for name, error in failed.items()}, unlabelled)


def _open(config: DataConfig, split: str, missing: MissingFiles) -> SegmentationDataset:
    with collect_missing(missing):
        return create_dataset(config, split, training=split == config.train_split)


def _images(dataset: SegmentationDataset) -> set[Path]:
    return {pair.image for pair in dataset.pairs} if isinstance(dataset, FileDataset) else set()


@dataclass(slots=True)
class SampleStats:
    """Statistics of one sample; ``image`` and ``mask`` name its files.

    ``values`` maps the numbers in the mask to pixels, ``mode`` is that of the mask's file, ``colors`` are the palette's
    colors of the mask's values, ``stored_colors`` (most common first) those of a mask without numbers. ``small`` is the
    image in grey at 32 x 32.
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

    @property
    def pixels(self) -> int:
        """The number of pixels of the mask."""
        return sum(self.values.values())

    @property
    def is_colored(self) -> bool:
        """Whether the mask cannot be read because it stores colors."""
        return bool(self.stored_colors) or COLORED in self.mask_problem


def scan(
    datasets: Mapping[str, SegmentationDataset | UnlabelledImages],
    threads: int | None = None,
    *,
    pictures: bool = True,
    progress: bool = False,
) -> list[SampleStats]:
    """Read every sample, in ``threads`` (default: one a core, at most 16); with a bar where there is a terminal.

    Decoders release the interpreter's lock, so threads use all cores. Without ``pictures``, statistics that only serve
    to compare images are left out.
    """
    console = Console(stderr=True)
    parts = (
        in_threads(partial(sample_stats, dataset, name, pictures=pictures), len(dataset), threads)
        for name, dataset in datasets.items()
    )
    bar = track(
        chain.from_iterable(parts),
        "checking",
        total=sum(map(len, datasets.values())),
        console=console,
        disable=not (progress and console.is_terminal),
        transient=True,
    )
    return list(bar)


def in_threads(function: Callable[[int], T], number: int, threads: int | None = None) -> Iterator[T]:
    """Yield ``function`` of 0, 1, ... below ``number``, computed in ``threads`` (default: one a core, at most 16)."""
    pool = ThreadPoolExecutor(threads or min(16, os.cpu_count() or 1))
    try:
        yield from pool.map(function, range(number))
    finally:
        pool.shutdown(cancel_futures=True)


def sample_stats(
    dataset: SegmentationDataset | UnlabelledImages, split: str, index: int, *, pictures: bool = True
) -> SampleStats:
    """Return the statistics of sample ``index`` of ``dataset``; read errors are recorded, not raised."""
    if isinstance(dataset, UnlabelledImages):
        stats = SampleStats(split, str(dataset.paths[index]))
        _read_image(stats, dataset.paths[index], pictures)
        return stats
    if isinstance(dataset, Subset):
        return sample_stats(dataset.whole, split, dataset.indices[index], pictures=pictures)
    if not isinstance(dataset, FileDataset):
        return _row_stats(dataset, split, index, pictures)
    pair = dataset.pairs[index]
    # masks that share one file are named by their image
    in_image_file = pair.mask.suffix.lower() in (".json", "")
    stats = SampleStats(split, str(pair.image), str(pair.image if in_image_file else pair.mask))
    image = _read_image(stats, pair.image, pictures)
    if pictures and dataset.read_mask is read_index_mask:
        _read_header(stats, pair.mask)
    try:
        mask = dataset.read_mask(pair)
    except UnreadableFile as error:
        stats.mask_problem = str(error)
        if stats.mode in COLOR_MODES:
            with suppress(*DECODE_ERRORS), Image.open(pair.mask, formats=FORMATS) as file:
                pixels = np.array(file.convert("RGB")).astype(np.int32)
                # one number a color: sorting these is many times as fast as sorting rows
                numbers, _ = _most_common(pixels @ np.array([1 << 16, 1 << 8, 1], np.int32))
                stats.stored_colors = [(number >> 16, number >> 8 & 255, number & 255) for number in numbers]
        return stats
    _count_values(stats, mask)
    if image is not None:
        stats.turned = turn_upright(image, pair.image, mask.shape) is not image
    return stats


def _row_stats(dataset: SegmentationDataset, split: str, index: int, pictures: bool) -> SampleStats:
    where = f"{dataset.name} {split}"
    stored = False
    try:
        # masks as stored, unless the data set has other rules for reading them
        if isinstance(dataset, MaskDataset) and type(dataset).__getitem__ is MaskDataset.__getitem__:
            stored = True
            image, mask, _, image_at, mask_at = dataset.read(index)
        else:
            image, target, name = dataset[index]
            mask, image_at = target.numpy(), f"{name} of {where}"
            mask_at = image_at
    except SegtailorError as error:
        at, problem = f"sample {index} of {where}", str(error)
        if COLORED in problem:
            return SampleStats(split, at, at, mask_problem=problem)
        return SampleStats(split, at, image_problem=problem)
    stats = SampleStats(split, image_at, mask_at, small=small_picture(image) if pictures else None)
    _count_values(stats, mask)
    if stored:
        stats.image_size = (int(image.shape[-2]), int(image.shape[-1]))
    return stats


def _read_image(stats: SampleStats, path: Path, pictures: bool) -> Tensor | None:
    try:
        content = read_content(path)
        image = read_image(content)
    except UnreadableFile as error:
        stats.image_problem = str(error)
        return None
    stats.image_size = (int(image.shape[-2]), int(image.shape[-1]))
    if pictures:
        if content.startswith(TIFF_STARTS) or any(mark in content for mark in EXIF_MARKS):
            stats.orientation = read_orientation(content)
        stats.small = small_picture(image)
    return image


def small_picture(image: Tensor) -> NDArray[np.uint8]:
    """Return ``image`` (3,H,W) in grey at 32 x 32, bytes, which other formats and sizes hardly change."""
    small = resize_image(image, SMALL).numpy().astype(np.float32)
    return np.rint(np.tensordot(GREY_WEIGHTS, small, 1)).astype(np.uint8)


def _count_values(stats: SampleStats, mask: NDArray[Any]) -> None:
    stats.mask_size = (int(mask.shape[0]), int(mask.shape[1]))
    if mask.dtype == np.uint8:
        counts = np.array(Image.fromarray(np.ascontiguousarray(mask)).histogram())
        values = np.flatnonzero(counts)
        stats.values = dict(zip(values.tolist(), counts[values].tolist(), strict=True))
    else:
        stats.values = dict(sorted(zip(*_most_common(mask), strict=True)))
    stats.colors = {value: stats.colors[value] for value in stats.values if value in stats.colors}


def _most_common(numbers: NDArray[Any]) -> tuple[list[int], list[int]]:
    values, counts = np.unique(numbers, return_counts=True)
    common = np.argsort(-counts, kind="stable")[:MOST_VALUES]
    return values[common].tolist(), counts[common].tolist()


def _read_header(stats: SampleStats, path: Path) -> None:
    """Read the mask's mode and the palette's colors."""
    with suppress(*DECODE_ERRORS), Image.open(path, formats=FORMATS) as file:
        stats.mode = file.mode
        palette = (file.getpalette("RGB") if file.mode == "P" else None) or []
        stats.colors = {at // 3: (palette[at], palette[at + 1], palette[at + 2]) for at in range(0, len(palette), 3)}


@dataclass
class Tally:
    """Counts of one split: ``pixels`` and ``masks`` (K) of each class, pixels of void and of values without a meaning.

    ``empty`` are the masks that are void throughout, ``first`` a few masks of each class that occurs.
    """

    split: str
    samples: int
    pixels: NDArray[np.int64]
    masks: NDArray[np.int64]
    void: int = 0
    unknown: int = 0
    empty: list[str] = field(default_factory=list)
    first: dict[int, list[str]] = field(default_factory=dict)

    @property
    def labelled(self) -> int:
        """The number of pixels that have a class."""
        return int(self.pixels.sum())


def count_classes(dataset: SegmentationDataset, split: str, samples: Iterable[SampleStats]) -> Tally:
    """Count the classes in ``samples`` of ``dataset``, which is called ``split``."""
    number = dataset.num_classes
    tally = Tally(split, len(dataset), np.zeros(number, np.int64), np.zeros(number, np.int64))
    values = (
        dataset.values if isinstance(dataset, MaskDataset) else MaskValues({index: index for index in range(number)})
    )
    for sample in samples:
        void = 0
        seen = set()
        for value, pixels in sample.values.items():
            index = values.meaning(value)
            if index is None:
                tally.unknown += pixels
            elif index == VOID:
                void += pixels
            else:
                tally.pixels[index] += pixels
                seen.add(index)
        tally.void += void
        for index in seen:
            tally.masks[index] += 1
            if len(first := tally.first.setdefault(index, [])) < 3:
                first.append(sample.mask)
        if sample.values and void == sample.pixels:
            tally.empty.append(sample.mask)
    return tally
