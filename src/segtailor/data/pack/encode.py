"""How images and targets are stored in a pack: what each encoding writes, and how it is read back."""

from __future__ import annotations

import io
import zlib
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segtailor.data.image_io import read_image, read_mask, turn_upright
from segtailor.files import VOID, Color, Size

Encoding = Literal["raw", "png", "jpeg", "keep"]
"""``raw``: the pixels; ``png``: small and lossless; ``jpeg``: small, with a loss; ``keep``: the source's own files."""

ENCODINGS: tuple[Encoding, ...] = get_args(Encoding)
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Loss(NamedTuple):
    """How far stored pixels are from the source's, summed so that samples add up; ``worst`` is of one image."""

    pixels: int = 0
    squared: int = 0
    absolute: int = 0
    largest: int = 0
    worst: float = 0.0  # mean squared error

    def plus(self, other: Loss) -> Loss:
        """Return the loss of both together."""
        return Loss(
            self.pixels + other.pixels,
            self.squared + other.squared,
            self.absolute + other.absolute,
            max(self.largest, other.largest),
            max(self.worst, other.worst),
        )


def encode_image(image: Tensor, encoding: Encoding, quality: int) -> bytes:
    """Return ``image`` (3,H,W) uint8 as the content of a file: NumPy's .npy (3,H,W), PNG or JPEG (4:4:4)."""
    content = io.BytesIO()
    if encoding == "raw":
        np.save(content, np.ascontiguousarray(image.numpy()))
        return content.getvalue()
    picture = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
    if encoding == "png":
        # the compression level changes the size, not the time to read: undoing the row filters takes most of it
        picture.save(content, "PNG", compress_level=6)
    else:
        picture.save(content, "JPEG", quality=quality, subsampling=0)
    return content.getvalue()


def decode_image(content: NDArray[np.uint8], encoding: Encoding, size: Size, target: Size) -> Tensor:
    """Return the image (3,H,W) stored as ``content``; raises ``UnreadableFile``.

    ``size`` is its height and width. A ``keep`` image, being a file of the source, is turned upright as the source's
    reader does where only then it has the size of its ``target``.
    """
    if encoding == "raw":
        pixels = content[content.size - 3 * size[0] * size[1] :]
        return torch.from_numpy(pixels.reshape(3, *size))
    encoded = content.tobytes()
    image = read_image(encoded)
    return turn_upright(image, encoded, target) if encoding == "keep" else image


def measure_loss(image: Tensor, stored: Tensor) -> Loss:
    """Return how far ``stored`` (3,H,W) is from ``image`` (3,H,W), over all channels."""
    apart = np.abs(image.numpy().astype(np.int32) - stored.numpy())
    squared = int((apart * apart).sum(dtype=np.int64))
    return Loss(apart.size, squared, int(apart.sum(dtype=np.int64)), int(apart.max()), squared / apart.size)


def encode_target(target: Tensor, palette: tuple[Color, ...]) -> bytes:
    """Return ``target`` (H,W) uint8 as a PNG of class indices and 255, shown in the classes' colours."""
    colors = np.zeros((256, 3), np.uint8)
    colors[: len(palette)] = np.array(palette, np.uint8).reshape(-1, 3)
    colors[VOID] = 0
    picture = Image.fromarray(np.ascontiguousarray(target.numpy()))
    picture.putpalette(colors.ravel().tolist())
    content = io.BytesIO()
    picture.save(content, "PNG", compress_level=6)
    return content.getvalue()


def decode_target(content: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Return the target (H,W) stored as ``content``, a palette PNG; raises ``UnreadableFile``.

    Pillow writes palette PNGs without row filters, so unpacking them is all there is to do: three times as fast as a
    general decoder.
    """
    encoded = content.tobytes()
    packed = _plain_rows(encoded)
    if packed is not None:
        try:
            rows = np.frombuffer(zlib.decompress(packed), np.uint8)
        except zlib.error:
            rows = np.empty(0, np.uint8)
        if rows.size == size[0] * (size[1] + 1):
            rows = rows.reshape(size[0], size[1] + 1)
            if not rows[:, 0].any():  # the first byte of a row names its filter, 0 is none
                return np.ascontiguousarray(rows[:, 1:])
    mask: NDArray[np.uint8] = read_mask(encoded)
    return mask


def _plain_rows(encoded: bytes) -> bytes | None:
    """Return the compressed rows of a PNG of one byte a pixel, not interlaced; None for anything else."""
    # the header chunk: width, height, bit depth, colour type, compression, filter method, interlacing
    if not encoded.startswith(PNG_SIGNATURE) or encoded[24:26] not in (b"\x08\x03", b"\x08\x00") or encoded[28]:
        return None
    rows, at = [], len(PNG_SIGNATURE)
    while at + 8 <= len(encoded):
        length = int.from_bytes(encoded[at : at + 4], "big")
        kind = encoded[at + 4 : at + 8]
        if kind == b"IDAT":
            rows.append(encoded[at + 8 : at + 8 + length])
        if kind == b"IEND":
            return b"".join(rows)
        at += 12 + length
    return None
