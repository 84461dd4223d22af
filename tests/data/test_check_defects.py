"""Every defect that `segtailor data check` is to find, planted in a copy: each alone, and all together."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.data.check import check_data

from . import street_trees as street
from .street_trees import change, image, load, mask, save
from .trees import truncate

# A street's folder has 24 training scenes; each defect that is in a few files has scenes of its own.


def plant_value_above(root):
    change(mask(root, "train", 0), street.corner(17))


def plant_255(root):
    change(mask(root, "train", 1), street.corner(255))


def plant_zero_label(root):
    change(mask(root, "train", 2), street.unreduced)


def plant_one_too_high(root):
    change(mask(root, "train", 3), street.one_more)


def plant_one_too_low(root):
    change(mask(root, "train", 4), street.one_less)


def plant_binary(root):
    change(mask(root, "train", 5), street.binary)


def plant_grey(root):
    change(mask(root, "train", 6), street.grey)


def plant_wrong_palette(root):
    street.permute_palette(mask(root, "train", 7))


def plant_16_bit(root):
    path = mask(root, "train", 8)
    save(path, load(path).astype(np.uint16))


def plant_16_bit_scaled(root):
    path = mask(root, "train", 9)
    save(path, load(path).astype(np.uint16) * 257)


def plant_size(root):
    change(mask(root, "train", 10), lambda target: target[:-1])


def plant_rotated(root):
    street.rotate(image(root, "train", 11))


def plant_truncated(root):
    truncate(image(root, "train", 12))


def plant_empty_mask(root):
    mask(root, "train", 13).write_bytes(b"")


def plant_no_mask(root):
    mask(root, "train", 14).unlink()


def plant_no_image(root):
    image(root, "train", 15).unlink()


def plant_duplicate(root):
    street.save_again(image(root, "train", 16), image(root, "val", 0))


def plant_smaller_duplicate(root):
    street.save_again(image(root, "train", 17), image(root, "val", 1), quality=90, scale=0.5)
    change(mask(root, "val", 1), lambda target: target[::2, ::2])


def plant_void_mask(root):
    change(mask(root, "train", 18), lambda target: np.full_like(target, 255))


def plant_text_among_images(root):
    (root / "train" / "images" / "notes.txt").write_text("night scenes are missing")


def plant_text_called_image(root):
    image(root, "train", 19).write_text("no picture")


def plant_rgb_mask(root):
    street.paint(mask(root, "train", 20))


def plant_class_nowhere(root):
    for split, index in (("train", 23), ("val", 7)):
        change(mask(root, split, index), street.without(street.TRAM))


def plant_class_only_in_val(root):
    change(mask(root, "train", 22), street.without(street.BUS))


DEFECTS = {
    plant_value_above: {"values-outside-classes"},
    plant_255: {"255-not-declared"},
    plant_zero_label: {"zero-label-not-reduced"},
    plant_one_too_high: {"labels-one-too-high"},
    plant_one_too_low: {"labels-one-too-low"},
    plant_binary: {"binary-mask"},
    plant_grey: {"colors-read-as-grey"},
    plant_wrong_palette: {"wrong-palette"},
    plant_16_bit: {"16-bit-mask"},
    plant_16_bit_scaled: {"16-bit-values"},
    plant_size: {"size-mismatch"},
    plant_rotated: {"exif-rotated"},
    plant_truncated: {"truncated-image"},
    plant_empty_mask: {"empty-mask"},
    plant_no_mask: {"image-without-mask"},
    plant_no_image: {"mask-without-image"},
    plant_duplicate: {"duplicate-across-splits"},
    plant_smaller_duplicate: {"duplicate-across-splits"},
    plant_void_mask: {"255-not-declared", "all-void"},
    plant_text_among_images: {"not-an-image"},
    plant_text_called_image: {"undecodable-image"},
    plant_rgb_mask: {"color-masks"},
    plant_class_nowhere: {"class-in-no-split"},
    plant_class_only_in_val: {"class-not-in-train"},
}
WARNINGS = {
    "255-not-declared", "16-bit-mask", "exif-rotated", "all-void", "not-an-image", "class-in-no-split",
    "class-not-in-train",
}  # fmt: skip


def check(root, tmp_path, **data):
    return check_data(DataConfig(name="folder", root=root, **data), out=tmp_path / "out")


def by_kind(report):
    return {finding.kind: finding for finding in report.findings}


def test_a_tree_without_a_fault_is_clean(tmp_path):
    report = check(street.write_street(tmp_path / "street"), tmp_path)
    assert report.findings == []
    assert report.samples == street.TRAIN + street.VAL


@pytest.mark.parametrize("plant", DEFECTS, ids=lambda plant: plant.__name__)
def test_each_defect_alone_is_all_that_is_found(tmp_path, plant):
    root = street.write_street(tmp_path / "street")
    plant(root)
    found = by_kind(check(root, tmp_path))
    assert found.keys() == DEFECTS[plant]
    for kind, finding in found.items():
        assert finding.severity == ("warning" if kind in WARNINGS else "error")
        assert len(finding.locations) == 1


def test_all_defects_together_are_all_found(tmp_path):
    root = street.write_street(tmp_path / "street")
    for plant in DEFECTS:
        plant(root)
    found = by_kind(check(root, tmp_path))
    assert found.keys() == set().union(*DEFECTS.values())
    assert len(found["duplicate-across-splits"].locations) == 2
    assert len(found["255-not-declared"].locations) == 2
    assert all(
        len(found[kind].locations) == 1 for kind in found.keys() - {"duplicate-across-splits", "255-not-declared"}
    )


def test_classes_that_are_missing_are_named(tmp_path):
    root = street.write_street(tmp_path / "street")
    plant_class_nowhere(root)
    plant_class_only_in_val(root)
    found = by_kind(check(root, tmp_path))
    assert "1 class (tram) in no mask of train and val" in found["class-in-no-split"].text
    assert "1 class (bus) in val, but never in train" in found["class-not-in-train"].text
    assert found["class-not-in-train"].locations[0].path.endswith("val/masks/006.png")
    # a class that is only learnt is worth a note
    change(mask(root, "train", 22), street.corner(street.BUS))
    change(mask(root, "val", 6), street.without(street.BUS))
    found = by_kind(check(root, tmp_path))
    assert found["class-not-scored"].severity == "note"


def camvid() -> Path:
    return Path(os.environ.get("SEGTAILOR_CAMVID") or "data/camvid")


@pytest.mark.skipif(not (camvid() / "train").is_dir(), reason=f"no CamVid in {camvid()}")
def test_defects_in_a_copy_of_camvid(tmp_path):
    root = tmp_path / "camvid"
    for split, every in (("train", 9), ("val", 8)):
        for path in sorted((camvid() / split).iterdir())[::every]:
            name = f"{path.stem}.png"
            for source, target in ((path, root / split), (camvid() / f"{split}annot" / name, root / f"{split}annot")):
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
    config = DataConfig(name="camvid", root=root)
    clean = check_data(config, out=tmp_path / "clean")
    assert {finding.kind for finding in clean.findings} == {"other-count"}  # a part of what is published

    train, val = (create_dataset(config, split, False) for split in ("train", "val"))
    palette = train.palette
    for pair in (*train.pairs, *val.pairs):
        # no fence anywhere, and bicyclists in val alone
        gone = (7,) if pair in val.pairs else (7, 10)
        change(pair.mask, lambda target, gone=gone: np.where(np.isin(target, gone), 11, target).astype(np.uint8))
    masks = {
        "values-outside-classes": street.corner(40),
        "255-not-declared": street.corner(255),
        "zero-label-not-reduced": street.unreduced,
        "labels-one-too-high": street.one_more,
        "labels-one-too-low": street.one_less,
        "binary-mask": lambda target: np.where(target == 3, 255, 0).astype(np.uint8),
        "colors-read-as-grey": lambda target: street.grey(target, palette),
        "16-bit-mask": lambda target: target.astype(np.uint16),
        "16-bit-values": lambda target: target.astype(np.uint16) << 8,
        "size-mismatch": lambda target: target[::2, ::2],
        "all-void": lambda target: np.full_like(target, 11),
    }
    for pair, function in zip(train.pairs, masks.values(), strict=False):
        change(pair.mask, function)
    free = iter(train.pairs[len(masks) :])
    street.permute_palette(next(free).mask, (*palette, (0, 0, 0)))
    street.rotate(next(free).image)
    truncate(next(free).image)
    next(free).mask.write_bytes(b"")
    next(free).mask.unlink()
    next(free).image.unlink()
    street.save_again(next(free).image, val.pairs[0].image, quality=40)
    next(free).image.write_text("no picture")
    (root / "train" / "Thumbs.db").write_bytes(b"1")
    report = check_data(config, out=tmp_path / "planted")
    assert by_kind(report).keys() == {
        *masks, "wrong-palette", "exif-rotated", "truncated-image", "empty-mask", "image-without-mask",
        "mask-without-image", "duplicate-across-splits", "undecodable-image", "not-an-image", "class-not-in-train",
        "class-in-no-split", "other-count",
    }  # fmt: skip
    assert all(len(finding.locations) == 1 for finding in report.findings if finding.severity == "error")
    assert len(report.unreadable) == 3
