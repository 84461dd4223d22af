"""Colours for classes that come without."""

from __future__ import annotations

import colorsys

from segtailor.files import Color


def distinct_colors(count: int) -> tuple[Color, ...]:
    """Return ``count`` colours whose hues are far apart, never black.

    >>> distinct_colors(2)
    ((217, 76, 76), (80, 124, 230))
    """
    colors = []
    for index in range(count):
        # the golden ratio spreads hues evenly however many there are
        red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.65, (0.85, 0.9, 0.6)[index % 3])
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colors)
