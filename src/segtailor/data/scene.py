"""Drawing one street scene of the ``toy`` data set."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from segtailor.data.canvas import Array, Canvas, Image, Mask
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

# What makes the scenes hard; lengths are pixels at 96 rows and grow with the size.
APART = 35.0  # least difference in brightness between a thing and what it covers
RAGGED = 2.5  # how far a border wanders
CARS, PEDESTRIANS, POLES, TREES, PATCHES = (0, 4), (1, 5), (1, 5), (0, 3), (0, 4)
BONNET = 0.5  # chance of the own car's bonnet (void) at the bottom
UNLABELLED = 0.4  # chance of an unlabelled thing (void)


def draw_scene(seed: Sequence[int], size: Size) -> tuple[Image, Image]:
    """Return image (3,H,W) and target (H,W), uint8, of the scene that ``seed`` stands for, drawn at ``size``."""
    scene = Scene(np.random.default_rng(list(seed)), size)
    scene.draw_ground()
    scene.draw_blocks()
    for _ in range(scene.count(TREES)):
        scene.draw_tree()
    # far things first, so that near ones cover them
    things = [scene.draw_pole] * scene.count(POLES)
    things += [scene.draw_car] * scene.count(CARS)
    things += [scene.draw_pedestrian] * scene.count(PEDESTRIANS)
    depths = np.sort(scene.rng.random(len(things)))
    for depth, thing in zip(depths, scene.rng.permutation(len(things)), strict=True):
        things[thing](float(depth))
    scene.draw_void()
    return scene.photograph(), scene.target


class Scene(Canvas):
    """A canvas with the geometry of one street."""

    def __init__(self, rng: np.random.Generator, size: Size) -> None:
        super().__init__(rng, size)
        self.horizon = self.h * self.between(0.36, 0.55)
        self.vanishing = self.w * self.between(0.3, 0.7)
        # where the road and the pavement leave the frame at the bottom
        self.road = (self.w * self.between(-0.25, 0.22), self.w * self.between(0.78, 1.25))
        self.walk = (self.road[0] - self.w * self.between(0.2, 0.7), self.road[1] + self.w * self.between(0.2, 0.7))

    def draw_ground(self) -> None:
        """Draw sky, pavement and road."""
        self.paint(np.ones(self.size, np.bool_), self.noise(30, 40) * 0.7 + self.y / self.h, SKY)
        depth = (self.y - self.horizon) / (self.h - self.horizon)
        self.depth = np.clip(depth, 0, 1)
        self.outside, inside = (
            self._beyond(edges, self.ragged(2.5, RAGGED, self.h)) for edges in (self.walk, self.road)
        )
        slope, period = self.rng.choice((-1, 1)) * self.between(0.6, 1.6), self.between(3.5, 6) * self.unit
        tiles = np.sign(np.sin((self.x + slope * self.y) * (2 * np.pi / period)))
        self.paint(~self.outside & (depth > 0), tiles * 0.8, PAVEMENT)
        streaks = self.noise(1.2, 9) * 0.9
        lane = np.abs(self.x - self.vanishing - (self.between(-0.2, 0.2) * self.w) * self.depth)
        dashes = (lane < (0.4 + 1.6 * self.depth) * self.unit) & (np.sin(14 / (0.15 + self.depth)) > 0)
        self.paint(~inside & (depth > 0), streaks + 2.2 * dashes, ROAD)

    def _beyond(self, edges: tuple[float, float], ragged: Array) -> Mask:
        left = self.vanishing + (edges[0] - self.vanishing) * self.depth
        right = self.vanishing + (edges[1] - self.vanishing) * self.depth
        x = self.x + ragged[:, None] * self.depth
        beyond: Mask = (x < left) | (x > right) | (self.depth <= 0)
        return beyond

    def draw_blocks(self) -> None:
        """Draw the buildings and greenery that line the street, each a range of columns."""
        edges = np.sort(self.rng.uniform(-0.05, 1.05, self.count((4, 8)))) * self.w
        bounds = np.concatenate(([-1.0], edges, [self.w + 1.0]))
        ground = self.outside | (self.depth <= 0)
        for left, right in itertools.pairwise(bounds):
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

    def _on_pavement(self, depth: float) -> tuple[float, float]:
        side = int(self.rng.integers(2))
        inner, outer = (self.vanishing + (edge[side] - self.vanishing) * depth for edge in (self.road, self.walk))
        x = inner + (outer - inner) * self.between(0.1, 0.9)
        return float(np.clip(x, 2, self.w - 3)), self.horizon + (self.h - self.horizon) * depth

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
            arm = self.between(4, 10) * self.unit * self.rng.choice((-1, 1))
            along = (self.x - x) / arm
            pole |= (np.abs(self.y - top) <= half) & (along >= 0) & (along < 1)
        self.paint(pole, 0.4, POLE, APART)
        if kind < 0.65:
            radius = (3 + 5.5 * depth) * self.unit * self.between(0.8, 1.3)
            dx, dy = np.abs(self.x - x), self.y - top
            shapes = (np.hypot(dx, dy), np.maximum(dx, np.abs(dy)), np.maximum(2 * dx - dy, dy) * 0.8)
            away = shapes[int(self.rng.integers(3))]
            self.paint(away < radius, np.where(away > radius * 0.65, 1.6, -0.4).astype(np.float32), SIGN, APART)

    def draw_car(self, depth: float) -> None:
        """Draw a car on the road: body, cabin with window band, wheels."""
        depth = 0.08 + 0.75 * depth
        edges = [self.vanishing + (edge - self.vanishing) * depth for edge in self.road]
        foot = self.horizon + (self.h - self.horizon) * depth
        length, height = (8 + 34 * depth) * self.unit * self.between(0.8, 1.3), (5 + 17 * depth) * self.unit
        x = self.between(edges[0], edges[1])
        dx, up = (self.x - x) / length, (foot - self.y) / height
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
        rim = np.zeros_like(mask)
        rim[1:] |= mask[:-1]
        rim[:-1] |= mask[1:]
        rim[:, 1:] |= mask[:, :-1]
        rim[:, :-1] |= mask[:, 1:]
        self.target[rim & (self.noise(3, 3) > 0)] = VOID

    def draw_void(self) -> None:
        """Draw what is in the picture but not labelled: patches that imitate other classes, a bonnet."""
        for _ in range(self.count(PATCHES)):
            self._imitate()
        if self.rng.random() < UNLABELLED:
            x, y = self.between(0, self.w), self.between(self.horizon, self.h)
            radius = self.between(4, 10) * self.unit
            away = np.hypot(self.x - x, (self.y - y) * 1.4) + self.noise(4, 4) * 2 * self.unit
            self.paint(away < radius, self.noise(2, 5), VOID)
        if self.rng.random() < BONNET:
            rise = self.h * self.between(0.04, 0.14)
            arch = ((self.x - self.w / 2) / (self.w * 0.55)) ** 2
            self.paint(self.y > self.h - rise * (1 - arch), np.sin(self.x / (9 * self.unit)).astype(np.float32), VOID)

    def _imitate(self) -> None:
        """Shade a patch (a shadow, a poster) without changing its label."""
        x, y = self.between(0, self.w), self.between(0.2 * self.h, self.h)
        wide, high = (self.between(3, 14) * self.unit for _ in range(2))
        patch = (np.abs(self.x - x + 0.3 * (self.y - y)) < wide) & (np.abs(self.y - y) < high)
        self.image[patch] += self.rng.uniform(-35, 35, 3).astype(np.float32)
