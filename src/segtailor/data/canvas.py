"""What the scenes of ``toy`` are drawn with: surfaces, smooth noise, and the camera."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from segtailor.files import VOID, Size

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Image = NDArray[np.uint8]

# What every surface has, whatever its class; so neither brightness nor colour tells the classes apart.
GREY = (70.0, 185.0)  # brightness of a surface
SATURATION = 40.0  # spread of a surface's colour
CONTRAST = (18.0, 38.0)  # amplitude of the texture that tells the classes apart
NOISE = (3.0, 8.0)  # standard deviation of the camera's noise
SHADE = 0.35  # how much the light varies over the frame
BLUR = 0.5  # chance of a slightly blurred frame


class Canvas:
    """An image (H,W,3) with its target, and the random numbers of one scene; lengths are pixels at 96 rows."""

    def __init__(self, rng: np.random.Generator, size: Size) -> None:
        self.rng, self.size = rng, size
        self.h, self.w = size
        self.unit = self.h / 96
        self.y, self.x = _grid(size)
        self.image: Array = np.zeros((*size, 3), np.float32)
        self.target = np.full(size, VOID, np.uint8)

    def between(self, low: float, high: float) -> float:
        """Return a number drawn uniformly."""
        return float(self.rng.uniform(low, high))

    def count(self, limits: tuple[int, int]) -> int:
        """Return a whole number drawn uniformly, both ends included."""
        return int(self.rng.integers(limits[0], limits[1] + 1))

    def noise(self, cell_y: float, cell_x: float) -> Array:
        """Return smooth noise (H,W) of unit spread whose features are about that many pixels."""
        rows, columns = _between_points(self.h, cell_y * self.unit), _between_points(self.w, cell_x * self.unit)
        grid = self.rng.standard_normal((rows.points, columns.points)).astype(np.float32)
        return _lerp(_lerp(grid.T, columns).T, rows) * np.float32(1.4)

    def ragged(self, cell: float, far: float, length: int) -> Array:
        """Return how far a border wanders, in pixels, at each of ``length`` rows or columns (length,)."""
        between = _between_points(length, cell * self.unit)
        points = self.rng.standard_normal((between.points, 1)).astype(np.float32)
        return _lerp(points, between)[:, 0] * np.float32(far * self.unit)

    def paint(self, mask: Mask, texture: NDArray[np.floating] | float, label: int, apart: float = 0.0) -> None:
        """Cover ``mask`` with a surface of random colour, modulated by ``texture`` (about -1 to 1).

        Its brightness is at least ``apart`` from that of what it covers, so that things can be seen.
        """
        inside = np.flatnonzero(mask)
        if inside.size == 0:
            return
        grey = self.between(*GREY)
        if apart:
            behind = float(self.image.reshape(-1, 3)[inside].mean())
            if abs(grey - behind) < apart:
                grey = behind + (apart if grey > behind else -apart)
        base = grey + self.rng.uniform(-SATURATION, SATURATION, 3)
        tint = self.rng.uniform(0.6, 1.0, 3) * self.between(*CONTRAST) * self.rng.choice((-1, 1))
        wave = np.broadcast_to(texture, self.size).reshape(-1, 1)[inside].astype(np.float32)
        self.image.reshape(-1, 3)[inside] = base.astype(np.float32) + wave * tint.astype(np.float32)
        self.target.reshape(-1)[inside] = label

    def photograph(self) -> Image:
        """Return the image (3,H,W) as the camera gives it: uneven light, blur, noise."""
        image = self.image
        light = np.exp(SHADE * (self.noise(45, 60) * 0.5 + self.between(-0.5, 0.5)))
        image = image * light[..., None]
        if self.rng.random() < BLUR:
            wide = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
            image = (wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:] + 4 * image) / 8
        image = image + self.rng.standard_normal(image.shape, dtype=np.float32) * np.float32(self.between(*NOISE))
        return np.ascontiguousarray(np.clip(image + 0.5, 0, 255).astype(np.uint8).transpose(2, 0, 1))


@lru_cache(maxsize=8)
def _grid(size: Size) -> tuple[Array, Array]:
    return np.arange(size[0], dtype=np.float32)[:, None], np.arange(size[1], dtype=np.float32)[None]


class _Between(NamedTuple):
    points: int
    lower: NDArray[np.int64]
    weight: Array


@lru_cache(maxsize=256)
def _between_points(length: int, cell: float) -> _Between:
    """Return where ``length`` pixels lie between points that are ``cell`` pixels apart."""
    points = max(2, int(np.ceil(length / max(cell, 1.0))) + 1)
    place = np.linspace(0, points - 1, length)
    lower = np.minimum(place.astype(np.int64), points - 2)
    return _Between(points, lower, (place - lower).astype(np.float32)[:, None])


def _lerp(points: Array, between: _Between) -> Array:
    # no matrix product: its threads would fight over the cores with those of training
    lower, upper = points[between.lower], points[between.lower + 1]
    upper -= lower
    upper *= between.weight
    upper += lower
    return upper
