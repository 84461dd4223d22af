"""A small folder of street scenes without a fault, and one function for each fault that is planted in it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (48, 64)
COLORS = {
    "sky": (70, 130, 180),
    "road": (128, 64, 128),
    "bus": (0, 60, 100),
    "tram": (150, 200, 100),
    "car": (0, 0, 142),
    "person": (220, 20, 60),
}
BUS, TRAM, CAR, PERSON = 2, 3, 4, 5
# The scenes in which the rare classes are.
RARE = {("train", 22): BUS, ("train", 23): TRAM, ("val", 6): BUS, ("val", 7): TRAM}
PALETTE = tuple(COLORS.values())
CLASSES = f"classes: {{{', '.join(f'{name}: {list(color)}' for name, color in COLORS.items())}}}\n"
TRAIN, VAL = 24, 8


def photo(seed: int, size=SIZE) -> np.ndarray:
    """Return a picture (H,W,3) whose coarse shapes are its own, as those of a photo are."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return np.array(coarse.resize(size[::-1], Image.Resampling.BICUBIC))


def scene(seed: int, size=SIZE) -> np.ndarray:
    """Return class indices (H,W): sky above road, a car, a small person, much the same in all scenes."""
    rng = np.random.default_rng(seed)
    height, width = size
    target = np.zeros(size, np.uint8)
    target[int(height * rng.uniform(0.4, 0.5)) :] = 1
    left = rng.integers(2, width // 2)
    target[height // 2 : height // 2 + height // 4, left : left + width // 4] = CAR
    left = rng.integers(2, width - 8)
    target[height // 2 : height - 4, left : left + 4] = PERSON
    return target


def write_street(root: Path, train=TRAIN, val=VAL, classes=CLASSES) -> Path:
    for split, first, length in (("train", 0, train), ("val", 1000, val)):
        for index in range(length):
            save(image(root, split, index), photo(first + index))
            target = scene(first + index)
            if (split, index) in RARE:
                target[-4:, -12:] = RARE[split, index]
            save(mask(root, split, index), target)
    (root / "classes.yaml").write_text(classes)
    return root


def image(root: Path, split: str, index: int) -> Path:
    return root / split / "images" / f"{index:03d}.png"


def mask(root: Path, split: str, index: int) -> Path:
    return root / split / "masks" / f"{index:03d}.png"


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def load(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.array(file)


def change(path: Path, function) -> None:
    """Rewrite the mask at ``path`` as ``function`` of its numbers."""
    save(path, np.ascontiguousarray(function(load(path))))


def all_masks(root: Path) -> list[Path]:
    return sorted(root.glob("*/masks/*.png")) or sorted(root.glob("*annot/*.png"))


def corner(value: int):
    """Return what sets the upper left corner of a mask to ``value``."""

    def set_corner(target: np.ndarray) -> np.ndarray:
        target[:6, :8] = value
        return target

    return set_corner


def unreduced(target: np.ndarray) -> np.ndarray:
    """Count the classes from 1, with 0 at the lower edge."""
    target = np.where(target == 255, 255, target + 1).astype(np.uint8)
    target[-2:] = 0
    return target


def without(*classes: int):
    """Return what makes ``classes`` road."""
    return lambda target: np.where(np.isin(target, classes), 1, target).astype(np.uint8)


def one_less(target: np.ndarray) -> np.ndarray:
    return target - np.uint8(1)  # 0 becomes 255


def one_more(target: np.ndarray) -> np.ndarray:
    return target + np.uint8(1)


def binary(target: np.ndarray) -> np.ndarray:
    return np.where(target == CAR, 255, 0).astype(np.uint8)


def grey(target: np.ndarray, palette=PALETTE) -> np.ndarray:
    colors = np.array([*palette, *[(0, 0, 0)] * (256 - len(palette))], np.uint8)
    return np.array(Image.fromarray(colors[target]).convert("L"))


def paint(path: Path, palette=PALETTE) -> None:
    """Make an RGB mask of the index mask at ``path``."""
    save(path, np.array(palette, np.uint8)[load(path)])


def permute_palette(path: Path, palette=PALETTE) -> None:
    """Store other indices, and a palette that still gives every pixel its class's color."""
    order = np.array([*np.roll(np.arange(len(palette)), 1), *range(len(palette), 256)], np.uint8)
    colors = np.zeros((256, 3), np.uint8)
    colors[order[: len(palette)]] = palette
    file = Image.fromarray(order[load(path)])
    file.putpalette(colors.ravel().tolist())
    file.save(path)


def add_palette(path: Path, palette=PALETTE) -> None:
    file = Image.fromarray(load(path))
    file.putpalette([channel for color in palette for channel in color])
    file.save(path)


def rotate(path: Path, orientation=6) -> None:
    """Give the image at ``path`` a note that it was held sideways; its pixels stay."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as file:
        file.load()
        file.save(path, exif=exif)


def save_again(source: Path, target: Path, quality=60, scale=1.0) -> None:
    """Write the image at ``source`` to ``target`` by way of a JPEG of ``quality``, at ``scale`` times its size."""
    with Image.open(source) as file:
        size = (round(file.width * scale), round(file.height * scale))
        content = io.BytesIO()
        file.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(content, "JPEG", quality=quality)
    with Image.open(content) as file:
        file.save(target)
