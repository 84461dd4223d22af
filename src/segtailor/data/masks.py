"""What a user's masks hold: class indices, colours, or one file for each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtailor.config import DataConfig
from segtailor.data.base import some
from segtailor.data.classes_file import ClassesFile
from segtailor.data.files import MaskValues
from segtailor.data.pairs import Pair
from segtailor.data.read import Source, UnreadableFile, open_mask
from segtailor.errors import SegtailorError
from segtailor.files import VOID, Color

COLOR_MODES = frozenset({"RGB", "RGBA", "P", "L", "LA", "1"})
# In place of a class index: a colour that means nothing is this much more than its 24 bits.
UNKNOWN_COLOR = 256


def index_values(config: DataConfig, described: ClassesFile, where: str) -> MaskValues:
    """Return what the numbers in masks mean: what ``where`` says, unless the recipe says otherwise.

    Raises ``SegtailorError`` when ``data.values``, ``data.void`` and ``data.reduce_zero_label`` contradict each other
    or the classes.
    """
    count = len(described.classes)
    if config.reduce_zero_label and config.values is not None:
        raise SegtailorError(
            "data.reduce_zero_label and data.values exclude each other: the first says that the classes' mask values "
            "are 1, 2, 3, ...; keep one of them"
        )
    values = described.class_values() if config.values is None else list(config.values)
    void = described.void if config.void is None else list(config.void)
    if config.reduce_zero_label:
        values = list(range(1, count + 1))
        void = [0, *void]
    if len(values) != count:
        raise SegtailorError(f"data.values has {len(values)} entries, but {where} names {count} classes")
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise SegtailorError(f"data.values gives {some(list(map(str, twice)))} to two classes; give each its own")
    if both := sorted(set(void) & set(values)):
        source = "data.void" if config.void is not None else f"`void` of {where}"
        raise SegtailorError(f"{source} holds {some(list(map(str, both)))}, which the classes have; set data.void anew")
    return MaskValues(
        {value: index for index, value in enumerate(values)},
        void,
        hint=f"{where} gives its classes the values {_ranges(values)}; mend it, or set data.values, data.void or "
        "data.reduce_zero_label",
    )


def refuse_values(config: DataConfig, masks: str) -> None:
    """Raise ``SegtailorError`` when the recipe says what mask values mean although ``masks`` hold none."""
    given = {"values": config.values, "void": config.void, "reduce_zero_label": config.reduce_zero_label or None}
    if names := [f"data.{name}" for name, value in given.items() if value is not None]:
        raise SegtailorError(f"{' and '.join(names)} explain index masks, but {masks}; leave them out")


def color_masks(config: DataConfig, described: ClassesFile, where: str) -> tuple[ColorMasks, ColorValues]:
    """Return what reads masks of colours, and what its numbers mean.

    Raises ``SegtailorError`` without a palette, and when a colour has two meanings.
    """
    refuse_values(config, "data.masks is color")
    if described.palette is None:
        raise SegtailorError(
            f"data.masks is color, but {where} gives the classes no colours; write `classes: {{road: [128, 64, 128], "
            "car: [0, 0, 142]}` there"
        )
    colors = [*described.palette, *described.void_colors]
    if twice := sorted({str(color) for color in colors if colors.count(color) > 1}):
        raise SegtailorError(f"{where} gives {some(twice)} to two classes or to a class and void; mend the colours")
    hint = f"name the colours in {where}, as classes or under void_colors"
    return ColorMasks(described.palette, described.void_colors), ColorValues(len(described.classes), hint)


class ColorValues(MaskValues):
    """The numbers that :class:`ColorMasks` gives: class indices, void, and more than a byte for unknown colours."""

    def __init__(self, classes: int, hint: str) -> None:
        super().__init__({index: index for index in range(classes)}, hint=hint)

    def describe(self, value: int) -> str:
        """Return an unknown colour as (red, green, blue)."""
        if value < UNKNOWN_COLOR:
            return str(value)
        return str(tuple((value - UNKNOWN_COLOR).to_bytes(3, "big")))


class ColorMasks:
    """Reads masks whose colours are the classes: ``palette`` gives one a class, ``void`` those that are ignored."""

    def __init__(self, palette: Sequence[Color], void: Sequence[Color] = ()) -> None:
        self.palette, self.void = tuple(palette), tuple(void)
        self._table: NDArray[np.uint16] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # every process makes its own table of 32 MB, when it reads its first mask
        return {**self.__dict__, "_table": None}

    def __call__(self, pair: Pair) -> NDArray[Any]:
        """Return the class indices of the mask of ``pair``; see :meth:`read`."""
        return self.read(pair.mask)

    def read(self, source: Source) -> NDArray[Any]:
        """Return class indices and void (H,W) as bytes; int32 with unknown colours above a byte where there are any."""
        with open_mask(source) as file:
            if file.mode not in COLOR_MODES:
                raise UnreadableFile(f"data.masks is color, but the mask's mode is {file.mode}")
            pixels = np.zeros((file.height, file.width, 4), np.uint8)
            pixels[..., 2::-1] = np.array(file.convert("RGB"))
        packed = pixels.view("<i4")[..., 0]  # the number whose digits are red, green, blue
        numbers = self._numbers().take(packed)
        if numbers.max(initial=0) < UNKNOWN_COLOR:
            return numbers.astype(np.uint8)
        return np.where(numbers < UNKNOWN_COLOR, numbers, packed + UNKNOWN_COLOR).astype(np.int32)

    def _numbers(self) -> NDArray[np.uint16]:
        if self._table is None:
            table = np.full(1 << 24, UNKNOWN_COLOR, np.uint16)
            for color in self.void:
                table[_number(color)] = VOID
            for index, color in enumerate(self.palette):
                table[_number(color)] = index
            self._table = table
        return self._table


def _number(color: Color) -> int:
    return int.from_bytes(bytes(color), "big")


def _ranges(values: Sequence[int]) -> str:
    if list(values) == list(range(values[0], values[-1] + 1)):
        return f"{values[0]} to {values[-1]}" if len(values) > 1 else str(values[0])
    return some(list(map(str, values)), 12)
