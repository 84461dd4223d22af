from __future__ import annotations

import numpy as np
import pytest

from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.data.check import check_files
from segtailor.errors import SegtailorError

from . import street_trees as street
from .street_trees import write_street
from .trees import truncate, write_camvid, write_image, write_mask

NAMES = tuple(f"frame{index}" for index in range(6))


def problem(root):
    dataset = create_dataset(DataConfig(name="camvid", root=root), "train", True)
    with pytest.raises(SegtailorError) as caught:
        check_files(dataset)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_good_files_pass(tmp_path):
    check_files(create_dataset(DataConfig(name="camvid", root=write_camvid(tmp_path)), "train", True))
    check_files(create_dataset(DataConfig(name="toy"), "train", True))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_truncated_and_unreadable_images_are_counted_and_named(tmp_path, suffix):
    write_camvid(tmp_path, NAMES, suffix)
    train = tmp_path / "train"
    truncate(train / f"frame1{suffix}")
    (train / f"frame2{suffix}").write_bytes(b"")
    (train / f"frame3{suffix}").write_text("not an image at all")
    truncate(tmp_path / "trainannot" / "frame5.png", 0.4)
    message = problem(tmp_path)
    assert "6 pairs checked: 4 files cannot be read" in message
    assert f"frame1{suffix} (truncated)" in message
    assert f"frame2{suffix} (the file is empty)" in message
    assert f"frame3{suffix} (not a readable image)" in message
    assert "and 1 more" in message


def test_sizes_that_differ_are_named_with_both_sizes(tmp_path):
    write_camvid(tmp_path, NAMES)
    write_mask(tmp_path / "trainannot" / "frame4.png", (12, 15))
    message = problem(tmp_path)
    assert "1 mask not of the image's size" in message
    assert "frame4.png (12 x 15, image 12 x 16)" in message


def test_values_outside_the_classes_give_value_count_and_first_file(tmp_path):
    write_camvid(tmp_path, NAMES)
    for name in NAMES[2:4]:
        write_mask(tmp_path / "trainannot" / f"{name}.png", (12, 16), (17,))
    message = problem(tmp_path)
    assert "masks hold 1 value that is neither class nor void: 17 (384 pixels in 2 files, first " in message
    assert "frame2.png)" in message


def test_masks_of_colors_and_jpeg_masks_are_refused(tmp_path):
    write_camvid(tmp_path, NAMES)
    write_image(tmp_path / "trainannot" / "frame0.png")
    (tmp_path / "trainannot" / "frame1.png").unlink()
    write_mask(tmp_path / "trainannot" / "frame1.jpg")
    message = problem(tmp_path)
    assert "frame0.png (a mask holds one class index a pixel, but its mode is RGB: set data.masks: color" in message
    assert "frame1.jpg (a mask must not be a JPEG" in message


def test_all_problems_are_reported_at_once(tmp_path):
    write_camvid(tmp_path, NAMES)
    truncate(tmp_path / "train" / "frame0.png")
    write_mask(tmp_path / "trainannot" / "frame1.png", (3, 3))
    write_mask(tmp_path / "trainannot" / "frame2.png", (12, 16), (99,))
    message = problem(tmp_path)
    assert "cannot be read" in message
    assert "not of the image's size" in message
    assert "neither class nor void: 99" in message


def test_a_damaged_png_does_not_end_the_process(tmp_path):
    write_camvid(tmp_path, NAMES)
    path = tmp_path / "train" / "frame0.png"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    assert "1 file cannot be read: " in problem(tmp_path)


@pytest.mark.parametrize(
    ("classes", "fix"),
    [("classes: [rest, car]", "data.values: [0, 255]"), ("classes: [a, b, c]", "set data.masks: binary")],
)
def test_masks_of_0_and_255_whose_object_would_be_void_stop_a_run(tmp_path, classes, fix):
    root = write_street(tmp_path, train=3, val=1, classes=classes + "\n")
    for path in street.all_masks(root):
        street.change(path, street.binary)
    street.change(street.mask(root, "train", 1), np.zeros_like)  # without the object
    config = DataConfig(name="folder", root=root)
    with pytest.raises(SegtailorError, match="2 masks of 0 and 255 only, though 255 is no class") as caught:
        check_files(create_dataset(config, "train", True), config)
    assert fix in str(caught.value)
    assert "\n" not in str(caught.value)
    if "values" in fix:
        config = DataConfig(name="folder", root=root, values=[0, 255])
        check_files(create_dataset(config, "train", True), config)
    # 255 that is declared void is a choice, and one mask among others may hold nothing else
    for change in ({"void": [255]}, {}):
        config = DataConfig(name="folder", root=root, **change)
        check_files(create_dataset(config, "train", True), config)
        street.change(street.mask(root, "train", 0), lambda target: target // 255)
