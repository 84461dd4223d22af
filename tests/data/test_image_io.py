from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from segtailor.data.image_io import UnreadableFile, read_image, read_mask, resize_image, resize_mask


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".webp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_images_of_any_mode_become_rgb_bytes(tmp_path, suffix, mode):
    pixels = np.full((4, 6, 3), 200, np.uint8)
    path = tmp_path / f"x{suffix}"
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(pixels).convert(mode).save(path, **options)
    image = read_image(path)
    assert image.dtype == torch.uint8
    assert image.shape == (3, 4, 6)
    assert (image.int() - 200).abs().max() <= 4


def test_images_of_sixteen_bits_keep_the_high_byte(tmp_path):
    Image.fromarray(np.full((4, 6), 0x7F80, np.uint16)).save(tmp_path / "x.png")
    assert read_image(tmp_path / "x.png").unique().tolist() == [0x7F]


@pytest.mark.parametrize(("dtype", "mode"), [(np.uint8, "L"), (np.uint16, "I;16"), (np.int32, "I")])
def test_masks_give_the_stored_numbers(tmp_path, dtype, mode):
    numbers = np.array([[0, 1, 2], [7, 200, 255]], dtype)
    image = Image.fromarray(numbers)
    assert image.mode == mode
    path = tmp_path / ("x.tif" if mode == "I" else "x.png")
    image.save(path)
    mask = read_mask(path)
    assert mask.dtype == np.uint8
    assert mask.tolist() == numbers.tolist()


def test_masks_of_one_bit_and_of_large_numbers(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bits.png")
    assert read_mask(tmp_path / "bits.png").tolist() == [[1, 0]]
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(tmp_path / "large.png")
    assert read_mask(tmp_path / "large.png").tolist() == [[0, 300]]


def test_missing_files_are_unreadable(tmp_path):
    for read in (read_image, read_mask):
        with pytest.raises(UnreadableFile, match="no such file"):
            read(tmp_path / "none.png")


def test_resizing_agrees_with_torch():
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 37, 53), generator=generator, dtype=torch.uint8)
    mask = torch.randint(0, 9, (37, 53), generator=generator, dtype=torch.uint8)
    for size in ((18, 26), (41, 90), (37, 53)):
        expected = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0]
        assert (resize_image(image, size).float() - expected).abs().max() <= 2
        nearest = F.interpolate(mask[None, None].float(), size, mode="nearest-exact")[0, 0]
        assert resize_mask(mask.numpy(), size).tolist() == nearest.tolist()


def test_a_png_that_is_called_jpg_is_read(tmp_path):
    Image.fromarray(np.full((4, 6, 3), 9, np.uint8)).save(tmp_path / "x.png")
    (tmp_path / "x.png").rename(tmp_path / "x.jpg")
    assert read_image(tmp_path / "x.jpg").unique().tolist() == [9]
