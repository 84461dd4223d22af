"""``toy``: small street scenes, drawn rather than photographed, that need no download."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import binary_dilation

from segtailor.config import DataConfig
from segtailor.data.base import Sample, SegmentationDataset
from segtailor.errors import unknown
from segtailor.files import VOID, Color, Size

CLASSES: tuple[tuple[str, Color], ...] = (
    ("sky", (70, 130, 180)),
    ("building", (128, 64, 64)),
    ("road", (128, 64, 128)),
    ("pavement", (244, 35, 232)),
    ("vegetation", (107, 142, 35)),
    ("pole", (190, 190, 190)),
    ("sign", (220, 220, 0)),
    ("car", (0, 0, 142)),
    ("pedestrian", (220, 20, 60)),
)
SKY, BUILDING, ROAD, PAVEMENT, VEGETATION, POLE, SIGN, CAR, PEDESTRIAN = range(9)
SIZE: Size = (96, 128)
LENGTHS = {"train": 240, "val": 60}
SEEDS = {"train": 1, "val": 2}
LICENSE = "CC0-1.0 (drawn by segtailor)"
# Scenes are kept once drawn, up to this many bytes a process.
CACHE_BYTES = 512 * 2**20
# Least difference in brightness between a thing and what it covers, so that it can be seen.
APART = 35.0

Array = NDArray[np.float32]
Mask = NDArray[np.bool_]
Image = NDArray[np.uint8]


class Toy(SegmentationDataset):
    """Street scenes of nine classes in which texture, shape and place give the class, and color does not.

    Scene ``i`` of a split is a function of the split, ``i`` and ``size`` alone, and is drawn at ``size``: nothing is
    resized.
    """

    name = "toy"
    license = LICENSE
    mean_color = (131, 131, 131)
    classes = tuple(name for name, _ in CLASSES)
    palette = tuple(color for _, color in CLASSES)

    def __init__(self, split: str, size: Size = SIZE, length: int | None = None) -> None:
        if split not in LENGTHS:
            raise unknown("split of toy", split, LENGTHS)
        self.split, self.size = split, size
        self.length = length or LENGTHS[split]
        self._kept: dict[int, Sample] = {}
        self._room = CACHE_BYTES // (4 * size[0] * size[1])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int, /) -> Sample:
        if not 0 <= index < self.length:
            raise IndexError(index)
        kept = self._kept.get(index)
        if kept is None:
            image, target = draw_scene((SEEDS[self.split], index), self.size)
            kept = Sample(torch.from_numpy(image), torch.from_numpy(target), f"{self.split}-{index:04d}")
            if len(self._kept) < self._room:
                self._kept[index] = kept
        return Sample(kept.image.clone(), kept.target.clone(), kept.name)


def create_toy(config: DataConfig, split: str, training: bool) -> Toy:
    """Return a split of ``toy`` at ``config.size`` (default 96 x 128); ``config.length`` is that of the train split."""
    return Toy(split, config.size or SIZE, config.length if split == "train" else None)


def draw_scene(seed: Sequence[int], size: Size) -> tuple[Image, Image]:
    """Return image (3,H,W) and target (H,W), uint8, of the scene of ``seed``, drawn at ``size``."""
    scene = Scene(np.random.default_rng(list(seed)), size)
    scene.draw_ground()
    scene.draw_blocks()
    for _ in range(scene.count(0, 3)):
        scene.draw_tree()
    # far things first, so that near ones cover them
    things = [scene.draw_pole] * scene.count(1, 5)
    things += [scene.draw_car] * scene.count(0, 4)
    things += [scene.draw_pedestrian] * scene.count(1, 5)
    depths = np.sort(scene.rng.random(len(things)))
    for depth, thing in zip(depths, scene.rng.permutation(len(things)), strict=True):
        things[thing](float(depth))
    scene.draw_void()
    return scene.photograph(), scene.target


class Scene:
    """One street: image (H,W,3), target (H,W), and the random numbers that draw them.

    ``unit`` is what a pixel is at 96 rows. Depth goes from 0 at the horizon to 1 at the bottom of the frame. The order
    in which random numbers are drawn is fixed: every recorded score on ``toy`` depends on it.
    """

    def __init__(self, rng: np.random.Generator, size: Size) -> None:
        self.rng, self.size = rng, size
        self.h, self.w = size
        self.unit = self.h / 96
        self.y, self.x = np.arange(self.h, dtype=np.float32)[:, None], np.arange(self.w, dtype=np.float32)[None]
        self.image: Array = np.zeros((*size, 3), np.float32)
        self.target = np.full(size, VOID, np.uint8)
        self.horizon = self.h * self.between(0.36, 0.55)
        self.vanishing = self.w * self.between(0.3, 0.7)
        # where the road and the pavement leave the frame at the bottom
        self.road = (self.w * self.between(-0.25, 0.22), self.w * self.between(0.78, 1.25))
        self.walk = (self.road[0] - self.w * self.between(0.2, 0.7), self.road[1] + self.w * self.between(0.2, 0.7))

    def between(self, low: float, high: float) -> float:
        """Return a number drawn uniformly."""
        return float(self.rng.uniform(low, high))

    def count(self, low: int, high: int) -> int:
        """Return a whole number drawn uniformly, both ends included."""
        return int(self.rng.integers(low, high + 1))

    def noise(self, cell_y: float, cell_x: float) -> Array:
        """Return smooth noise (H,W) of unit spread whose features are about that many pixels."""
        rows, columns = (_between(side, cell * self.unit) for side, cell in ((self.h, cell_y), (self.w, cell_x)))
        grid = self.rng.standard_normal((rows[0], columns[0])).astype(np.float32)
        return _lerp(_lerp(grid.T, columns).T, rows) * np.float32(1.4)

    def ragged(self, cell: float, far: float, length: int) -> Array:
        """Return how far a border wanders, in pixels, at each of ``length`` rows or columns (length,)."""
        between = _between(length, cell * self.unit)
        points = self.rng.standard_normal((between[0], 1)).astype(np.float32)
        return _lerp(points, between)[:, 0] * np.float32(far * self.unit)

    def paint(self, mask: Mask, texture: NDArray[np.floating] | float, label: int, apart: float = 0.0) -> None:
        """Cover ``mask`` with a surface of random color, modulated by ``texture`` (about -1 to 1).

        Brightness, color and contrast are drawn alike for all classes, so that only the texture tells them apart. The
        brightness is at least ``apart`` from that of what is covered.
        """
        inside = np.flatnonzero(mask)
        if inside.size == 0:
            return
        grey = self.between(70.0, 185.0)
        if apart:
            behind = float(self.image.reshape(-1, 3)[inside].mean())
            if abs(grey - behind) < apart:
                grey = behind + (apart if grey > behind else -apart)
        base = grey + self.rng.uniform(-40.0, 40.0, 3)
        tint = self.rng.uniform(0.6, 1.0, 3) * self.between(18.0, 38.0) * self.rng.choice((-1, 1))
        wave = np.broadcast_to(texture, self.size).reshape(-1, 1)[inside].astype(np.float32)
        self.image.reshape(-1, 3)[inside] = base.astype(np.float32) + wave * tint.astype(np.float32)
        self.target.reshape(-1)[inside] = label

    def draw_ground(self) -> None:
        """Draw sky, pavement and road."""
        self.paint(np.ones(self.size, np.bool_), self.noise(30, 40) * 0.7 + self.y / self.h, SKY)
        depth = (self.y - self.horizon) / (self.h - self.horizon)
        self.depth = np.clip(depth, 0, 1)
        self.outside, off_road = (
            self._beyond(edges, self.ragged(2.5, 2.5, self.h)) for edges in (self.walk, self.road)
        )
        slope, period = self.rng.choice((-1, 1)) * self.between(0.6, 1.6), self.between(3.5, 6) * self.unit
        tiles = np.sign(np.sin((self.x + slope * self.y) * (2 * np.pi / period)))
        self.paint(~self.outside & (depth > 0), tiles * 0.8, PAVEMENT)
        streaks = self.noise(1.2, 9) * 0.9
        lane = np.abs(self.x - self.vanishing - (self.between(-0.2, 0.2) * self.w) * self.depth)
        dashes = (lane < (0.4 + 1.6 * self.depth) * self.unit) & (np.sin(14 / (0.15 + self.depth)) > 0)
        self.paint(~off_road & (depth > 0), streaks + 2.2 * dashes, ROAD)

    def _at(self, edge: float, depth: Any) -> Any:
        """Return where a line from the vanishing point to ``edge`` at the bottom is at ``depth``."""
        return self.vanishing + (edge - self.vanishing) * depth

    def _beyond(self, edges: tuple[float, float], ragged: Array) -> Mask:
        x = self.x + ragged[:, None] * self.depth
        beyond: Mask = (x < self._at(edges[0], self.depth)) | (x > self._at(edges[1], self.depth)) | (self.depth <= 0)
        return beyond

    def draw_blocks(self) -> None:
        """Draw the buildings and greenery that line the street, each a range of columns."""
        edges = np.sort(self.rng.uniform(-0.05, 1.05, self.count(4, 8))) * self.w
        ground = self.outside | (self.depth <= 0)
        for left, right in itertools.pairwise(np.concatenate(([-1.0], edges, [self.w + 1.0]))):
            near = abs((left + right) / 2 - self.vanishing) / self.w
            top = self.horizon - self.h * self.between(0.1, 0.5) * (0.35 + 1.3 * near)
            columns = (self.x >= left) & (self.x < right) & ground
            kind = self.rng.random()
            if kind < 0.6:
                self.paint(columns & (self.y > top + self.ragged(4, 0.6, self.w)), self._windows(), BUILDING)
            elif kind < 0.92:
                top = self.horizon - self.h * self.between(0.02, 0.3)
                self.paint(columns & (self.y > top + self.noise(5, 5) * 4 * self.unit), self._leaves(), VEGETATION)
            else:
                self.paint(columns & (self.depth > 0), self._leaves(), VEGETATION)

    def _windows(self) -> Array:
        period_x, period_y = (self.between(5, 12) * self.unit for _ in range(2))
        part_x, part_y = (self.between(0.4, 0.7) for _ in range(2))
        across = ((self.x / period_x + self.rng.random()) % 1 < part_x).astype(np.float32)
        down = ((self.y / period_y + self.rng.random()) % 1 < part_y).astype(np.float32)
        return across * down * np.float32(1.8) - np.float32(0.6)

    def _leaves(self) -> Array:
        return self.noise(2.2, 2.2) * np.float32(1.1)

    def _on_pavement(self, depth: float) -> tuple[float, float]:
        side = self.count(0, 1)
        inner, outer = (self._at(edges[side], depth) for edges in (self.road, self.walk))
        x = inner + (outer - inner) * self.between(0.1, 0.9)
        return float(np.clip(x, 2, self.w - 3)), self.horizon + (self.h - self.horizon) * depth

    def draw_tree(self) -> None:
        """Draw a tree on the pavement: its trunk is as thin as a pole, its crown ragged."""
        depth = self.between(0.05, 0.6)
        x, foot = self._on_pavement(depth)
        height = (10 + 60 * depth) * self.unit * self.between(0.7, 1.2)
        radius = height * self.between(0.25, 0.4)
        trunk = (np.abs(self.x - x) < (0.6 + 2 * depth) * self.unit) & (self.y < foot) & (self.y > foot - height)
        away = np.hypot((self.x - x) / 1.1, self.y - (foot - height)) + self.noise(4, 4) * radius * 0.25
        self.paint(trunk, 0.0, VEGETATION)
        self.paint(away < radius, self._leaves(), VEGETATION)

    def draw_pole(self, depth: float) -> None:
        """Draw a pole one to three pixels wide, some with a sign, some with an arm."""
        x, foot = self._on_pavement(0.05 + 0.7 * depth)
        height = (14 + 50 * depth) * self.unit * self.between(0.7, 1.3)
        half = max(0.5, (0.6 + 1.2 * depth) * self.unit)
        top = foot - height
        lean = self.between(-0.03, 0.03)
        pole = (np.abs(self.x - x - lean * (self.y - top)) <= half) & (self.y < foot) & (self.y >= top)
        kind = self.rng.random()
        if kind > 0.65:
            along = (self.x - x) / (self.between(4, 10) * self.unit * self.rng.choice((-1, 1)))
            pole |= (np.abs(self.y - top) <= half) & (along >= 0) & (along < 1)
        self.paint(pole, 0.4, POLE, APART)
        if kind < 0.65:
            radius = (3 + 5.5 * depth) * self.unit * self.between(0.8, 1.3)
            dx, dy = np.abs(self.x - x), self.y - top
            shapes = (np.hypot(dx, dy), np.maximum(dx, np.abs(dy)), np.maximum(2 * dx - dy, dy) * 0.8)
            away = shapes[self.count(0, 2)]
            self.paint(away < radius, np.where(away > radius * 0.65, 1.6, -0.4).astype(np.float32), SIGN, APART)

    def draw_car(self, depth: float) -> None:
        """Draw a car on the road: body, cabin with window band, wheels."""
        depth = 0.08 + 0.75 * depth
        left, right = (self._at(edge, depth) for edge in self.road)
        foot = self.horizon + (self.h - self.horizon) * depth
        length, height = (8 + 34 * depth) * self.unit * self.between(0.8, 1.3), (5 + 17 * depth) * self.unit
        dx, up = (self.x - self.between(left, right)) / length, (foot - self.y) / height
        wheels = np.minimum(np.abs(dx - 0.3), np.abs(dx + 0.3)) * length
        round_wheels = np.hypot(wheels, (foot - self.y) - height * 0.15) < height * 0.2
        body = (np.abs(dx) < 0.5) & (up > 0.12) & (up < 0.58)
        cabin = (np.abs(dx + 0.05) < 0.46 - 0.25 * up) & (up >= 0.58) & (up < 1)
        band = (up > 0.62) & (up < 0.9) & (np.abs(dx + 0.05) < 0.4 - 0.25 * up)
        stripe = np.sin(up * 9).astype(np.float32) * 0.5
        mask = body | cabin | round_wheels
        self._void_rim(mask)
        self.paint(mask, stripe - 2.2 * band - 2.6 * round_wheels, CAR, APART)

    def draw_pedestrian(self, depth: float) -> None:
        """Draw a pedestrian on the pavement, now and then on the road: head, body, legs."""
        depth = 0.1 + 0.7 * depth
        x, foot = self._on_pavement(depth)
        if self.rng.random() < 0.3:
            x = self.between(0.1, 0.9) * self.w
        height = (9 + 30 * depth) * self.unit * self.between(0.8, 1.15)
        dx, up = (self.x - x) / height, (foot - self.y) / height
        head = np.hypot(dx, up - 0.9) < 0.1
        body = (np.abs(dx) < 0.09 + 0.07 * up) & (up > 0.42) & (up < 0.82)
        stride = self.between(0.02, 0.2)
        legs = (np.abs(np.abs(dx) - stride * (0.45 - up)) < 0.055) & (up > 0) & (up <= 0.42)
        mask = head | body | legs
        self._void_rim(mask)
        folds = np.sin(self.x * (2 * np.pi / (self.between(2.5, 4) * self.unit))).astype(np.float32)
        self.paint(mask, folds + 1.2 * (up < 0.42), PEDESTRIAN, APART)

    def _void_rim(self, mask: Mask) -> None:
        """Leave about half of the pixels around a thing unlabelled, as annotators do."""
        self.target[binary_dilation(mask) & (self.noise(3, 3) > 0)] = VOID

    def draw_void(self) -> None:
        """Draw unlabelled things: patches that imitate other classes, an object, the car's hood."""
        for _ in range(self.count(0, 4)):  # a shadow, a poster: the label underneath stays
            x, y = self.between(0, self.w), self.between(0.2 * self.h, self.h)
            wide, high = (self.between(3, 14) * self.unit for _ in range(2))
            patch = (np.abs(self.x - x + 0.3 * (self.y - y)) < wide) & (np.abs(self.y - y) < high)
            self.image[patch] += self.rng.uniform(-35, 35, 3).astype(np.float32)
        if self.rng.random() < 0.4:
            x, y = self.between(0, self.w), self.between(self.horizon, self.h)
            radius = self.between(4, 10) * self.unit
            away = np.hypot(self.x - x, (self.y - y) * 1.4) + self.noise(4, 4) * 2 * self.unit
            self.paint(away < radius, self.noise(2, 5), VOID)
        if self.rng.random() < 0.5:
            rise = self.h * self.between(0.04, 0.14)
            arch = ((self.x - self.w / 2) / (self.w * 0.55)) ** 2
            self.paint(self.y > self.h - rise * (1 - arch), np.sin(self.x / (9 * self.unit)).astype(np.float32), VOID)

    def photograph(self) -> Image:
        """Return the image (3,H,W) as the camera gives it: uneven light, blur, noise."""
        light = np.exp(0.35 * (self.noise(45, 60) * 0.5 + self.between(-0.5, 0.5)))
        image = self.image * light[..., None]
        if self.rng.random() < 0.5:
            wide = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
            image = (wide[:-2, 1:-1] + wide[2:, 1:-1] + wide[1:-1, :-2] + wide[1:-1, 2:] + 4 * image) / 8
        image = image + self.rng.standard_normal(image.shape, dtype=np.float32) * np.float32(self.between(3.0, 8.0))
        return np.ascontiguousarray(np.clip(image + 0.5, 0, 255).astype(np.uint8).transpose(2, 0, 1))


@lru_cache(maxsize=256)
def _between(length: int, cell: float) -> tuple[int, NDArray[np.int64], Array]:
    """Return how many points, ``cell`` pixels apart, span ``length`` pixels, and where each pixel is between two."""
    points = max(2, int(np.ceil(length / max(cell, 1.0))) + 1)
    place = np.linspace(0, points - 1, length)
    lower = np.minimum(place.astype(np.int64), points - 2)
    return points, lower, (place - lower).astype(np.float32)[:, None]


def _lerp(points: Array, between: tuple[int, NDArray[np.int64], Array]) -> Array:
    # no matrix product: its threads would fight over the cores with those of training
    _, lower, weight = between
    upper = points[lower + 1]
    upper -= points[lower]
    upper *= weight
    upper += points[lower]
    return upper
