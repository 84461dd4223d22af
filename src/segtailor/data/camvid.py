"""CamVid with 11 classes, the SegNet split (Brostow et al., Pattern Recognition Letters 30, 2009)."""

from __future__ import annotations

import os
from pathlib import Path

from segtailor.config import DataConfig
from segtailor.data.base import Color
from segtailor.data.files import FileDataset, MaskValues
from segtailor.data.pairs import pair_folders, pair_list, require_folder

CLASSES: tuple[tuple[str, Color], ...] = (
    ("sky", (128, 128, 128)),
    ("building", (128, 0, 0)),
    ("pole", (192, 192, 128)),
    ("road", (128, 64, 128)),
    ("pavement", (60, 40, 222)),
    ("tree", (128, 128, 0)),
    ("sign-symbol", (192, 128, 128)),
    ("fence", (64, 64, 128)),
    ("car", (64, 0, 128)),
    ("pedestrian", (64, 64, 0)),
    ("bicyclist", (0, 128, 192)),
)
UNLABELLED = 11
MEAN_COLOR = (105, 108, 110)  # of the 367 training frames
LICENCE = "CamVid (Brostow et al., 2009): research use"
HINT = "set data.root or SEGTAILOR_CAMVID to the folder that holds CamVid's train, trainannot, val and valannot"


def create_camvid(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return a split of CamVid: ``SPLIT/`` and ``SPLITannot/``, frames .png or .jpg; ``SPLIT.txt`` lists the frames.

    The root is ``config.root``, else ``$SEGTAILOR_CAMVID``, else ``data/camvid``. Without a list file all frames of the
    folder are taken. Raises ``SegtailorError`` for missing folders and for frames or masks without a partner.
    """
    root = require_folder(config.root or Path(os.environ.get("SEGTAILOR_CAMVID") or "data/camvid"), HINT)
    listed = root / f"{split}.txt"
    where = f"camvid {split}"
    if listed.is_file():
        pairs = pair_list(listed, root, where)
    else:
        images, masks = (require_folder(root / name, HINT) for name in (split, f"{split}annot"))
        pairs = pair_folders(images, masks, where)
    return FileDataset(
        pairs,
        name="camvid",
        split=split,
        classes=tuple(name for name, _ in CLASSES),
        palette=tuple(color for _, color in CLASSES),
        mean_color=MEAN_COLOR,
        licence=LICENCE,
        values=MaskValues({index: index for index in range(len(CLASSES))}, void=(UNLABELLED,)),
        size=config.size,
        training=training,
    )
