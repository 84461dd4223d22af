"""Masks of one class each: ``CLASS/frame.png`` or ``frame_CLASS.png``; every pixel but zero is the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segtailor.data.base import some
from segtailor.data.pairs import Pair, files_by_key
from segtailor.data.read import IMAGE_SUFFIXES, INDEX_MODES, MASK_SUFFIXES, UnreadableFile, open_mask
from segtailor.data.unpaired import NO_CLASS, NO_IMAGE, NO_MASK, TWICE, leave_out
from segtailor.errors import SegtailorError, nearest
from segtailor.files import VOID

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
            if target is None:
                target = np.full(covered.shape, self.uncovered, np.uint8)
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
                    colored: NDArray[np.bool_] = np.array(file.convert("RGB")).max(axis=2).astype(np.bool_)
                    return colored
                raise UnreadableFile(f"data.masks is binary, but its mode is {file.mode}")
        except UnreadableFile as error:
            raise UnreadableFile(f"its part {path}: {error}") from error


def uncovered_class(classes: Sequence[str]) -> int:
    """Return the index of the class ``background``, else void: what the pixels are that no class covers."""
    return classes.index(BACKGROUND) if BACKGROUND in classes else VOID


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
        readings = _readings(stem, names)
        if not readings:
            no_class.append(stem)
            continue
        key, index = next((reading for reading in readings if reading[0] in found_images), readings[0])
        parts.setdefault(key, []).append(Part(index, path))
    problems = []
    if no_class:
        guess = no_class[0].rsplit("_", 1)[-1] if "/" not in no_class[0] else no_class[0].split("/")[0]
        problems.append(
            f"{len(no_class)} masks name no class of {class_file}: {some(no_class)} (nearest: "
            f"{', '.join(nearest(guess, names, 3))}; expected CLASS/frame.png or frame_CLASS.png)"
        )
    for have, lack, text in (
        (found_images, parts, "images without a mask of any class"),
        (parts, found_images, "names of masks without an image"),
    ):
        if missing := sorted(have.keys() - lack.keys()):
            problems.append(f"{len(missing)} {text}: {some(missing)}")
    twice = [key for key, found in parts.items() if len({part.label for part in found}) < len(found)]
    if twice:
        problems.append(f"{len(twice)} images with two masks of one class: {some(twice)}")
    both = sorted(found_images.keys() & parts.keys())
    unpaired = {
        NO_CLASS: [found_masks[stem] for stem in no_class],
        NO_MASK: [found_images[key] for key in sorted(found_images.keys() - parts.keys())],
        NO_IMAGE: [part.path for key in sorted(parts.keys() - found_images.keys()) for part in parts[key]],
        TWICE: [part.path for key in twice for part in parts[key]],
    }
    if problems and not (both and leave_out(unpaired)):
        raise SegtailorError(f"{where}: {'; '.join(problems)}; add, rename or remove files in {images} and {masks}")
    if not parts:
        raise SegtailorError(f"no images in {images} and no masks in {masks} ({where}); check data.root and the layout")
    reader = BinaryMasks(parts, uncovered_class(classes))
    pairs = (Pair(found_images[key], reader.parts[key][0].path, key) for key in both)
    return tuple(pairs), reader


def _readings(stem: str, names: Mapping[str, int]) -> list[tuple[str, int]]:
    """Return every (image name, class index) that ``stem`` can mean: class folders first, then long class names."""
    folder, _, rest = stem.partition("/")
    readings = [(rest, names[folder])] if rest and folder in names else []
    endings = sorted((name for name in names if stem.endswith(f"_{name}")), key=len, reverse=True)
    return readings + [(stem[: -len(name) - 1], names[name]) for name in endings]
