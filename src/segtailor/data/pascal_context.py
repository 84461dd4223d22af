"""Pascal Context with its 59 most frequent classes, on the images of VOC 2010 (Mottaghi et al., CVPR 2014)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtailor.config import DataConfig
from segtailor.data.benchmark import BenchmarkDataset, Variant
from segtailor.data.image_io import UnreadableFile, read_mat
from segtailor.data.paired import FileDataset, read_index_mask
from segtailor.data.pairing import Pair, files_by_stem, pair_ids, read_split_ids

# The folders of masks: PNGs made with the Detail API, the authors' PNGs, and their MATLAB files of 459 labels.
DETAIL_MASKS, AUTHORS_MASKS, MAT_MASKS = "SegmentationClassContext", "59_context_labels", "trainval"
LISTS = ("ImageSets/SegmentationContext", "ImageSets/Main")
COUNTS = {"train": 4998, "val": 5105, "trainval": 10103}
PASCAL_CONTEXT = BenchmarkDataset(
    name="pascal-context",
    title="Pascal Context: photos of VOC 2010 labelled throughout, the 59 most frequent classes",
    license="Pascal Context (Mottaghi et al., 2014): research use; photos of Flickr",
    root=Path("data/pascal-context"),
    variants=(
        Variant("foreground", "pascal-context", COUNTS, without=("background",)),
        Variant("with-background", "pascal-context", COUNTS),
    ),
    hint="data.root must hold VOC2010's JPEGImages and ImageSets folders, and the masks in "
    f"{DETAIL_MASKS}, {AUTHORS_MASKS} or {MAT_MASKS}",
    inner=("VOCdevkit/VOC2010", "VOC2010"),
)


def create_pascal_context(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return a split of Pascal Context: ``JPEGImages/ID.jpg``, and a mask from the first of three folders there is.

    ``SegmentationClassContext/ID.png`` numbers the classes by the alphabet, ``59_context_labels/ID.png`` as
    ``59_labels.txt`` does, and ``trainval/ID.mat`` holds all 459 labels; classes are those of the first. Mask value 0,
    anything else, is void, or the first class of the variant ``with-background``. ``SPLIT.txt`` in
    ``ImageSets/SegmentationContext``, else in ``ImageSets/Main``, lists the ids.
    """
    variant, root = PASCAL_CONTEXT.locate(config, split)
    images = PASCAL_CONTEXT.folder(root, "JPEGImages")
    masks = PASCAL_CONTEXT.folder(root, DETAIL_MASKS, AUTHORS_MASKS, MAT_MASKS)
    suffix, reader = READERS[masks.name]
    ids = read_split_ids(PASCAL_CONTEXT.folder(root, *LISTS), split, PASCAL_CONTEXT.name)
    found = files_by_stem([images], [".jpg", ".jpeg"]), files_by_stem([masks], [suffix])
    pairs = pair_ids(ids, *found, f"pascal-context {split} in {root}")
    return PASCAL_CONTEXT.open(pairs, config, variant, split, training, read_mask=reader)


def _table(size: int, numbers: list[int]) -> NDArray[np.uint8]:
    """Return the table from ``numbers``, one a class, to the classes' positions from 1; others become 0."""
    table = np.zeros(size, np.uint8)
    table[numbers] = np.arange(1, len(numbers) + 1)
    return table


# The numbers of the 59 classes, which go by the alphabet, among the 459 labels of the MATLAB files, and in the order of
# 59_labels.txt, which begins with VOC's classes.
OF_459_LABELS = _table(460, [
    2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113, 115, 144,
    158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308, 324, 326, 347, 349, 354, 355,
    360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458,
])  # fmt: skip
OF_59_LABELS = _table(60, [
    1, 21, 22, 52, 23, 2, 3, 4, 24, 5, 25, 6, 26, 7, 8, 27, 9, 28, 29, 10, 30, 42, 12, 31, 32, 33, 34, 35, 36,
    37, 13, 38, 39, 14, 40, 41, 15, 45, 43, 16, 46, 47, 17, 48, 49, 44, 50, 51, 18, 11, 53, 19, 54, 55, 20,
    56, 57, 58, 59,
])  # fmt: skip


def read_authors_mask(pair: Pair) -> NDArray[Any]:
    """Return the mask of ``pair`` (H,W), numbered as in ``59_labels.txt``, by the alphabet."""
    mask = read_index_mask(pair)
    if mask.dtype != np.uint8 or mask.max(initial=0) >= len(OF_59_LABELS):
        raise UnreadableFile("it holds more than the 59 classes of 59_labels.txt")
    return OF_59_LABELS.take(mask)


def read_mat_mask(pair: Pair) -> NDArray[Any]:
    """Return the labels of the MATLAB file of ``pair`` (H,W) that are among the 59 classes, by the alphabet; else 0."""
    mask = read_mat(pair.mask, "LabelMap")
    if mask.min(initial=0) < 0 or mask.max(initial=0) >= len(OF_459_LABELS):
        raise UnreadableFile("it holds more than the 459 labels of Pascal Context")
    return OF_459_LABELS.take(mask)


READERS = {
    DETAIL_MASKS: (".png", read_index_mask),
    AUTHORS_MASKS: (".png", read_authors_mask),
    MAT_MASKS: (".mat", read_mat_mask),
}
