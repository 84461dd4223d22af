"""The classes of a data set as a picture: how many pixels of each split every class has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from segtailor.data.checkup.classes import Tally
from segtailor.data.checkup.finding import count
from segtailor.files import Color

# The smallest share that the logarithmic scale shows.
LEAST = 1e-5
BAR, GAP, MARGIN, SWATCH = 14, 10, 24, 14
AXIS_WIDTH, NUMBERS_WIDTH, MOST_NAME = 560, 150, 260
TEXT, FAINT, GRID, ABSENT = (30, 34, 40), (105, 112, 122), (226, 229, 233), (176, 42, 48)
# Told apart with every kind of colour vision (Okabe and Ito).
SPLITS: tuple[Color, ...] = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167))


def draw_histogram(
    path: Path, name: str, classes: Sequence[str], palette: Sequence[Color], tallies: Sequence[Tally]
) -> None:
    """Write the picture to ``path`` (PNG): for each class one bar a split, the share of the split's labelled pixels.

    The scale is logarithmic, so that rare classes show. Beside a bar stand the share and the number of masks.
    """
    body, head = _font(13), _font(18)
    names = [_fit(body, text) for text in classes]
    left = MARGIN + SWATCH + 8 + max((math.ceil(body.getlength(text)) for text in names), default=0) + 12
    top = 102
    block = BAR * max(1, len(tallies)) + GAP
    width = left + AXIS_WIDTH + NUMBERS_WIDTH + MARGIN
    height = top + block * len(names) + 44
    picture = Image.new("RGB", (width, height), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 16), f"{name}: classes", TEXT, head)
    _draw_legend(draw, tallies, body)
    _draw_axis(draw, left, top, height - 44, body)
    for row, text in enumerate(names):
        upper = top + row * block + GAP // 2
        middle = upper + (block - GAP) // 2
        color = tuple(palette[row])
        swatch = [MARGIN, middle - SWATCH // 2, MARGIN + SWATCH, middle + SWATCH // 2]
        draw.rectangle(swatch, color, outline=FAINT)
        draw.text((left - 12, middle), text, TEXT, body, anchor="rm")
        for place, found in enumerate(tallies):
            _draw_bar(draw, left, upper + place * BAR, found, row, SPLITS[place % len(SPLITS)])
    picture.save(path, optimize=True)


def _draw_bar(draw: ImageDraw.ImageDraw, left: int, upper: int, found: Tally, index: int, color: Color) -> None:
    small = _font(11)
    share = int(found.pixels[index]) / found.labelled if found.labelled else 0.0
    middle = upper + BAR // 2
    if not share:
        draw.text((left + 6, middle), f"not in {found.split}", ABSENT, small, anchor="lm")
        return
    end = left + max(2, round(AXIS_WIDTH * _scale(share)))
    draw.rectangle([left, upper + 1, end, upper + BAR - 2], color)
    percent = f"{100 * share:.1f}" if share >= 0.01 else f"{100 * share:.2g}"
    label = f"{percent} %  in {count(int(found.masks[index]), 'mask')}"
    place = (end + 6, middle)
    draw.rectangle(draw.textbbox(place, label, small, anchor="lm"), (255, 255, 255))  # over the grid
    draw.text(place, label, FAINT, small, anchor="lm")


def _draw_legend(draw: ImageDraw.ImageDraw, tallies: Sequence[Tally], font: Any) -> None:
    left = MARGIN
    for place, found in enumerate(tallies):
        whole = found.labelled + found.void + found.unknown
        void = f", {100 * found.void / whole:.1f} % void" if whole else ""
        text = f"{found.split}: {count(found.samples, 'image')}{void}"
        draw.rectangle([left, 52, left + SWATCH, 52 + SWATCH], SPLITS[place % len(SPLITS)])
        draw.text((left + SWATCH + 6, 52 + SWATCH // 2), text, TEXT, font, anchor="lm")
        left += SWATCH + 6 + math.ceil(font.getlength(text)) + 28


def _draw_axis(draw: ImageDraw.ImageDraw, left: int, top: int, bottom: int, font: Any) -> None:
    small = _font(11)
    for power in range(round(math.log10(LEAST)), 1):
        at = left + round(AXIS_WIDTH * _scale(10.0**power))
        draw.line([at, top - 4, at, bottom], GRID)
        draw.text((at, top - 8), f"{100 * 10.0**power:g} %", FAINT, small, anchor="ms")
    draw.text((left, bottom + 14), "share of the split's labelled pixels, logarithmic", FAINT, font)


def _scale(share: float) -> float:
    """Return where ``share`` lies on the axis, 0 to 1."""
    return 1 - math.log10(max(share, LEAST)) / math.log10(LEAST)


@lru_cache
def _font(size: int) -> Any:
    return ImageFont.load_default(size)


def _fit(font: Any, text: str) -> str:
    while font.getlength(text) > MOST_NAME:
        text = text[:-2] + "…" if len(text) > 2 else text[:1]
        if len(text) < 3:
            break
    return text
