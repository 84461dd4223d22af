"""Small trees in the layouts of the known data sets; a mask holds its values one after the other, from its start."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from segtailor.config import DataConfig
from segtailor.data import create_dataset

from .trees import write_image, write_mask

SIZE = (12, 24)


def save_mask(path: Path, values, palette=False) -> Path:
    """Write a mask of ``SIZE`` whose first pixels are ``values`` and whose others are the first of them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(SIZE, values[0], np.uint8)
    pixels.flat[: len(values)] = values
    image = Image.fromarray(pixels)
    if palette:
        # colors that, read as grey, are other numbers than the indices
        image.putpalette([(index * 37 + shift) % 256 for index in range(256) for shift in (0, 80, 160)])
    image.save(path)
    return path


def save_mat(path: Path, values, key, dtype=np.uint16) -> Path:
    from scipy.io import savemat

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full(SIZE, values[0], dtype)
    pixels.flat[: len(values)] = values
    savemat(path, {key: pixels})
    return path


def photo(path: Path) -> Path:
    return write_image(path, SIZE)


def write_list(path: Path, names) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{name}\n" for name in names))
    return path


def write_cityscapes(root: Path, split: str, names, values, kind="labelIds", annotations="gtFine") -> Path:
    """Write images and masks ``CITY_..._ANNOTATIONS_KIND.png`` with the files that lie beside them."""
    for name in names:
        city = name.split("_")[0]
        photo(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png")
        folder = root / annotations / split / city
        save_mask(folder / f"{name}_{annotations}_{kind}.png", values)
        write_mask(folder / f"{name}_{annotations}_instanceIds.png", SIZE)
        write_image(folder / f"{name}_{annotations}_color.png", SIZE)
        (folder / f"{name}_{annotations}_polygons.json").write_text("{}")
    return root


def write_voc(root: Path, train=("2007_000032",), val=("2007_000033",), values=(0, 1, 20, 255)) -> Path:
    """Write VOC2012 as it is unpacked: palette PNGs, lists, and images that have no mask."""
    for name in (*train, *val):
        photo(root / "JPEGImages" / f"{name}.jpg")
        save_mask(root / "SegmentationClass" / f"{name}.png", values, palette=True)
        save_mask(root / "SegmentationObject" / f"{name}.png", (0, 1), palette=True)
    photo(root / "JPEGImages" / "2012_000001.jpg")
    for split, names in {"train": train, "val": val, "trainval": (*train, *val)}.items():
        write_list(root / "ImageSets" / "Segmentation" / f"{split}.txt", names)
    return root


def write_sbd(root: Path, names, values=(0, 2, 255)) -> Path:
    """Write grey masks of SBD beside VOC's."""
    for name in names:
        if not (root / "JPEGImages" / f"{name}.jpg").exists():
            photo(root / "JPEGImages" / f"{name}.jpg")
        save_mask(root / "SegmentationClassAug" / f"{name}.png", values)
    return root


def write_ade20k(root: Path, values=(0, 1, 150), count=2) -> Path:
    for folder, kind in (("training", "train"), ("validation", "val")):
        for number in range(1, count + 1):
            name = f"ADE_{kind}_{number:08d}"
            photo(root / "images" / folder / f"{name}.jpg")
            save_mask(root / "annotations" / folder / f"{name}.png", values)
    (root / "objectInfo150.txt").write_text("")
    return root


def write_coco_164k(root: Path, values, folder="annotations", names=("000000000139", "000000000285")) -> Path:
    for split in ("train2017", "val2017"):
        for name in names:
            photo(root / "images" / split / f"{name}.jpg")
            save_mask(root / folder / split / f"{name}.png", values)
    return root


def write_coco_10k(root: Path, values, suffix=".png") -> Path:
    train, test = ("COCO_train2014_000000000077", "COCO_train2014_000000000081"), ("COCO_train2014_000000000092",)
    for name in (*train, *test):
        photo(root / "images" / f"{name}.jpg")
        if suffix == ".png":
            save_mask(root / "annotations" / f"{name}.png", values)
        else:
            save_mat(root / "annotations" / f"{name}.mat", values, "S")
    for split, names in {"train": train, "test": test, "all": (*train, *test)}.items():
        write_list(root / "imageLists" / f"{split}.txt", names)
    return root


def write_mapillary(root: Path, values, folders=("v1.2/labels",), names=("aB3_x-Yz",)) -> Path:
    """Write palette PNGs in each of ``folders`` of training and validation, and the instances beside them."""
    for split in ("training", "validation"):
        for name in names:
            photo(root / split / "images" / f"{name}.jpg")
            for folder in folders:
                save_mask(root / split / folder / f"{name}.png", values, palette=True)
                instances = folder.replace("labels", "instances")
                save_mask(root / split / instances / f"{name}.png", values)
    return root


def write_voc2010(root: Path, lists="ImageSets/SegmentationContext") -> Path:
    """Write VOC2010 without masks: two images to train on and one to validate on."""
    train, val = ("2008_000002", "2008_000003"), ("2008_000015",)
    for name in (*train, *val, "2010_000001"):
        photo(root / "JPEGImages" / f"{name}.jpg")
    for split, names in {"train": train, "val": val}.items():
        write_list(root / lists / f"{split}.txt", names)
    return root


def write_context_masks(root: Path, folder: str, values) -> Path:
    for name in ("2008_000002", "2008_000003", "2008_000015"):
        if folder == "trainval":
            save_mat(root / folder / f"{name}.mat", values, "LabelMap")
        else:
            save_mask(root / folder / f"{name}.png", values)
    return root


def write_loveda(root: Path, values=range(8)) -> Path:
    numbers = {
        "Train/Rural": (0, 1),
        "Train/Urban": (1366,),
        "Val/Rural": (2522,),
        "Val/Urban": (3514,),
    }
    for scene, names in numbers.items():
        for name in names:
            photo(root / scene / "images_png" / f"{name}.png")
            save_mask(root / scene / "masks_png" / f"{name}.png", list(values))
    photo(root / "Test" / "Urban" / "images_png" / "4191.png")
    return root


def open_known(name: str, root: Path, split="train", training=True, **options):
    return create_dataset(DataConfig(name=name, root=root, **options), split, training)


def first_targets(dataset, count: int, index=0) -> list[int]:
    """Return the first ``count`` pixels of the target of sample ``index``."""
    return dataset[index].target.flatten()[:count].tolist()


def names_of(dataset) -> list[str]:
    return [dataset[index].name for index in range(len(dataset))]
