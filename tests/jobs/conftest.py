"""What the tests of jobs share."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from segtailor.data import toy


@pytest.fixture(scope="package", autouse=True)
def _few_scenes_drawn_once() -> Iterator[None]:
    """Each run opens the toy data; much of a tiny run would be the drawing of the same scenes."""
    drawn = cache(toy.draw_scene)

    def copied(seed: tuple[int, int], size: tuple[int, int]) -> tuple[Any, ...]:
        return tuple(array.copy() for array in drawn(seed, size))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy, "draw_scene", copied)
        patch.setitem(toy.LENGTHS, "val", 12)  # as `few_toy_images`, for the fixtures of modules
        yield
