"""The meaning of mask values, and labels that are one too high or too low, also where 0 means unlabelled.

For all masks together the values alone decide. For a few among many the values are a suspicion, which is confirmed when
the amounts of the classes fit those of the other masks much better after the shift.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from segtailor.config import DataConfig
from segtailor.data.base import SegmentationDataset, spans
from segtailor.data.check.report import Finding, Location, Severity, found
from segtailor.data.check.scan import SampleStats
from segtailor.data.classes_file import distinct_colors
from segtailor.data.paired import FileDataset, MaskDataset, MaskValues, read_index_mask
from segtailor.files import VOID, Color

# Data sets whose masks are computed: no file holds the numbers.
COMPUTED = ("coco-json", "packed", "toy")
# Data sets whose encoding no field of the recipe changes.
FIXED = ("cityscapes",)
# The user's data sets, whose classes a file names; masks of colors can be read, too.
OWN = ("folder", "csv", "hf")

HIGH, LOW, ZERO = "labels-one-too-high", "labels-one-too-low", "zero-label-not-reduced"
# The value after the last class is that class, one too high, when so many masks have it: not a few stray pixels.
FEW_MASKS, FEW_SHARE = 3, 0.25
# How many masks without suspicion are needed to know the usual shares.
FEWEST_GOOD = 5
# How much more likely (in nats a pixel) the shifted labels must be.
MARGIN = 0.5
SMOOTHING = 1e-4
# The share that 255 is expected to have in masks in which it is not declared.
STRAY_VOID = 0.02
# The least share of 255 when it is the first class less one: borders take less where there are few classes.
LEAST_CLASS, CERTAIN_CLASS = 0.02, 0.15


@dataclass(frozen=True)
class Encoding:
    """The meaning of mask values: ``values`` has one a class, in order; ``void`` are those declared void.

    ``palette`` is None where the colors are generated. ``stored``: the numbers are those in the files, which some data
    sets convert.
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
        """All declared values."""
        return self.void | set(self.values)

    @property
    def top(self) -> int:
        """The largest declared value below 255."""
        return max((value for value in self.declared if value < VOID), default=0)

    @property
    def expects_void(self) -> bool:
        """Whether 255 may occur: declared, converted to void, or a known data set's only void."""
        return VOID in self.declared or not self.stored or (not self.void and not self.own)

    @property
    def own(self) -> bool:
        """Whether the user names the classes in a file; `data.masks: color` applies."""
        return self.config.name in OWN

    @property
    def settable(self) -> bool:
        """Whether `data.values`, `data.void` and `data.reduce_zero_label` apply."""
        return self.config.name not in FIXED

    def recipe(self, values: Sequence[int], void: Iterable[int]) -> dict[str, Any]:
        """Return the fields of the recipe that give each class its value of ``values`` and make ``void`` void, too."""
        if not self.settable:
            return {}
        reduced, wanted = self.config.reduce_zero_label, set(void) - set(values)
        declared = self.void - {0} if reduced else self.void
        fields: dict[str, Any] = {}
        if list(values) == list(range(1, len(values) + 1)) and 0 in wanted - declared and self.config.values is None:
            wanted -= {0}
            if not reduced:
                fields["data.reduce_zero_label"] = True
        else:
            if reduced:
                fields["data.reduce_zero_label"] = False
            # without the field, the user's masks begin at 0
            natural = reduced and self.own and list(values) == list(range(len(values)))
            if not natural and (reduced or tuple(values) != self.values):
                fields["data.values"] = list(values)
        if wanted != declared:
            fields["data.void"] = sorted(wanted)
        return fields

    def color_recipe(self) -> dict[str, Any]:
        """Return the fields of the recipe that read masks by their colors."""
        if not self.own:
            return {}
        fields: dict[str, Any] = {"data.masks": "color"}
        fields |= {f"data.{name}": None for name in ("values", "void") if getattr(self.config, name) is not None}
        return fields | ({"data.reduce_zero_label": False} if self.config.reduce_zero_label else {})


