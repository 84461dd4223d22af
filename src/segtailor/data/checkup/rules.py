"""What a recipe says that mask values mean, and the fields that say something else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from segtailor.config import DataConfig
from segtailor.data.base import VOID, Color
from segtailor.data.files import MaskDataset
from segtailor.data.masks import ColorValues
from segtailor.data.palette import distinct_colors

# Data sets whose masks no field of the recipe explains.
FIXED = ("coco-json", "packed", "toy")
# Those that read masks of colours.
COLORABLE = ("folder", "csv", "hf")


class Rules(NamedTuple):
    """The meaning of mask values: ``values`` has one a class, in order; ``void`` is what the data set declares.

    ``settable`` says whether `data.values` and `data.void` apply; ``palette`` is None where the colours are made up.
    """

    config: DataConfig
    classes: tuple[str, ...]
    palette: tuple[Color, ...] | None
    values: tuple[int, ...]
    void: frozenset[int]
    settable: bool

    @property
    def declared(self) -> frozenset[int]:
        """All values with a meaning that was declared."""
        return self.void | set(self.values)

    @property
    def expects_void(self) -> bool:
        """Whether 255 may well occur: it is declared, or a data set that segtailor knows has no other void."""
        return VOID in self.declared or (not self.void and self.config.name not in COLORABLE)

    @property
    def colorable(self) -> bool:
        """Whether `data.masks: color` applies."""
        return self.config.name in COLORABLE


def rules_of(dataset: MaskDataset, config: DataConfig) -> Rules | None:
    """Return what the masks' values mean in ``dataset``; None where they are colours, or not one a class."""
    meaning = dataset.values
    if isinstance(meaning, ColorValues) or sorted(meaning.classes.values()) != list(range(dataset.num_classes)):
        return None
    values = tuple(sorted(meaning.classes, key=lambda value: meaning.classes[value]))
    made_up = config.name in COLORABLE and dataset.palette == distinct_colors(dataset.num_classes)
    palette = None if made_up else dataset.palette
    settable = config.name not in FIXED and config.masks in (None, "index")
    return Rules(config, dataset.classes, palette, values, meaning.void, settable)


def recipe_of(rules: Rules, values: Sequence[int], void: Iterable[int]) -> dict[str, Any]:
    """Return the fields of the recipe that give each class its value of ``values`` and make ``void`` void, too."""
    if not rules.settable:
        return {}
    reduced, wanted = rules.config.reduce_zero_label, set(void) - set(values)
    declared = rules.void - {0} if reduced else rules.void
    fields: dict[str, Any] = {}
    if list(values) == list(range(1, len(values) + 1)) and 0 in wanted - declared and rules.config.values is None:
        wanted -= {0}
        if not reduced:
            fields["data.reduce_zero_label"] = True
    else:
        if reduced:
            fields["data.reduce_zero_label"] = False
        # without the field, masks of a user's own begin at 0
        natural = reduced and rules.colorable and list(values) == list(range(len(values)))
        if not natural and (reduced or tuple(values) != rules.values):
            fields["data.values"] = list(values)
    if wanted != declared:
        fields["data.void"] = sorted(wanted)
    return fields


def as_color(rules: Rules) -> dict[str, Any]:
    """Return the fields of the recipe that read masks by their colours."""
    if not rules.colorable:
        return {}
    given = {"values": rules.config.values, "void": rules.config.void}
    fields: dict[str, Any] = {
        "data.masks": "color",
        **{f"data.{name}": None for name in given if given[name] is not None},
    }
    if rules.config.reduce_zero_label:
        fields["data.reduce_zero_label"] = False
    return fields


def spans(values: Iterable[int]) -> str:
    """Return sorted ``values`` with runs joined.

    >>> spans([1, 2, 3, 7, 255])
    '1 to 3, 7, 255'
    """
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    texts = []
    for first, last in runs:
        texts += [f"{first} to {last}"] if last > first + 1 else [str(value) for value in sorted({first, last})]
    return ", ".join(texts)
