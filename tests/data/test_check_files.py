from __future__ import annotations

import pytest

from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.data.check import check_files
from segtailor.errors import SegtailorError

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


def test_masks_of_colours_and_jpeg_masks_are_refused(tmp_path):
    write_camvid(tmp_path, NAMES)
    write_image(tmp_path / "trainannot" / "frame0.png")
    (tmp_path / "trainannot" / "frame1.png").unlink()
    write_mask(tmp_path / "trainannot" / "frame1.jpg")
    message = problem(tmp_path)
    assert "frame0.png (a mask holds one class index a pixel, but its mode is RGB: set data.masks: color" in message
    assert "frame1.jpg (a mask must not be a JPEG" in message


def test_all_problems_are_told_at_once(tmp_path):
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
