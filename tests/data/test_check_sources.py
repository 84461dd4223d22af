"""`segtailor data check` on every kind of data set."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from segtailor.config import DataConfig
from segtailor.data.check import check_data
from segtailor.data.pack import pack
from segtailor.data.toy import LENGTHS

from . import street_trees as street
from .known_trees import write_ade20k, write_cityscapes, write_voc
from .street_trees import change, image, load, mask, write_street
from .trees import truncate, write_image


def check(tmp_path, **data):
    return check_data(DataConfig(**data), out=tmp_path / "out")


def kinds(report):
    return {finding.kind for finding in report.findings}


def test_masks_of_colors(tmp_path):
    root = write_street(tmp_path / "street")
    for path in street.all_masks(root):
        street.paint(path)
    assert check(tmp_path, name="folder", root=root, masks="color").findings == []
    path = mask(root, "train", 0)
    pixels = load(path)
    pixels[:2, :5] = (1, 2, 250)
    street.save(path, pixels)
    (root / "train" / "masks" / "001.png").unlink()
    report = check(tmp_path, name="folder", root=root, masks="color")
    found = {finding.kind: finding for finding in report.findings}
    assert found.keys() == {"unknown-colors", "image-without-mask"}
    assert "1 mask with 1 color that no class has: (1, 2, 250) (10 pixels)" in found["unknown-colors"].text
    assert "[[1, 2, 250]]" in found["unknown-colors"].advice


def test_colors_that_were_smoothed(tmp_path):
    root = write_street(tmp_path / "street")
    for path in street.all_masks(root):
        street.paint(path)
    path = mask(root, "train", 0)
    noise = np.random.default_rng(0).integers(-6, 7, (*street.SIZE, 3))
    street.save(path, np.clip(load(path).astype(int) + noise, 0, 255).astype(np.uint8))
    (finding,) = check(tmp_path, name="folder", root=root, masks="color").findings
    assert "smoothed or saved with loss" in finding.advice


def test_masks_of_one_class_each(tmp_path):
    root = tmp_path / "street"
    for split, first in (("train", 0), ("val", 100)):
        for index in range(3):
            street.save(image(root, split, index), street.photo(first + index))
            target = street.scene(first + index)
            for name, value in (("sky", 0), ("road", 1)):
                path = root / split / "masks" / name / f"{index:03d}.png"
                street.save(path, np.where(target == value, 255, 0).astype(np.uint8))
    (root / "classes.yaml").write_text("classes: [sky, road]")
    data = {"name": "folder", "root": root, "masks": "binary"}
    assert check(tmp_path, **data).findings == []
    truncate(root / "train/masks/road/001.png")
    for name in ("sky", "road"):
        (root / f"train/masks/{name}/002.png").unlink()
    (root / "val/masks/tram").mkdir()
    (root / "val/masks/road/000.png").rename(root / "val/masks/tram/000.png")
    image(root, "val", 1).unlink()
    report = check(tmp_path, **data)
    assert kinds(report) == {"unreadable-mask", "image-without-mask", "mask-without-image", "mask-of-no-class"}
    detail = next(finding for finding in report.findings if finding.kind == "unreadable-mask").locations[0].detail
    assert "road/001.png: truncated" in detail


def write_table(root):
    rows = ["image,mask,split"]
    for split in ("train", "val"):
        for path in sorted((root / split / "images").iterdir()):
            rows.append(f"{split}/images/{path.name},{split}/masks/{path.name},{split}")
    (root / "pairs.csv").write_text("\n".join(rows))
    return root / "pairs.csv"


def test_table(tmp_path):
    root = write_street(tmp_path / "street")
    data = {"name": "csv", "annotations": write_table(root)}
    assert check(tmp_path, **data).findings == []
    mask(root, "train", 3).unlink()
    image(root, "val", 3).unlink()
    change(mask(root, "train", 1), street.one_more)
    report = check(tmp_path, **data)
    assert kinds(report) == {"missing-mask", "missing-image", "labels-one-too-high"}
    assert report.name == "street"


def test_list(tmp_path):
    root = write_street(tmp_path / "street")
    names = [path.name for path in sorted((root / "train" / "images").iterdir())]
    (root / "train.txt").write_text("\n".join(f"train/images/{name} train/masks/{name}" for name in names))
    splits = {"train": {"list": "train.txt"}, "val": {"images": "val/images", "masks": "val/masks"}}
    image(root, "train", 5).unlink()
    assert kinds(check(tmp_path, name="folder", root=root, splits=splits)) == {"missing-image"}


def test_outlines(tmp_path):
    root = tmp_path / "coco"
    for split, first in (("train", 0), ("val", 10)):
        images, annotations = [], []
        for number in range(3):
            street.save(root / split / f"{number}.png", street.photo(first + number, (12, 16)))
            images.append({"id": number, "file_name": f"{number}.png", "height": 12, "width": 16})
            shape = [[2, 2, 9, 2, 9, 9, 2, 9]]
            annotations.append({"image_id": number, "category_id": 1, "segmentation": shape})
        content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "car"}]}
        (root / f"{split}.json").write_text(json.dumps(content))
    data = {"name": "coco-json", "root": root, "annotations": "{split}.json"}
    assert check(tmp_path, **data).findings == []
    (root / "train/2.png").unlink()
    write_image(root / "train/1.png", (10, 16))
    report = check(tmp_path, **data)
    assert kinds(report) == {"missing-image", "size-mismatch"}
    assert report.findings[1].locations[0].path.endswith("train/1.png")  # not the JSON


def test_rows_of_a_hugging_face_data_set(tmp_path):
    datasets = pytest.importorskip("datasets")
    root = write_street(tmp_path / "street", train=6, val=2)
    change(mask(root, "train", 1), street.corner(200))
    street.paint(mask(root, "train", 2))
    change(mask(root, "train", 3), lambda target: target[:-2])
    truncate(image(root, "train", 4))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, hub_split in (("train", "train"), ("val", "validation")):
        paths = sorted((root / split / "images").iterdir())
        rows = {
            kind: [{"bytes": (root / split / kind / path.name).read_bytes(), "path": None} for path in paths]
            for kind in ("images", "masks")
        }
        features = datasets.Features({"images": datasets.Image(), "masks": datasets.Image()})
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(tmp_path / "hub" / "data" / f"{hub_split}-00000-of-00001.parquet")
    (tmp_path / "names.yaml").write_text(street.CLASSES)
    report = check(
        tmp_path,
        name="hf",
        source=str(tmp_path / "hub"),
        image_column="images",
        mask_column="masks",
        val_split="validation",
        classes=tmp_path / "names.yaml",
    )
    found = {finding.kind: finding for finding in report.findings if finding.severity == "error"}
    assert found.keys() == {"unreadable-image", "color-masks", "size-mismatch", "values-outside-classes"}
    assert found["values-outside-classes"].locations[0].path.startswith("mask 1 of ")
    assert report.samples == 8


def test_pack_with_resized_images(tmp_path):
    root = write_street(tmp_path / "street", train=4, val=3)
    config = DataConfig(name="folder", root=root, size=(24, 32))
    pack(config, tmp_path / "packed")
    report = check(tmp_path, name="packed", root=tmp_path / "packed")
    assert report.errors == 0
    assert report.samples == 7


def test_drawn_scenes(tmp_path):
    report = check(tmp_path, name="toy", size=(24, 32), length=6)
    assert report.errors == 0
    assert {found.split: found.samples for found in report.tallies} == {"train": 6, "val": LENGTHS["val"]}


def photos(root):
    """Give every image a picture of its own: what the builders draw is the same in all splits."""
    for number, path in enumerate(
        sorted(path for path in root.rglob("*") if path.suffix == ".jpg" or "Img" in path.name)
    ):
        if path.is_file():
            with Image.open(path) as file:
                size = file.size[::-1]
            Image.fromarray(street.photo(number, size)).save(path)


def test_known_data_sets_in_their_published_values(tmp_path):
    voc = write_voc(tmp_path / "voc")
    ade = write_ade20k(tmp_path / "ade")
    city = write_cityscapes(tmp_path / "city", "train", ["aachen_000000_000019"], range(34))
    write_cityscapes(tmp_path / "city", "val", ["lindau_000000_000019"], [*range(19), 255], "labelTrainIds")
    for name, root in (("voc", voc), ("ade20k", ade), ("cityscapes", city)):
        photos(root)
        report = check(tmp_path, name=name, root=root)
        assert report.errors == 0
        assert kinds(report) <= {
            "other-count",
            "class-in-no-split",
            "class-not-in-train",
            "class-not-scored",
            "mostly-void",
        }


def test_listed_names_without_files(tmp_path):
    root = write_voc(tmp_path / "voc", train=("2007_000032", "2007_000039"))
    photos(root)
    (root / "JPEGImages" / "2007_000039.jpg").unlink()
    assert "missing-image" in kinds(check(tmp_path, name="voc", root=root))


def test_unlabelled_images_that_are_validation_images(tmp_path):
    root = write_street(tmp_path / "street")
    more = tmp_path / "more"
    for number in range(3):
        street.save(more / f"{number}.png", street.photo(500 + number))
    data = {"name": "folder", "root": root, "unlabelled": {"images": more}}
    assert check(tmp_path, **data).findings == []
    street.save_again(image(root, "val", 2), more / "same.jpg")
    street.save_again(image(root, "train", 2), more / "taught.jpg")  # harmless
    (more / "bad.png").write_bytes(b"")
    report = check(tmp_path, **data)
    assert kinds(report) == {"duplicate-across-splits", "empty-image"}
    duplicates = next(finding for finding in report.findings if finding.kind == "duplicate-across-splits")
    assert [place.path for place in duplicates.locations] == [str(more / "same.jpg")]
    report = check(tmp_path, name="folder", root=root, unlabelled={"images": tmp_path / "none"})
    assert kinds(report) == {"split-not-opened"}


def test_jpeg_masks_and_grey_masks_in_three_channels(tmp_path):
    root = write_street(tmp_path / "street")
    content = io.BytesIO()
    Image.fromarray(load(mask(root, "train", 0))).save(content, "JPEG")
    mask(root, "train", 0).write_bytes(content.getvalue())
    change(mask(root, "train", 1), lambda target: np.stack([target] * 3, axis=2))
    report = check(tmp_path, name="folder", root=root)
    assert kinds(report) == {"unreadable-mask", "grey-stored-as-color"}
    assert "must not be a JPEG" in report.text()


def test_colors_of_many_masks_are_named_most_common_first(tmp_path):
    root = write_street(tmp_path / "street", classes="classes: [a, b]\n", train=1, val=1)
    pixels = np.full((60, 80, 3), (1, 2, 250), np.uint8)
    pixels[:4] = (255, 0, 7)
    street.save(mask(root, "train", 0), pixels)
    street.save(mask(root, "val", 0), pixels)
    (finding,) = (f for f in check(tmp_path, name="folder", root=root).findings if f.kind == "color-masks")
    assert finding.advice.endswith("under void_colors: [1, 2, 250], [255, 0, 7]")


def test_images_of_12_bits_in_16_are_reported_as_nearly_black(tmp_path):
    root = write_street(tmp_path / "street")
    path = image(root, "train", 3)
    street.save(path, load(path).astype(np.uint16)[..., 0] * 16)  # to 4095 of 65535
    (finding,) = check(tmp_path, name="folder", root=root).findings
    assert (finding.kind, finding.severity) == ("nearly-black-image", "warning")
    assert [at.path for at in finding.locations] == [str(path)]
