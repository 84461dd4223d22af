"""Small trees of a user's own images: color masks, one mask per class, photos that were held sideways."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .trees import write_image

# class indices of two rows of three pixels, as every tree below stores them
TARGET = [[0, 1, 1], [255, 0, 1]]
SIZE = (2, 3)


def save(path: Path, pixels, mode=None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels))
    (image.convert(mode) if mode else image).save(path)
    return path


def write_colors(root: Path, colors, target=TARGET, names=("a",), split="train", mode=None) -> Path:
    """Write images and masks whose pixels are ``colors[class]``."""
    pixels = np.array([[colors[value] for value in row] for row in target], np.uint8)
    for name in names:
        write_image(root / split / "images" / f"{name}.png", pixels.shape[:2])
        save(root / split / "masks" / f"{name}.png", pixels, mode)
    return root


def write_sideways(path: Path, orientation: int, size=(12, 16)) -> np.ndarray:
    """Write a photo of the stored ``size`` with an EXIF note; return its pixels (H,W,3) as a viewer shows them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    turns = {
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    with Image.open(path) as file:
        return np.array(file.convert("RGB").transpose(turns[orientation]) if orientation in turns else file)
