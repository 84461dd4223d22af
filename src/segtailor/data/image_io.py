"""Reading image and mask files, and resizing them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.io import ImageReadMode, decode_jpeg

from segtailor.errors import SegtailorError
from segtailor.files import Size

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm"})
MASK_SUFFIXES = frozenset({".png", ".bmp", ".tif", ".tiff", ".webp", ".pgm"})
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "PPM")
# torchvision decodes JPEG 1.6 times as fast as Pillow, and both refuse a truncated file. It decodes PNG no faster, and
# a damaged one can end the process (a segmentation fault in 0.29), so Pillow decodes everything else.
JPEG_START = b"\xff\xd8"
# Modes whose pixels are the stored numbers: grey, palette index, 16 and 32 bit.
INDEX_MODES = frozenset({"L", "P", "1", "I", "I;16", "I;16B", "I;16L"})
# The EXIF tag of a photo's orientation, and its values that exchange height and width.
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)

# What Pillow and torchvision raise for a file that they cannot open or decode.
DECODE_ERRORS = (OSError, RuntimeError, ValueError, SyntaxError, Image.DecompressionBombError)

Source = Path | bytes
"""A file, or the content of one."""


class UnreadableFile(Exception):  # noqa: N818
    """A file that cannot be decoded; the message is a short reason without the path."""


def read_image(source: Source) -> Tensor:
    """Return the image in ``source`` as RGB uint8 (3,H,W); raises ``UnreadableFile``.

    The pixels are those stored: EXIF orientation is not applied (see :func:`turn_upright`).
    """
    content = read_content(source)
    try:
        if content.startswith(JPEG_START):
            encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
            return decode_jpeg(encoded, mode=ImageReadMode.RGB)  # type: ignore[no-any-return]
        with Image.open(BytesIO(content), formats=FORMATS) as file:
            if file.mode.startswith("I;16"):  # Pillow would clip: the high byte is the 8-bit image
                high = (np.array(file) >> 8).astype(np.uint8)
                return torch.from_numpy(high).expand(3, *high.shape)
            if file.mode in ("F", "I"):  # Pillow would clip these, too, whatever their range
                kind = "floats" if file.mode == "F" else "32-bit numbers"
                raise UnreadableFile(f"its pixels are {kind}; save it with 8 bits a channel")
            return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
    except DECODE_ERRORS as error:
        raise UnreadableFile(_reason(error)) from error


def read_content(source: Source) -> bytes:
    """Return the bytes of ``source``; raises ``UnreadableFile`` where there are none."""
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        raise UnreadableFile("no such file" if missing else f"cannot be opened: {error.strerror}") from error
    if not content:
        raise UnreadableFile("the file is empty")
    return content


def read_mask(source: Source) -> NDArray[Any]:
    """Return the numbers stored in the mask in ``source`` (H,W): palette files give indices, not colors.

    The result is uint8, or int32 where the file holds more than a byte. Raises ``UnreadableFile``, also for a mask of
    colors and for a JPEG, whose values are not those that were saved.
    """
    with open_mask(source) as file:
        if file.mode not in INDEX_MODES:
            hint = ": set data.masks: color if its colors are the classes" if file.mode in ("RGB", "RGBA") else ""
            raise UnreadableFile(f"a mask holds one class index a pixel, but its mode is {file.mode}{hint}")
        tiles = getattr(file, "tile", None) if file.format == "PNG" else None
        bits = tiles[0][3] if tiles else ""  # how the numbers are stored
        mask = np.array(file)
    # Pillow stretches grey levels of 2 and 4 bits to 0 to 255
    return narrow(mask // 85 if bits == "L;2" else mask // 17 if bits == "L;4" else mask)


def narrow(mask: NDArray[Any]) -> NDArray[Any]:
    """Return whole numbers ``mask`` as uint8 where they fit, else as int32."""
    if mask.dtype == np.uint8 or mask.dtype == np.bool_:
        return mask.astype(np.uint8, copy=False)
    wide = mask.astype(np.int32)
    return wide.astype(np.uint8) if wide.min(initial=0) >= 0 and wide.max(initial=0) <= 255 else wide


@contextmanager
def open_mask(source: Source) -> Iterator[Image.Image]:
    """Open the mask in ``source`` for decoding; raises ``UnreadableFile``, also for a JPEG and while decoding."""
    content = read_content(source)
    try:
        with Image.open(BytesIO(content), formats=FORMATS) as file:
            if file.format == "JPEG" or "jpeg" in str(file.info.get("compression")):  # the latter in a TIFF
                raise UnreadableFile("a mask must not be a JPEG, which changes its values")
            yield file
    except DECODE_ERRORS as error:
        raise UnreadableFile(_reason(error)) from error


def list_files(folder: Path) -> Iterator[Path]:
    """Yield the files below ``folder``, linked folders included; hidden files and folders are left out.

    Raises ``SegtailorError`` for a folder that cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise SegtailorError(f"cannot read the folder {error.filename}: {error.strerror}") from error

    for place, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if Path(place).parent.resolve().is_relative_to(Path(place).resolve()) and place != str(folder):
            folders.clear()  # a link to a folder that holds it
            continue
        folders[:] = [name for name in folders if not name.startswith(".") and name != "__MACOSX"]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def turn_upright(image: Tensor, source: Source, size: Size) -> Tensor:
    """Return ``image`` (3,H,W) of ``source`` turned as its EXIF orientation asks, where that gives its mask's ``size``.

    Annotation tools show a photo upright, so its mask is upright, too; masks made from the stored pixels are not. The
    mask's size decides. Nothing is read again unless height and width are exchanged.
    """
    height, width = image.shape[-2:]
    if height == width or (width, height) != size:
        return image
    orientation = read_orientation(source)
    if orientation not in SIDEWAYS:
        return image
    turned = image.transpose(-2, -1)
    flips = {5: (), 6: (-1,), 7: (-2, -1), 8: (-2,)}[orientation]
    return turned.flip(flips).contiguous()


