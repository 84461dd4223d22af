"""What a recipe says that mask values mean, and the fields that say something else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from segtailor.config import DataConfig
from segtailor.data.base import SegmentationDataset
from segtailor.data.classes_file import distinct_colors
from segtailor.data.paired import FileDataset, MaskDataset, MaskValues, read_index_mask
from segtailor.files import VOID, Color

# Data sets whose masks are computed: no file holds the numbers.
COMPUTED = ("coco-json", "packed", "toy")
# Those whose numbers no field of the recipe explains.
FIXED = ("cityscapes",)
# Those of a user's own, which read masks of colours, too.
OWN = ("folder", "csv", "hf")


@dataclass(frozen=True)
class Rules:
    """What mask values mean: ``values`` has one a class, in order; ``void`` is what the data set declares.

    ``palette`` is None where the colours are made up. ``stored`` says whether the numbers are those in the files: some
    data sets convert them first.
    """

    config: DataConfig
    classes: tuple[str, ...]
    palette: tuple[Color, ...] | None
    values: tuple[int, ...]
    void: frozenset[int]
    stored: bool
    meaning: MaskValues = field(compare=False, repr=False)

    @property
    def declared(self) -> frozenset[int]:
        """All values with a meaning that was declared."""
        return self.void | set(self.values)

    @property
    def expects_void(self) -> bool:
        """Whether 255 may well occur: declared, what is converted to void, or a known data set's only void."""
        return VOID in self.declared or not self.stored or (not self.void and not self.own)

    @property
    def own(self) -> bool:
        """Whether these are images of a user's own, whose classes a file names; `data.masks: color` applies."""
        return self.config.name in OWN

    @property
    def settable(self) -> bool:
        """Whether `data.values`, `data.void` and `data.reduce_zero_label` apply."""
        return self.config.name not in FIXED


def rules_of(dataset: SegmentationDataset, config: DataConfig) -> Rules | None:
    """Return what the numbers in the masks of ``dataset`` mean; None where there are none, or several a class."""
    if not isinstance(dataset, MaskDataset) or config.name in COMPUTED or config.masks not in (None, "index"):
        return None
    meaning = dataset.values
    if sorted(meaning.classes.values()) != list(range(dataset.num_classes)):
        return None
    made_up = config.name in OWN and dataset.palette == distinct_colors(dataset.num_classes)
    return Rules(
        config=config,
        classes=dataset.classes,
        palette=None if made_up else dataset.palette,
        values=tuple(sorted(meaning.classes, key=lambda value: meaning.classes[value])),
        void=meaning.void,
        stored=not isinstance(dataset, FileDataset) or dataset.read_mask is read_index_mask,
        meaning=meaning,
    )


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
        natural = reduced and rules.own and list(values) == list(range(len(values)))
        if not natural and (reduced or tuple(values) != rules.values):
            fields["data.values"] = list(values)
    if wanted != declared:
        fields["data.void"] = sorted(wanted)
    return fields


def as_color(rules: Rules) -> dict[str, Any]:
    """Return the fields of the recipe that read masks by their colours."""
    if not rules.own:
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
