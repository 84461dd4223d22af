"""Small trees of images and masks on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def write_image(path: Path, size=(12, 16), seed=0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_mask(path: Path, size=(12, 16), values=(0, 1), palette=None, seed=0) -> Path:
    """Write a mask that holds every one of ``values``; with ``palette`` (a flat list) as a palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).choice(np.array(values, np.uint8), size)
    pixels.flat[: len(values)] = values
    image = Image.fromarray(pixels)
    if palette is not None:
        image = image.copy()
        image.putpalette(palette)
    image.save(path)
    return path


def write_pair(images: Path, masks: Path, name: str, suffix=".png", **options) -> tuple[Path, Path]:
    """Write ``images/NAME`` and ``masks/NAME.png``."""
    return write_image(images / (name + suffix)), write_mask(masks / (name + ".png"), **options)


def write_camvid(root: Path, names=("a", "b", "c"), suffix=".png", splits=("train", "val"), **options) -> Path:
    for split in splits:
        for name in names:
            write_pair(root / split, root / f"{split}annot", name, suffix, **{"values": (0, 3, 10, 11), **options})
    return root


def write_folder(root: Path, names=("a", "b"), classes="classes: [road, car]", splits=("train", "val")) -> Path:
    for split in splits:
        for name in names:
            write_pair(root / split / "images", root / split / "masks", name)
    (root / "classes.yaml").write_text(classes)
    return root


def truncate(path: Path, keep=0.6) -> Path:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    return path