def read_orientation(source: Source) -> int:
    """Return the EXIF orientation of the image in ``source``: 1, upright, where it states none."""
    try:
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as file:
            return int(file.getexif().get(ORIENTATION, 1))
    except (*DECODE_ERRORS, TypeError):
        return 1


def resize_image(image: Tensor, size: Size) -> Tensor:
    """Return ``image`` (3,H,W) at ``size``, bilinear and antialiased."""
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]


def resize_mask(mask: NDArray[np.uint8], size: Size) -> NDArray[np.uint8]:
    """Return ``mask`` (H,W) at ``size``, nearest at pixel centers (torch's ``nearest-exact``)."""
    if mask.shape == size:
        return mask
    rows, columns = (nearest(0, out, out, old) for out, old in zip(size, mask.shape, strict=True))
    return mask[rows][:, columns]


def nearest(first: int, count: int, out: int, old: int) -> NDArray[np.int64]:
    """Return the source indices of outputs ``first .. first + count`` when ``old`` pixels become ``out``.

    ``floor((i + 0.5) * old / out)`` in 32-bit floats, as torch's ``nearest-exact`` computes it.
    """
    scale = np.float32(old) / np.float32(out)
    centers = np.arange(first, first + count, dtype=np.float32) + np.float32(0.5)
    return np.minimum((centers * scale).astype(np.int64), old - 1)


def _reason(error: BaseException) -> str:
    # the decoders' own messages are long and name their source files
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        return f"it has more than {limit} megapixels; cut it into tiles"
    if any(word in str(error).lower() for word in ("truncated", "premature", "out of bound read", "incomplete")):
        return "truncated"
    return "not a readable image"


def unreadable(path: Path, error: UnreadableFile) -> SegtailorError:
    """Build the error for one unreadable file."""
    return SegtailorError(f"cannot read {path}: {error}; fix or remove the file and run again")


def read_mat(path: Path, key: str, inner: str | None = None) -> NDArray[Any]:
    """Return the whole numbers (H,W) of the variable ``key``, or of its field ``inner``, of a MATLAB file.

    Raises ``UnreadableFile``.
    """
    from scipy.io import loadmat

    try:
        mask = loadmat(path, variable_names=[key])[key]
        mask = np.asarray(mask if inner is None else mask[inner].item())
    except FileNotFoundError as error:
        raise UnreadableFile("no such file") from error
    except KeyError as error:
        raise UnreadableFile(f"the MATLAB file holds no '{key}'") from error
    except Exception as error:  # scipy has many ways to fail at a damaged file
        raise UnreadableFile("not a readable MATLAB file") from error
    if mask.ndim != 2 or mask.dtype.kind not in "iub":
        raise UnreadableFile(f"'{key}' holds no whole numbers by height and width")
    return narrow(mask)
