"""ADE20K's scene parsing benchmark with 150 classes (Zhou et al., CVPR 2017)."""

from __future__ import annotations

from pathlib import Path

from segtailor.config import DataConfig
from segtailor.data.benchmark import BenchmarkDataset, Variant
from segtailor.data.paired import FileDataset
from segtailor.data.pairing import pair_folders

ADE20K = BenchmarkDataset(
    name="ade20k",
    title="ADE20K: scenes indoors and outdoors, the 150 classes of the scene parsing benchmark",
    license="ADE20K (Zhou et al., 2017): images for non-commercial research and education, annotations BSD-3-Clause",
    root=Path("data/ade20k"),
    variants=(Variant("default", "ade20k", {"train": 20210, "val": 2000}),),
    hint="data.root must hold the images and annotations folders of ADEChallengeData2016",
    inner=("ADEChallengeData2016",),
)
FOLDERS = {"train": "training", "val": "validation"}


def create_ade20k(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return a split of ADE20K: ``images/training/*.jpg`` and ``annotations/training/*.png``, or ``validation``.

    Mask value 0, other, is void, and 1 to 150 are the classes.
    """
    variant, root = ADE20K.locate(config, split)
    images, masks = (ADE20K.folder(root, f"{name}/{FOLDERS[split]}") for name in ("images", "annotations"))
    return ADE20K.open(pair_folders(images, masks, f"ade20k {split}"), config, variant, split, training)
