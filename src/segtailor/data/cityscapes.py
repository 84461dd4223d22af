"""Cityscapes with its 19 evaluated classes (Cordts et al., CVPR 2016)."""

from __future__ import annotations

from pathlib import Path

from segtailor.config import DataConfig
from segtailor.data.base import Color
from segtailor.data.files import FileDataset, MaskValues
from segtailor.data.pairs import pair_folders, require_folder

# name, colour, and the number that the class has in *_labelIds.png
CLASSES: tuple[tuple[str, Color, int], ...] = (
    ("road", (128, 64, 128), 7),
    ("sidewalk", (244, 35, 232), 8),
    ("building", (70, 70, 70), 11),
    ("wall", (102, 102, 156), 12),
    ("fence", (190, 153, 153), 13),
    ("pole", (153, 153, 153), 17),
    ("traffic light", (250, 170, 30), 19),
    ("traffic sign", (220, 220, 0), 20),
    ("vegetation", (107, 142, 35), 21),
    ("terrain", (152, 251, 152), 22),
    ("sky", (70, 130, 180), 23),
    ("person", (220, 20, 60), 24),
    ("rider", (255, 0, 0), 25),
    ("car", (0, 0, 142), 26),
    ("truck", (0, 0, 70), 27),
    ("bus", (0, 60, 100), 28),
    ("train", (0, 80, 100), 31),
    ("motorcycle", (0, 0, 230), 32),
    ("bicycle", (119, 11, 32), 33),
)
LARGEST_ID = 33
# What the published training code pads with: the mean of ImageNet, not of Cityscapes.
MEAN_COLOR: Color = (123, 117, 104)
LICENCE = "Cityscapes (Cordts et al., 2016): non-commercial research use, no redistribution"
IMAGE_ENDING = "_leftImg8bit"
# The first ending found is read: ids as distributed, else the train ids that Cityscapes' own scripts write.
IDS_ENDING, TRAIN_IDS_ENDING = "_gtFine_labelIds", "_gtFine_labelTrainIds"
HINT = "data.root must hold Cityscapes' leftImg8bit and gtFine folders"


def create_cityscapes(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return a split of Cityscapes: ``leftImg8bit/SPLIT/CITY/*_leftImg8bit.png`` and ``gtFine/SPLIT/CITY/``.

    Masks are ``*_gtFine_labelIds.png``, whose ids are mapped to the 19 classes on reading and to void otherwise; a
    split that has none of these is read from ``*_gtFine_labelTrainIds.png``. The root is ``config.root``, else
    ``data/cityscapes``. Raises ``SegtailorError`` for missing folders and for images or masks without a partner.
    """
    root = require_folder(config.root or Path("data/cityscapes"), HINT)
    images, masks = (require_folder(root / name / split, HINT) for name in ("leftImg8bit", "gtFine"))
    raw = next(masks.glob(f"*/*{IDS_ENDING}.png"), None) is not None
    mask_ending = IDS_ENDING if raw else TRAIN_IDS_ENDING
    pairs = pair_folders(
        images,
        masks,
        f"cityscapes {split}",
        image_key=lambda stem: _without(stem, IMAGE_ENDING),
        mask_key=lambda stem: _without(stem, mask_ending),
    )
    if raw:
        values = {number: index for index, (_, _, number) in enumerate(CLASSES)}
        void = [number for number in range(LARGEST_ID) if number not in values]
    else:
        values, void = {index: index for index in range(len(CLASSES))}, []
    return FileDataset(
        pairs,
        name="cityscapes",
        split=split,
        classes=tuple(name for name, _, _ in CLASSES),
        palette=tuple(color for _, color, _ in CLASSES),
        mean_color=MEAN_COLOR,
        licence=LICENCE,
        values=MaskValues(values, void),
        size=config.size,
        training=training,
    )


def _without(stem: str, ending: str) -> str | None:
    return stem.removesuffix(ending) if stem.endswith(ending) else None
