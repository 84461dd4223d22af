"""Encodings of masks: class indices, colors, or one file for each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segtailor.config import DataConfig
from segtailor.data.base import some, spans
from segtailor.data.classes_file import ClassesFile
from segtailor.data.image_io import IMAGE_SUFFIXES, INDEX_MODES, MASK_SUFFIXES, Source, UnreadableFile, open_mask
from segtailor.data.paired import MaskValues
from segtailor.data.pairing import NO_CLASS, NO_IMAGE, NO_MASK, TWICE, Pair, files_by_key, record_missing
from segtailor.errors import SegtailorError, nearest
from segtailor.files import VOID, Color

COLOR_MODES = frozenset({"RGB", "RGBA", "P", "L", "LA", "1"})
# A color without a meaning is stored in place of a class index, as its 24 bits plus this.
UNKNOWN_COLOR = 256


def index_values(
    config: DataConfig, described: ClassesFile, where: str, correct: str = "correct it, or "
) -> MaskValues:
    """Return the meaning of the numbers in masks: as in ``where``, unless the recipe sets it.

    Raises ``SegtailorError`` when ``data.values``, ``data.void`` and ``data.reduce_zero_label`` contradict each other
    or the classes.
    """
    count = len(described.classes)
    if config.reduce_zero_label and config.values is not None:
        raise SegtailorError(
            "data.reduce_zero_label and data.values exclude each other: with the first the classes' mask values are "
            "1, 2, 3, ...; keep one of them"
        )
    values = described.class_values() if config.values is None else list(config.values)
    void = described.void if config.void is None else list(config.void)
    if config.reduce_zero_label:
        values = list(range(1, count + 1))
        void = [0, *void]
    if len(values) != count:
        raise SegtailorError(f"data.values has {len(values)} entries, but {where} names {count} classes")
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise SegtailorError(f"data.values gives {some(list(map(str, twice)))} to two classes; give each its own")
    if both := sorted(set(void) & set(values)):
        source = "data.void" if config.void is not None else f"`void` of {where}"
        raise SegtailorError(f"{source} holds {some(list(map(str, both)))}, which the classes have; change data.void")
    return MaskValues(
        {value: index for index, value in enumerate(values)},
        void,
        hint=f"{where} gives its classes the values {spans(values)}; {correct}set data.values, data.void or "
        "data.reduce_zero_label",
    )


def refuse_values(config: DataConfig, masks: str) -> None:
    """Raise ``SegtailorError`` when the recipe explains mask values although ``masks`` hold none."""
    given = {"values": config.values, "void": config.void, "reduce_zero_label": config.reduce_zero_label or None}
    if names := [f"data.{name}" for name, value in given.items() if value is not None]:
        raise SegtailorError(f"{' and '.join(names)} explain index masks, but {masks}; leave them out")


def color_masks(config: DataConfig, described: ClassesFile, where: str) -> tuple[ColorMasks, ColorValues]:
    """Return the reader of masks of colors, and the meaning of its numbers.

    Raises ``SegtailorError`` without a palette, and when a color has two meanings.
    """
    refuse_values(config, "data.masks is color")
    if described.palette is None:
        raise SegtailorError(
            f"data.masks is color, but {where} gives the classes no colors; write `classes: {{road: [128, 64, 128], "
            "car: [0, 0, 142]}` there"
        )
    colors = [*described.palette, *described.void_colors]
    if twice := sorted({str(color) for color in colors if colors.count(color) > 1}):
        raise SegtailorError(f"{where} gives {some(twice)} to two classes or to a class and void; change one of them")
    hint = f"name the colors in {where}, as classes or under void_colors"
    return ColorMasks(described.palette, described.void_colors), ColorValues(len(described.classes), hint)


class ColorValues(MaskValues):
    """The numbers that :class:`ColorMasks` gives: class indices, void, and more than a byte for unknown colors."""

    def __init__(self, classes: int, hint: str) -> None:
        super().__init__({index: index for index in range(classes)}, hint=hint)

    def describe(self, value: int) -> str:
        """Return an unknown color as (red, green, blue)."""
        return str(value if value < UNKNOWN_COLOR else tuple((value - UNKNOWN_COLOR).to_bytes(3, "big")))


class ColorMasks:
    """Reads masks whose colors are the classes: ``palette`` gives one a class, ``void`` those that are ignored."""

    def __init__(self, palette: Sequence[Color], void: Sequence[Color] = ()) -> None:
        self.palette, self.void = tuple(palette), tuple(void)
        self._table: NDArray[np.uint16] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # every process makes its own table of 32 MB, when it reads its first mask
        return {**self.__dict__, "_table": None}

    def __call__(self, pair: Pair) -> NDArray[Any]:
        """Return the class indices of the mask of ``pair``; see :meth:`read`."""
        return self.read(pair.mask)

    def read(self, source: Source) -> NDArray[Any]:
        """Return class indices and void (H,W) as bytes; int32 with unknown colors above a byte where there are any."""
        with open_mask(source) as file:
            if file.mode not in COLOR_MODES:
                raise UnreadableFile(f"data.masks is color, but the mask's mode is {file.mode}")
            pixels = np.zeros((file.height, file.width, 4), np.uint8)
            pixels[..., 2::-1] = np.array(file.convert("RGB"))
        packed = pixels.view("<i4")[..., 0]  # the number whose digits are red, green, blue
        numbers = self._numbers().take(packed)
        if numbers.max(initial=0) < UNKNOWN_COLOR:
            return numbers.astype(np.uint8)
        return np.where(numbers < UNKNOWN_COLOR, numbers, packed + UNKNOWN_COLOR).astype(np.int32)

    def _numbers(self) -> NDArray[np.uint16]:
        if self._table is None:
            table = np.full(1 << 24, UNKNOWN_COLOR, np.uint16)
            meanings = [*((color, VOID) for color in self.void), *zip(self.palette, range(VOID), strict=False)]
            for color, meaning in meanings:
                table[int.from_bytes(bytes(color), "big")] = meaning
            self._table = table
        return self._table


BACKGROUND = "background"


class Part(NamedTuple):
    """The mask file of one class of one image."""

    label: int
    path: Path


class BinaryMasks:
    """Joins the files of one image: a class later in the list covers an earlier one.

    ``parts`` holds the files by the pair's name; pixels that no class covers get ``uncovered``.
    """

    def __init__(self, parts: Mapping[str, Sequence[Part]], uncovered: int) -> None:
        self.parts = {name: tuple(sorted(found)) for name, found in parts.items()}
        self.uncovered = uncovered

    def __call__(self, pair: Pair) -> NDArray[np.uint8]:
        """Return the class indices (H,W) of ``pair``; raises ``UnreadableFile``."""
        target: NDArray[np.uint8] | None = None
        parts = self.parts[pair.name]
        for label, path in parts:
            covered = self._covered(path)
            target = np.full(covered.shape, self.uncovered, np.uint8) if target is None else target
            if covered.shape != target.shape:
                sizes = " but ".join(f"{height} x {width}" for height, width in (target.shape, covered.shape))
                raise UnreadableFile(f"the masks of one image differ in size: {parts[0].path.name} and {path}: {sizes}")
            target[covered] = label
        assert target is not None
        return target

    def _covered(self, path: Path) -> NDArray[np.bool_]:
        try:
            with open_mask(path) as file:
                if file.mode in INDEX_MODES:
                    return np.array(file).astype(np.bool_)
                if file.mode in ("RGB", "RGBA", "LA"):
                    return np.asarray(np.array(file.convert("RGB")).any(axis=2))
                raise UnreadableFile(f"data.masks is binary, but its mode is {file.mode}")
        except UnreadableFile as error:
            raise UnreadableFile(f"its part {path}: {error}") from error


def pair_binary(
    images: Path, masks: Path, where: str, classes: Sequence[str], class_file: Path
) -> tuple[tuple[Pair, ...], BinaryMasks]:
    """Pair the files below ``images`` with their masks of one class each below ``masks``, sorted by name.

    A class that has no file is not in the image. In file names blanks of class names may be ``_``. Raises
    ``SegtailorError`` for images without any mask, masks without image, and masks that name no class.
    """
    found_images = files_by_key(images, IMAGE_SUFFIXES, lambda stem: stem, where)
    found_masks = files_by_key(masks, MASK_SUFFIXES | {".jpg", ".jpeg"}, lambda stem: stem, where)
    names = {spelling: index for index, name in enumerate(classes) for spelling in (name.replace(" ", "_"), name)}
    parts: dict[str, list[Part]] = {}
    no_class: list[str] = []
    for stem, path in sorted(found_masks.items()):
        if readings := _readings(stem, names):
            key, index = next((reading for reading in readings if reading[0] in found_images), readings[0])
            parts.setdefault(key, []).append(Part(index, path))
        else:
            no_class.append(stem)
    no_mask, no_image = sorted(found_images.keys() - parts.keys()), sorted(parts.keys() - found_images.keys())
    twice = [key for key, found in parts.items() if len({part.label for part in found}) < len(found)]
    unpaired = {
        NO_CLASS: [found_masks[stem] for stem in no_class],
        NO_MASK: [found_images[key] for key in no_mask],
        NO_IMAGE: [part.path for key in no_image for part in parts[key]],
        TWICE: [part.path for key in twice for part in parts[key]],
    }
    named = {
        f"masks name no class of {class_file} (expected CLASS/frame.png or frame_CLASS.png)": no_class,
        "images without a mask of any class": no_mask,
        "names of masks without an image": no_image,
        "images with two masks of one class": twice,
    }
    problems = [f"{len(keys)} {text}: {some(keys)}" for text, keys in named.items() if keys]
    if no_class:
        guess = no_class[0].rsplit("_", 1)[-1] if "/" not in no_class[0] else no_class[0].split("/")[0]
        problems[0] += f" (nearest: {', '.join(nearest(guess, names, 3))})"
    both = sorted(found_images.keys() & parts.keys())
    if problems and not (both and record_missing(unpaired)):
        raise SegtailorError(f"{where}: {'; '.join(problems)}; add, rename or remove files in {images} and {masks}")
    if not parts:
        raise SegtailorError(f"no images in {images} and no masks in {masks} ({where}); check data.root and the layout")
    reader = BinaryMasks(parts, classes.index(BACKGROUND) if BACKGROUND in classes else VOID)
    pairs = (Pair(found_images[key], reader.parts[key][0].path, key) for key in both)
    return tuple(pairs), reader


def _readings(stem: str, names: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return every (image name, class index) that ``stem`` can mean: class folders first, then long class names."""
    folder, _, rest = stem.partition("/")
    readings = [(rest, names[folder])] if rest and folder in names else []
    endings = sorted((name for name in names if stem.endswith(f"_{name}")), key=len, reverse=True)
    return readings + [(stem[: -len(name) - 1], names[name]) for name in endings]
