"""LoveDA, land cover from the air, with 7 classes (Wang et al., NeurIPS Datasets and Benchmarks 2021)."""

from __future__ import annotations

from pathlib import Path

from segtailor.config import DataConfig
from segtailor.data.benchmark import BenchmarkDataset, Variant
from segtailor.data.paired import FileDataset
from segtailor.data.pairing import Pair, pair_folders

LOVEDA = BenchmarkDataset(
    name="loveda",
    title="LoveDA: land cover of three Chinese cities from the air, 0.3 m a pixel, 7 classes",
    license="LoveDA (Wang et al., 2021): CC-BY-NC-SA-4.0, academic use",
    root=Path("data/loveda"),
    variants=(
        Variant("all", "loveda", {"train": 2522, "val": 1669}),
        Variant("urban", "loveda", {"train": 1156, "val": 677}),
        Variant("rural", "loveda", {"train": 1366, "val": 992}),
    ),
    hint="data.root must hold LoveDA's Train and Val folders, each with Urban and Rural",
)
SCENES = {"all": ("Urban", "Rural"), "urban": ("Urban",), "rural": ("Rural",)}
FOLDERS = {"train": "Train", "val": "Val"}


def create_loveda(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return a split of LoveDA: ``Train/Urban/images_png/N.png`` and ``Train/Urban/masks_png/N.png``, and ``Rural``.

    The split ``val`` is ``Val``; the variants ``urban`` and ``rural`` read one of the two folders. Mask value 0, no
    data, is void, and 1 to 7 are the classes.
    """
    variant, root = LOVEDA.locate(config, split)
    pairs = tuple(pair for scene in SCENES[variant.name] for pair in _pairs(root / FOLDERS[split], scene))
    return LOVEDA.open(pairs, config, variant, split, training)


def _pairs(folder: Path, scene: str) -> tuple[Pair, ...]:
    images, masks = (LOVEDA.folder(folder, f"{scene}/{name}") for name in ("images_png", "masks_png"))
    # file names are unique across scenes, but a name should show the scene
    found = pair_folders(images, masks, f"loveda {folder.name} {scene}")
    return tuple(pair._replace(name=f"{scene}/{pair.name}") for pair in found)