def encoding_of(dataset: SegmentationDataset, config: DataConfig) -> Encoding | None:
    """Return the encoding of the masks of ``dataset``; None where they have no numbers, or several a class."""
    if not isinstance(dataset, MaskDataset) or config.name in COMPUTED or config.masks not in (None, "index"):
        return None
    meaning = dataset.values
    if sorted(meaning.classes.values()) != list(range(dataset.num_classes)):
        return None
    made_up = config.name in OWN and dataset.palette == distinct_colors(dataset.num_classes)
    return Encoding(
        config=config,
        classes=dataset.classes,
        palette=None if made_up else dataset.palette,
        values=tuple(sorted(meaning.classes, key=lambda value: meaning.classes[value])),
        void=meaning.void,
        stored=not isinstance(dataset, FileDataset) or dataset.read_mask is read_index_mask,
        meaning=meaning,
    )


def with_values(masks: Iterable[SampleStats]) -> list[Location]:
    """Return the locations of ``masks`` with the values that they hold."""
    return [Location(mask.mask, f"values {spans(mask.values)}") for mask in masks]


class Reading(NamedTuple):
    """Another meaning of the numbers: the mask value of each class, and the void values."""

    values: tuple[int, ...]
    void: frozenset[int]


def take(masks: list[SampleStats], taken: Iterable[SampleStats]) -> None:
    """Remove from ``masks`` those that are ``taken``."""
    ids = {id(mask) for mask in taken}
    masks[:] = [mask for mask in masks if id(mask) not in ids]


def find_label_offset(encoding: Encoding, masks: list[SampleStats]) -> tuple[list[Finding], dict[str, Any]]:
    """Take the masks, all or some, whose labels are shifted; values fit into a byte.

    Returned are the findings, and the recipe that would reduce the zero label where that is a mere possibility.
    """
    seen = {value for mask in masks for value in mask.values} - {VOID}
    unknown = seen - encoding.declared
    zero_recipe: dict[str, Any] = {}
    whole: tuple[str, Reading, Severity] | None = None
    if unknown:
        high, low = _shifted(encoding, seen, 1), _shifted(encoding, seen, -1)
        zero = _shifted(encoding, seen - {0}, 1)
        if high is not None and min(encoding.values) not in seen:
            whole = HIGH, high, "error"
        elif low is not None and min(low.values) in seen and max(encoding.values) not in seen:
            whole = LOW, low, "error"
        elif zero is not None and 0 in seen and encoding.values[0] == 0:
            zero = Reading(zero.values, zero.void | {0})
            zero_recipe = encoding.recipe(*zero)
            holding = sum(1 for mask in masks if mask.values.keys() & unknown)
            if holding >= min(FEW_MASKS, math.ceil(FEW_SHARE * len(masks))):
                whole = ZERO, zero, "error"
    else:
        whole = _reduced_twice(encoding, masks, seen)
    if whole is not None:
        findings = _of_all(encoding, masks, *whole)
        masks.clear()
        return findings, {}
    return _of_some(encoding, masks), zero_recipe


def _shifted(encoding: Encoding, seen: Iterable[int], by: int) -> Reading | None:
    """Return each class's value ``by`` higher, with void shifted too or not, if that explains all ``seen`` values."""
    values = tuple(value + by for value in encoding.values)
    if min(values) < 0 or max(values) > VOID:
        return None
    moved = frozenset(value + by for value in encoding.void - {VOID} if value + by >= 0) | (encoding.void & {VOID})
    for void in (moved, encoding.void):
        if set(seen) <= {*values, *void}:
            return Reading(values, void - set(values))
    return None


