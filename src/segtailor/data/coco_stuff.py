"""COCO-Stuff, 164k and 10k, with 171 classes or all 182 labels (Caesar et al., CVPR 2018)."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtailor.config import DataConfig
from segtailor.data.benchmark import BenchmarkDataset, Variant
from segtailor.data.image_io import read_mat
from segtailor.data.masks import index_values
from segtailor.data.paired import FileDataset, read_index_mask
from segtailor.data.pairing import Pair, files_by_stem, pair_folders, pair_ids, read_ids
from segtailor.files import VOID

# Things that nobody ever outlined in COCO: no mask holds their numbers.
UNUSED = (
    "street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender", "hair brush",
)  # fmt: skip
TABLE = "coco-stuff"
COUNTS_164K = {"train": 118287, "val": 5000}
COUNTS_10K = {"train": 9000, "val": 1000}
ROOT_10K = Path("data/coco-stuff-10k")
COCO_STUFF = BenchmarkDataset(
    name="coco-stuff",
    title="COCO-Stuff: everyday photos, 80 things and 91 stuff classes",
    license="COCO-Stuff (Caesar et al., 2018): annotations CC-BY-4.0; photos under Flickr's terms of use",
    root=Path("data/coco-stuff"),
    variants=(
        Variant("164k", TABLE, COUNTS_164K, UNUSED, without_is_void=False),
        Variant("164k-raw", TABLE, COUNTS_164K),
        Variant("10k", TABLE, COUNTS_10K, UNUSED, without_is_void=False, root=ROOT_10K),
        Variant("10k-raw", TABLE, COUNTS_10K, root=ROOT_10K),
    ),
    hint="data.root must hold images/train2017, images/val2017, annotations/train2017 and annotations/val2017, or the "
    "images, annotations and imageLists folders of COCO-Stuff 10k",
)
FOLDERS = {"train": "train2017", "val": "val2017"}
MASK_FOLDERS = ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017")
# Ending of the files that other tools write beside the masks.
CONVERTED = "TrainIds"
# The release calls its second split test.
LISTS = {"train": "train.txt", "val": "test.txt"}


def create_coco_stuff(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return a split of COCO-Stuff: ``images/train2017/ID.jpg`` and ``annotations/train2017/ID.png``, or ``val2017``.

    The variants ``10k`` and ``10k-raw`` read ``images/NAME.jpg`` and ``annotations/NAME.png``, else ``NAME.mat``, as
    ``imageLists/train.txt`` and, for ``val``, ``test.txt`` list them. Mask values 0 to 181 are the labels and 255 is
    void; without ``-raw`` the 171 that occur are numbered without gaps. The 10k release stores every label one higher
    in its MATLAB files and 0 for unlabelled: ``config.reduce_zero_label`` says that PNGs do so, too.
    """
    variant, root = COCO_STUFF.locate(config, split)
    pairs = _pairs_10k(root, split) if variant.root else _pairs_164k(root, split)
    # reduce_zero_label shifts every label, whichever of them are classes: the reader does it
    stored = config.model_copy(update={"reduce_zero_label": False})
    values = index_values(stored, variant.described, COCO_STUFF.name, correct="")
    reader = partial(read_labels, reduce_zero_label=config.reduce_zero_label)
    return COCO_STUFF.open(pairs, config, variant, split, training, values, reader)


def _pairs_164k(root: Path, split: str) -> tuple[Pair, ...]:
    folder = FOLDERS[split]
    images = COCO_STUFF.folder(root, f"images/{folder}", folder)
    masks = COCO_STUFF.folder(root, *(f"{name}/{folder}" for name in MASK_FOLDERS))
    return pair_folders(
        images, masks, f"coco-stuff {split}", mask_key=lambda stem: None if stem.endswith(CONVERTED) else stem
    )


def _pairs_10k(root: Path, split: str) -> tuple[Pair, ...]:
    lists = COCO_STUFF.folder(root, "imageLists", "imagesLists")
    images, masks = (COCO_STUFF.folder(root, name) for name in ("images", "annotations"))
    inner = ("", "train2014", "test2014")
    return pair_ids(
        read_ids(lists / LISTS[split], f"coco-stuff 10k {split}"),
        files_by_stem([images / name for name in inner], [".jpg"]),
        files_by_stem([masks / name for name in inner], [".png", ".mat"]),
        f"coco-stuff 10k {split} in {root}",
    )


def read_labels(pair: Pair, reduce_zero_label: bool = False) -> NDArray[Any]:
    """Return the labels (H,W), 0 to 181 and 255, of the mask of ``pair``; a MATLAB file's are one higher, 0 for none.

    So are a PNG's with ``reduce_zero_label``.
    """
    one_higher = reduce_zero_label or pair.mask.suffix == ".mat"
    mask = read_mat(pair.mask, "S") if pair.mask.suffix == ".mat" else read_index_mask(pair)
    if not one_higher or mask.dtype != np.uint8:
        return mask
    # 255 stays what it is: none of the labels is 255
    return np.where((mask == 0) | (mask == VOID), VOID, mask - 1).astype(np.uint8)
