from __future__ import annotations

import numpy as np
import pytest

from segtailor.data.classes_file import distinct_colors
from segtailor.evaluation.render import colorize, overlay, wrong_map

PALETTE = [(200, 0, 0), (0, 200, 0)]


def test_colorize_gives_palette_colours_and_black_void():
    picture = colorize(np.array([[0, 1, 255, 7]], np.uint8), PALETTE)
    assert picture.tolist() == [[[200, 0, 0], [0, 200, 0], [0, 0, 0], [0, 0, 0]]]
    assert picture.dtype == np.uint8


def test_overlay_mixes_and_leaves_void_alone():
    image = np.full((1, 2, 3), 100, np.uint8)
    picture = overlay(image, np.array([[0, 255]]), PALETTE, alpha=0.5)
    assert picture.tolist() == [[[150, 50, 50], [100, 100, 100]]]


@pytest.mark.parametrize("with_image", [True, False])
def test_wrong_map_is_red_only_where_wrong(with_image):
    target = np.array([[0, 1, 255, 255, 255, 255]], np.uint8)
    mask = np.array([[1, 1, 0, 0, 0, 0]], np.uint8)
    image = np.full((1, 6, 3), 128, np.uint8) if with_image else None
    picture = wrong_map(mask, target, image).astype(int)
    redness = picture[..., 0] - picture[..., 1:].max(-1)
    assert redness[0, 0] > 100
    assert (redness[0, 1:] == 0).all()
    assert len({tuple(pixel) for pixel in picture[0, 2:]}) == 2  # hatched


def test_made_up_colours_are_distinct():
    palette = distinct_colors(60)
    assert len(set(palette)) == 60
    assert (0, 0, 0) not in palette