def _reduced_twice(
    encoding: Encoding, masks: Sequence[SampleStats], seen: set[int]
) -> tuple[str, Reading, Severity] | None:
    """Return the reading of masks in which the last value never occurs, but all others one lower do."""
    size = sum(mask.pixels for mask in masks)
    values, void = encoding.values, encoding.void
    # 255 alone is void throughout
    if not seen or len(values) < 2 or encoding.top in seen or not {value + 1 for value in seen} <= encoding.declared:
        return None
    share = sum(mask.values.get(VOID, 0) for mask in masks) / size
    if values == tuple(range(len(values))) and VOID not in values:
        # 0 - 1 is 255 in a byte
        least = max(LEAST_CLASS, min(CERTAIN_CLASS, 0.5 / len(values)))
        if share >= (CERTAIN_CLASS if encoding.expects_void else least):
            reading = Reading((VOID, *values[:-1]), frozenset(value - 1 for value in void - {VOID} if value))
            return LOW, reading, "warning" if encoding.expects_void else "error"
    elif values[0] == 1 and 0 in void and 0 in seen:
        zeros = sum(mask.values.get(0, 0) for mask in masks) / size
        undeclared = share > 0 and VOID not in void
        if undeclared or zeros >= CERTAIN_CLASS:
            reading = Reading(tuple(value - 1 for value in values), void - {0})
            return LOW, reading, "error" if undeclared else "warning"
    return None


def _of_all(
    encoding: Encoding, masks: Sequence[SampleStats], kind: str, reading: Reading, severity: Severity
) -> list[Finding]:
    recipe = encoding.recipe(*reading)
    advice = [] if recipe else [f"rewrite the masks: their classes have {spans(reading.values)}"]
    seen = {value for mask in masks for value in mask.values}
    if kind == ZERO:
        stray = seen - encoding.declared - {VOID}
        advice.append(
            f"but if 0 is a class, name it first in the class file, and if {spans(stray)} is stray, "
            f"data.void: {sorted(encoding.void | stray)}"
        )
    words = {"seen": spans(seen), "expected": spans(encoding.values), "top": encoding.top}
    return found(kind, [Location(mask.mask) for mask in masks], recipe, "; ".join(advice), severity, **words)


def _of_some(encoding: Encoding, masks: list[SampleStats]) -> list[Finding]:
    usual = usual_shares(encoding, masks)
    groups: defaultdict[str, list[SampleStats]] = defaultdict(list)
    for mask in masks:
        kind = _suspicion(encoding, mask)
        if kind and usual and likelier(mask.values, usual, -1 if kind == LOW else 1):
            groups[kind].append(mask)
    findings = []
    for kind, wrong in sorted(groups.items()):
        them = "it" if len(wrong) == 1 else "them"
        advice = f"rewrite {them} like the others, whose classes have {spans(encoding.values)}"
        findings += found(f"{kind}/some", with_values(wrong), advice=advice)
        take(masks, wrong)
    return findings


def _suspicion(encoding: Encoding, mask: SampleStats) -> str | None:
    seen = mask.values.keys() - {VOID}
    unknown = seen - encoding.declared
    if unknown and unknown <= {max(encoding.values) + 1, encoding.top + 1}:
        return ZERO if 0 in seen and encoding.values[0] == 0 else HIGH
    wraps = encoding.values[0] == 0 and VOID in mask.values and not encoding.expects_void
    return LOW if seen and not unknown and wraps and encoding.top not in seen else None


def usual_shares(encoding: Encoding, masks: Sequence[SampleStats]) -> dict[int, float]:
    """Return the mean share of each declared value in the masks that hold no other; empty when these are few."""
    good = [mask for mask in masks if mask.values.keys() <= encoding.declared]
    if len(good) < FEWEST_GOOD:
        return {}
    shares = dict.fromkeys(encoding.declared, 0.0)
    for mask in good:
        size = mask.pixels * len(good)
        for value, pixels in mask.values.items():
            shares[value] += pixels / size
    return shares


def likelier(values: Mapping[int, int], usual: Mapping[int, float], by: int) -> bool:
    """Return whether ``values`` (value -> pixels) fit the ``usual`` shares much better when they are ``by`` less."""
    gain, pixels = 0.0, 0
    for value, number in values.items():
        if value == VOID and by < 0:  # 0 - 1 is 255 in a byte; else it is void, which has this share at most
            before, after = STRAY_VOID, usual[0]
        elif value in usual and value - by in usual and VOID not in (value, value - by):
            before, after = usual[value], usual[value - by]
        else:
            continue
        gain += number * math.log((after + SMOOTHING) / (before + SMOOTHING))
        pixels += number
    return pixels > 0 and gain / pixels > MARGIN
