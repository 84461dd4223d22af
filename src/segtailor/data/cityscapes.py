"""Cityscapes with its 19 evaluated classes (Cordts et al., CVPR 2016)."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtailor.config import DataConfig
from segtailor.data.benchmark import BenchmarkDataset, Variant
from segtailor.data.classes_file import ClassesFile
from segtailor.data.image_io import read_mask
from segtailor.data.masks import refuse_values
from segtailor.data.paired import FileDataset, MaskValues
from segtailor.data.pairing import Pair, pair_folders
from segtailor.files import VOID

# The parts of each split: the folder of images, and the set of annotations.
FINE, COARSE = "gtFine", "gtCoarse"
PARTS: dict[str, tuple[tuple[str, str], ...]] = {
    "train": (("train", FINE),),
    "val": (("val", FINE),),
    "trainval": (("train", FINE), ("val", FINE)),
    "train_extra": (("train_extra", COARSE),),
    "train+extra": (("train", FINE), ("train_extra", COARSE)),
}
FINE_COUNTS = {"train": 2975, "val": 500, "trainval": 3475}
CITYSCAPES = BenchmarkDataset(
    name="cityscapes",
    title="Cityscapes: street scenes of 50 cities, 19 classes",
    license="Cityscapes (Cordts et al., 2016): non-commercial research use, no redistribution",
    root=Path("data/cityscapes"),
    variants=(
        Variant("fine", "cityscapes", FINE_COUNTS),
        Variant("extra", "cityscapes", {**FINE_COUNTS, "train_extra": 19998, "train+extra": 22973}),
    ),
    hint="data.root must hold Cityscapes' leftImg8bit and gtFine folders, and gtCoarse for train_extra",
)
IMAGE_ENDING = "_leftImg8bit"
# Ids as distributed, and the train ids that Cityscapes' scripts write.
IDS, TRAIN_IDS = "labelIds", "labelTrainIds"
# In place of an id: a train id that means nothing is this much more.
UNKNOWN_TRAIN_ID = 1000


def create_cityscapes(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return a split of Cityscapes: ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and ``gtFine/SPLIT/CITY/``.

    The variant ``extra`` has the splits ``train_extra``, with masks in ``gtCoarse``, and ``train+extra``, too. Masks
    are ``*_labelIds.png``, whose ids are mapped to the 19 classes on reading and to void otherwise; an image that has
    none of these is read with its ``*_labelTrainIds.png``.
    """
    refuse_values(config, "Cityscapes' file names say how its masks are encoded")
    variant, root = CITYSCAPES.locate(config, split)
    pairs = tuple(pair for folder, annotations in PARTS[split] for pair in _pairs(root, folder, annotations))
    return CITYSCAPES.open(pairs, config, variant, split, training, CityscapesIds(variant.described), read_ids)


def _pairs(root: Path, folder: str, annotations: str) -> tuple[Pair, ...]:
    images, masks = (CITYSCAPES.folder(root, f"{name}/{folder}") for name in ("leftImg8bit", annotations))
    ids, train_ids = (f"_{annotations}_{kind}" for kind in (IDS, TRAIN_IDS))
    with_ids = {path.relative_to(masks).as_posix()[: -len(f"{ids}.png")] for path in masks.glob(f"*/*{ids}.png")}

    def image_key(stem: str) -> str | None:
        return stem.removesuffix(IMAGE_ENDING) if stem.endswith(IMAGE_ENDING) else None

    def mask_key(stem: str) -> str | None:
        if stem.endswith(ids):
            return stem.removesuffix(ids)
        key = stem.removesuffix(train_ids)
        return key if stem.endswith(train_ids) and key not in with_ids else None

    return pair_folders(images, masks, f"cityscapes {folder}", image_key, mask_key)


class CityscapesIds(MaskValues):
    """The numbers that :func:`read_ids` gives: ids, void, and more than a byte for unknown train ids."""

    def __init__(self, described: ClassesFile) -> None:
        super().__init__({number: index for index, number in enumerate(described.class_values())}, described.void)

    def describe(self, value: int) -> str:
        """Return an unknown train id as such."""
        return str(value) if value < UNKNOWN_TRAIN_ID else f"{value - UNKNOWN_TRAIN_ID} as a train id"


@cache
def _ids_of_train_ids() -> NDArray[np.int32]:
    ids = CITYSCAPES.variants[0].described.class_values()
    table = np.arange(256, dtype=np.int32) + UNKNOWN_TRAIN_ID
    table[: len(ids)] = ids
    table[VOID] = VOID
    return table


def read_ids(pair: Pair) -> NDArray[Any]:
    """Return the ids (H,W) of the mask of ``pair``; those of a file of train ids are looked up."""
    mask = read_mask(pair.mask)
    if not pair.mask.stem.endswith(TRAIN_IDS) or mask.dtype != np.uint8:
        return mask
    ids = _ids_of_train_ids().take(mask)
    return ids.astype(np.uint8) if ids.max(initial=0) < UNKNOWN_TRAIN_ID else ids
