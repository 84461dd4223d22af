"""Masks as pictures: class colors, overlays, and wrong pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from segtailor.files import VOID

Picture = NDArray[np.uint8]
Palette = Sequence[Sequence[int]]

VOID_COLOR = (0, 0, 0)
WRONG_COLOR = (255, 51, 68)
_LUMA = np.array([0.299, 0.587, 0.114])


def colorize(mask: NDArray[np.integer], palette: Palette) -> Picture:
    """Return (H,W,3): each index of ``mask`` (H,W) in its color of ``palette``; void and unknown indices black."""
    table = np.zeros((256, 3), np.uint8)
    table[:] = VOID_COLOR
    known = min(len(palette), VOID)
    table[:known] = np.asarray(palette, np.uint8)[:known]
    picture: Picture = table[mask]
    return picture


def overlay(image: Picture, mask: NDArray[np.integer], palette: Palette, alpha: float = 0.5) -> Picture:
    """Return (H,W,3): ``image`` (H,W,3) with the classes' colors at opacity ``alpha``; void shows the image alone."""
    opacity = np.where(mask == VOID, 0.0, alpha)[..., None]
    blend = image * (1 - opacity) + colorize(mask, palette) * opacity
    picture: Picture = np.round(blend).astype(np.uint8)
    return picture


def wrong_map(mask: NDArray[np.integer], target: NDArray[np.integer], image: Picture | None = None) -> Picture:
    """Return (H,W,3): wrong pixels in red over the dimmed grey ``image``, void pixels hatched.

    Shapes: ``mask`` and ``target`` (H,W) indices, ``image`` (H,W,3); without it right pixels are plain dark grey.
    """
    grey = np.full(mask.shape, 70.0) if image is None else 30 + 0.45 * (image @ _LUMA)
    picture = np.repeat(grey[..., None], 3, axis=-1)
    rows, columns = np.indices(mask.shape)
    stripe = max(2, round(mask.shape[1] / 120))
    hatched = ((rows + columns) // stripe) % 2 == 0
    void = target == VOID
    picture[void] *= 0.55
    picture[void & hatched] += 45
    wrong = ~void & (mask != target)
    # a little of the image stays visible, so that the missed object is recognizable
    picture[wrong] = np.asarray(WRONG_COLOR) * (0.72 + 0.28 * picture[wrong] / 145)
    return np.clip(np.round(picture), 0, 255).astype(np.uint8)
