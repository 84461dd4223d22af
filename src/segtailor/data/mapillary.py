"""Mapillary Vistas, v1.2 and v2.0 (Neuhold et al., ICCV 2017)."""

from __future__ import annotations

from pathlib import Path

from segtailor.config import DataConfig
from segtailor.data.benchmark import BenchmarkDataset, Variant
from segtailor.data.paired import FileDataset
from segtailor.data.pairing import pair_folders

COUNTS = {"train": 18000, "val": 2000}
# Labels that the benchmark does not score: the configuration's field `evaluate` is false.
UNSCORED_V12 = ("unlabeled",)
UNSCORED_V20 = (
    "ambiguous barrier", "person group", "lane marking - ambiguous", "signage - ambiguous", "pole group",
    "traffic sign - ambiguous", "vehicle group", "unlabeled",
)  # fmt: skip
MAPILLARY = BenchmarkDataset(
    name="mapillary",
    title="Mapillary Vistas: street scenes of the whole world, 66 labels (v1.2) or 124 (v2.0)",
    license="Mapillary Vistas (Neuhold et al., 2017): CC-BY-NC-SA-4.0",
    root=Path("data/mapillary"),
    variants=(
        Variant("v1.2", "mapillary-v1.2", COUNTS, UNSCORED_V12),
        Variant("v1.2-all", "mapillary-v1.2", COUNTS),
        Variant("v2.0", "mapillary-v2.0", COUNTS, UNSCORED_V20),
        Variant("v2.0-all", "mapillary-v2.0", COUNTS),
    ),
    hint="data.root must hold Mapillary Vistas' training and validation folders, each with images and v1.2/labels or "
    "v2.0/labels",
)
FOLDERS = {"train": "training", "val": "validation"}


def create_mapillary(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return a split of Mapillary Vistas: ``training/images/*.jpg`` and ``training/v1.2/labels/*.png``, or ``v2.0``.

    The split ``val`` is ``validation``; v1.2 is also read from ``training/labels``, where its own release has it. Masks
    are palette PNGs of label indices. The variants ``v1.2`` and ``v2.0`` have the 65 and 116 classes that the benchmark
    scores, and their other labels are void; with ``-all`` every one of the 66 or 124 labels is a class.
    """
    variant, root = MAPILLARY.locate(config, split)
    version, folder = variant.name.removesuffix("-all"), FOLDERS[split]
    images = MAPILLARY.folder(root, f"{folder}/images")
    plain = [f"{folder}/labels"] if version == "v1.2" else []
    masks = MAPILLARY.folder(root, f"{folder}/{version}/labels", *plain)
    pairs = pair_folders(images, masks, f"mapillary {version} {split}")
    return MAPILLARY.open(pairs, config, variant, split, training)
