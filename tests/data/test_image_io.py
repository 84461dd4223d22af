from __future__ import annotations

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from segtailor.data.image_io import UnreadableFile, list_files, read_image, read_mask, resize_image, resize_mask
from segtailor.errors import SegtailorError

from .trees import write_image


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


@pytest.mark.parametrize(("dtype", "kind"), [(np.float32, "floats"), (np.int32, "32-bit numbers")])
def test_images_that_would_be_clipped_are_unreadable(tmp_path, dtype, kind):
    Image.fromarray(np.full((4, 6), 1, dtype)).save(tmp_path / "x.tif")
    with pytest.raises(UnreadableFile, match=f"its pixels are {kind}; save it with 8 bits a channel"):
        read_image(tmp_path / "x.tif")


@pytest.mark.parametrize("bits", [2, 4])
def test_grey_masks_of_few_bits_give_the_stored_numbers(tmp_path, bits):
    numbers = np.arange(8, dtype=np.uint8).reshape(2, 4) % 4
    packed = np.packbits(np.unpackbits(numbers[..., None], axis=2)[..., 8 - bits :].reshape(2, -1), axis=1)
    body = zlib.compress(b"".join(b"\0" + row.tobytes() for row in packed))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 4, 2, bits, 0, 0, 0, 0)), (b"IDAT", body), (b"IEND", b"")]
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    assert read_mask(tmp_path / "x.png").tolist() == numbers.tolist()


def test_masks_with_jpeg_compression_inside_a_tiff_are_refused(tmp_path):
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "x.tif", compression="jpeg")
    with pytest.raises(UnreadableFile, match="must not be a JPEG"):
        read_mask(tmp_path / "x.tif")


def test_jpegs_of_any_file_name_are_read(tmp_path):
    folder = os.fsencode(tmp_path)
    Image.fromarray(np.full((4, 6, 3), 9, np.uint8)).save(tmp_path / "x.jpg")
    os.rename(folder + b"/x.jpg", folder + b"/stra\xdfe.jpg")  # noqa: PTH104
    (path,) = tmp_path.iterdir()
    assert read_image(path).shape == (3, 4, 6)


def test_too_many_pixels_are_named_as_the_reason(tmp_path, monkeypatch):
    Image.fromarray(np.zeros((2000, 2000), np.uint8)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_500_000)
    with pytest.raises(UnreadableFile, match="it has more than 3 megapixels; cut it into tiles"):
        read_image(tmp_path / "x.png")


def test_files_of_linked_folders_are_listed_and_hidden_ones_are_not(tmp_path):
    for name in ("a/1.png", "a/b/2.png", "a/.ipynb_checkpoints/3.png", "a/__MACOSX/4.png", "a/.5.png", "c/6.png"):
        write_image(tmp_path / name)
    (tmp_path / "a/link").symlink_to(tmp_path / "c")
    (tmp_path / "a/b/loop").symlink_to(tmp_path / "a")
    listed = sorted(path.relative_to(tmp_path).as_posix() for path in list_files(tmp_path / "a"))
    assert listed == ["a/1.png", "a/b/2.png", "a/link/6.png"]
    with pytest.raises(SegtailorError, match=r"cannot read the folder .*none: No such file"):
        list(list_files(tmp_path / "none"))
