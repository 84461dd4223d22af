"""Random scale, crop and flip of a training sample, resampling only the window that is kept.

The result is that of resizing the whole frame by s (image bilinear at half-pixel centers without antialiasing, target
nearest at pixel centers, torch's ``nearest-exact``), padding bottom and right to at least the crop, cropping at a
uniform offset and flipping; but the window is chosen first, and each of its pixels is computed from the source
coordinates that resizing the whole frame would use. Scales and order are those of the published training code.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from segtailor.data.base import Sample
from segtailor.data.image_io import nearest
from segtailor.files import VOID, Color, Size

# Rows resampled at once: what a band needs stays in the processor's cache.
BAND = 32


class Window(NamedTuple):
    """What was drawn: the whole frame's size after scaling, the crop's upper left corner in it, and the flip."""

    frame: Size
    top: int
    left: int
    flip: bool


def draw_window(size: Size, rng: np.random.Generator, crop: Size, scale: tuple[float, float], flip: float) -> Window:
    """Draw the window of an image of ``size``: s in steps of 0.1, uniform offsets, ``flip`` is a probability."""
    steps = int(np.floor((scale[1] - scale[0]) * 10 + 1e-6))
    s = scale[0] + int(rng.integers(0, steps + 1)) / 10
    frame = (max(1, round(size[0] * s)), max(1, round(size[1] * s)))
    top = int(rng.integers(0, max(frame[0] - crop[0], 0) + 1))
    left = int(rng.integers(0, max(frame[1] - crop[1], 0) + 1))
    return Window(frame, top, left, bool(rng.random() < flip))


def augment(
    sample: Sample,
    rng: np.random.Generator,
    crop: Size,
    scale: tuple[float, float] = (0.5, 2.0),
    flip: float = 0.5,
    mean_color: Color = (124, 116, 104),
) -> Sample:
    """Return ``sample`` scaled, padded with ``mean_color`` and void, cropped to ``crop`` (height, width) and flipped.

    Image (3,H,W) and target (H,W) are uint8 and of one size. Everything drawn comes from ``rng``.
    """
    size = (int(sample.image.shape[-2]), int(sample.image.shape[-1]))
    window = draw_window(size, rng, crop, scale, flip)
    image, target = cut_window(sample.image.numpy(), sample.target.numpy(), window, crop, mean_color)
    return Sample(torch.from_numpy(image), torch.from_numpy(target), sample.name)


def cut_window(
    image: NDArray[np.uint8], target: NDArray[np.uint8], window: Window, crop: Size, mean_color: Color
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return ``window`` of ``image`` (3,H,W) and ``target`` (H,W) at the size ``crop``."""
    firsts, size = (window.top, window.left), target.shape
    counts = [min(wanted, whole) for wanted, whole in zip(crop, window.frame, strict=True)]
    spans = list(zip(firsts, counts, window.frame, size, strict=True))
    rows, columns = (nearest(*span) for span in spans)
    inner_target = target[rows].take(columns, axis=1)
    inner_image = image[:, rows].take(columns, axis=2) if window.frame == size else _bilinear(image, spans)
    if window.flip:  # copies: torch takes no negative stride, which NumPy leaves on a window of one column
        inner_image, inner_target = inner_image[:, :, ::-1].copy(), inner_target[:, ::-1].copy()
    if (counts[0], counts[1]) == crop:
        return np.ascontiguousarray(inner_image), np.ascontiguousarray(inner_target)
    # padding is at the bottom and the right before the flip, so at the left after it
    start = crop[1] - counts[1] if window.flip else 0
    inside = (slice(0, counts[0]), slice(start, start + counts[1]))
    whole_image = np.empty((3, *crop), np.uint8)
    whole_image[:] = np.array(mean_color, np.uint8)[:, None, None]
    whole_image[:, inside[0], inside[1]] = inner_image
    whole_target = np.full(crop, VOID, np.uint8)
    whole_target[inside] = inner_target
    return whole_image, whole_target


def _bilinear(image: NDArray[np.uint8], spans: list[tuple[int, int, int, int]]) -> NDArray[np.uint8]:
    (upper, lower, down), (left, right, along) = (_taps(*span) for span in spans)
    # only the source columns that the window touches
    start, stop = int(left[0]), int(right[-1]) + 1
    left, right = left - start, right - start
    back = 256 - along
    out = np.empty((3, len(upper), len(left)), np.uint8)
    for first in range(0, len(upper), BAND):
        band = slice(first, first + BAND)
        top, below, weight = upper[band], lower[band], down[band, None]
        # contiguous, as decoders hand out strided views
        source = np.ascontiguousarray(image[:, top[0] : below[-1] + 1, start:stop])
        rows = _mix(source[:, top - top[0]], source[:, below - top[0]], 256 - weight, weight)
        out[:, band] = _mix(rows.take(left, axis=2), rows.take(right, axis=2), back, along)
    return out


def _mix(
    one: NDArray[np.uint8], other: NDArray[np.uint8], one_weight: NDArray[np.uint16], weight: NDArray[np.uint16]
) -> NDArray[np.uint8]:
    # in 16 bits: the sum is at most 255 * 256 + 128
    total = np.multiply(one, one_weight, dtype=np.uint16)
    total += np.multiply(other, weight, dtype=np.uint16)
    total += np.uint16(128)
    total >>= np.uint16(8)
    return total.astype(np.uint8)


def _taps(
    first: int, count: int, out: int, old: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint16]]:
    """Return for each output the two neighboring source indices and the second one's weight in 256ths."""
    centers = (np.arange(first, first + count) + 0.5) * (old / out) - 0.5
    centers = np.clip(centers, 0, old - 1)
    lower = centers.astype(np.int64)
    weight = np.rint((centers - lower) * 256).astype(np.uint16)
    return lower, np.minimum(lower + 1, old - 1), weight
