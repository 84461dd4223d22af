"""Values of masks: numbers that are no class, colors in place of numbers, and how often each class occurs.

Masks are sorted into groups, each of which is one finding. A defect of all masks is fixed by a line of the recipe, a
defect of a few of them is not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from segtailor.data.base import Count, some, spans
from segtailor.data.check.offset import Encoding, find_label_offset, take, with_values
from segtailor.data.check.report import Finding, Location, as_yaml, found
from segtailor.data.check.scan import SampleStats, Tally
from segtailor.data.masks import UNKNOWN_COLOR
from segtailor.files import VOID, Color

# In masks with other values, too, borders and gaps take less than this share of 255.
MUCH_VOID = 0.2
# A share of 255 that is no border but a class.
MOSTLY_VOID = 0.5
# More unknown values than this are no forgotten classes.
MANY_VALUES = 10
WIDE_MODES = ("I", "I;16", "I;16B", "I;16L")
# How a class index becomes a larger number: scaled to 16 bits, in the high byte, with the number of an instance.
ORIGINS = {257: "scaled from 8 to 16 bits", 256: "in the high byte", 1000: "class * 1000 + instance"}
BLACK: Color = (0, 0, 0)
# Colors that differ by no more than this in any channel come from smoothing or a lossy format.
NEAR = 24


def find_values(encoding: Encoding, masks: Sequence[SampleStats]) -> list[Finding]:
    """Return what is wrong with the numbers in ``masks``, all in one ``encoding``, and with colors in their place."""
    rest = [mask for mask in masks if mask.values]
    findings = _find_stored_colors(encoding, masks) + _find_palettes(encoding, rest)
    # each removes the masks that it explains from the rest
    for find in (_find_wide, find_binary, _find_grey):
        findings += find(encoding, rest)
    shifted, zero_recipe = find_label_offset(encoding, rest)
    return [*findings, *shifted, *_find_unknown(encoding, rest, zero_recipe), *_find_undeclared(encoding, rest)]


def _find_wide(encoding: Encoding, masks: list[SampleStats]) -> list[Finding]:
    """Return masks of 16 or 32 bits, and take those whose values do not fit into a byte."""
    large = [mask for mask in masks if encoding.stored and mask.values.keys() - encoding.void - set(range(VOID + 1))]
    take(masks, large)
    stored = [mask for mask in masks if mask.mode in WIDE_MODES]
    origin, advice = "", None
    known = encoding.declared | {0, VOID}
    values = {value for mask in large for value in mask.values}
    for factor, text in ORIGINS.items():
        if all(value // factor in known and (factor == 1000 or value % factor == 0) for value in values):
            origin, advice = f": {text}", f"rewrite them in 8 bits, divided by {factor}"
            break
    up_to = (Location(mask.mask, f"values up to {max(mask.values)}") for mask in large)
    return [*found("16-bit-values", up_to, advice=advice, origin=origin), *found("16-bit-mask", with_values(stored))]


def find_binary(encoding: Encoding, masks: list[SampleStats]) -> list[Finding]:
    """Take the masks of 0 and 255 only in which 255 is void but should be a class."""
    classes, both = len(encoding.classes), {0, VOID}
    if VOID in encoding.values or (classes < 2 and VOID in encoding.void):
        return []
    only = [mask for mask in masks if mask.values.keys() == both]
    elsewhere = any(VOID in mask.values and mask.values.keys() != both for mask in masks)
    if encoding.expects_void and elsewhere:
        only = [mask for mask in only if mask.values[VOID] > MUCH_VOID * mask.pixels]
    recipe, advice = {}, None
    if all(mask.values.keys() <= both for mask in masks):
        if classes > 2:
            advice = (
                "such masks separate one class from the rest: give each class its own masks and set data.masks: binary"
            )
        elif encoding.settable:
            values, void = ((0, VOID), encoding.void) if classes == 2 else ((VOID,), {0})
            recipe, advice = encoding.recipe(values, void), ""
    take(masks, only)
    return found("binary-mask", [Location(mask.mask) for mask in only], recipe, advice)


def grey_of(color: Color) -> int:
    """Return the grey that programs make of an RGB color (ITU-R BT.601); they round differently, by one at most.

    >>> grey_of((128, 64, 128))
    90
    """
    return round(0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2])


def _find_grey(encoding: Encoding, masks: list[SampleStats]) -> list[Finding]:
    """Take the masks whose values are the classes' colors turned grey."""
    if encoding.palette is None:
        return []
    known = encoding.declared | {VOID}
    greys = {near for color in encoding.palette for near in (grey_of(color), *_near(grey_of(color)))}
    grey = [
        mask
        for mask in masks
        if mask.values.keys() - {0, VOID} <= greys
        and 2 * sum(pixels for value, pixels in mask.values.items() if value not in known) > mask.pixels
    ]
    # one value may be a class's grey by chance
    if not any(len(mask.values.keys() - {0, VOID}) > 1 for mask in grey):
        return []
    take(masks, grey)
    recipe, advice = {}, None
    values = _grey_values(encoding.palette, grey)
    if values and all(mask.values.keys() <= {0, VOID} for mask in masks):
        recipe = encoding.recipe(values, ({0} | encoding.void & {VOID}) - set(values))
    if recipe:
        advice = "or read the colored masks, where you still have them, with data.masks: color"
    elif encoding.own:
        advice = (
            "these are not class indices: write the masks again from the colored ones, or read those with "
            "data.masks: color"
        )
    return found("colors-read-as-grey", with_values(grey), recipe, advice, expected=spans(encoding.values))


def _near(grey: int) -> range:
    return range(max(grey - 1, 1), min(grey + 1, 254) + 1)


def _grey_values(palette: Sequence[Color], masks: Sequence[SampleStats]) -> list[int]:
    """Return the grey of each class as the masks round it; empty when two classes have the same."""
    seen = Counter(value for mask in masks for value in mask.values)
    values = [max((grey_of(color), *_near(grey_of(color))), key=lambda value: seen[value]) for color in palette]
    return values if len(set(values)) == len(values) else []


class UnknownValues(NamedTuple):
    """Values without a meaning: masks with such values (value -> pixels); pixels, files and the first file of each."""

    masks: list[tuple[SampleStats, dict[int, int]]]
    pixels: Counter[int]
    files: Counter[int]
    first: dict[int, str]


def count_unknown(masks: Iterable[SampleStats], means: Callable[[int], bool]) -> UnknownValues:
    """Count the values in ``masks`` of which ``means`` is false."""
    counts = UnknownValues([], Counter(), Counter(), {})
    for mask in masks:
        if unknown := {value: number for value, number in mask.values.items() if not means(value)}:
            counts.masks.append((mask, unknown))
            counts.pixels.update(unknown)
            counts.files.update(unknown.keys())
            for value in unknown:
                counts.first.setdefault(value, mask.mask)
    return counts


def _find_unknown(encoding: Encoding, masks: Sequence[SampleStats], zero_recipe: Mapping[str, Any]) -> list[Finding]:
    known = encoding.declared | {VOID}
    wrong, pixels, files, _ = count_unknown(masks, lambda value: value in known)
    recipe, advice = {}, None
    if len(pixels) <= MANY_VALUES:
        recipe = encoding.recipe(encoding.values, encoding.void | set(pixels))
        where = "in classes.yaml" if encoding.own else "in your own classes.yaml (data.name: folder)"
        advice = f"that ignores them; if they are classes, name them {where}" if recipe else "correct these masks"
        if zero_recipe and recipe:
            line = ", ".join(f"{key}: {as_yaml(value)}" for key, value in zero_recipe.items())
            advice += f"; if 0 means unlabelled and 1 is the first class, {line} instead"
    described = [
        f"{encoding.meaning.describe(value)} ({Count(number):pixel} in {Count(files[value]):file})"
        for value, number in pixels.most_common()
    ]
    kinds, expected = Count(len(pixels)), spans(encoding.values)
    at = [Location(mask.mask, f"values {spans(unknown)}") for mask, unknown in wrong]
    return found("values-outside-classes", at, recipe, advice, kinds=kinds, named=some(described), expected=expected)


def _find_undeclared(encoding: Encoding, masks: Sequence[SampleStats]) -> list[Finding]:
    holding = [] if encoding.expects_void else [mask for mask in masks if VOID in mask.values]
    share = sum(mask.values[VOID] for mask in holding) / max(1, sum(mask.pixels for mask in masks))
    return found(
        "255-not-declared",
        (Location(mask.mask, f"{Count(mask.values[VOID]):pixel}") for mask in holding),
        encoding.recipe(encoding.values, encoding.void | {VOID}),
        "" if encoding.settable else "nothing, if 255 is meant to be ignored",
        "error" if share > MOSTLY_VOID else None,
        percent=100 * share,
        most="; so much is hardly void: is it a class?" if share > MOSTLY_VOID else "",
    )


def _find_palettes(encoding: Encoding, masks: Sequence[SampleStats]) -> list[Finding]:
    """Return the palette masks in which a value has the color of another class."""
    if encoding.palette is None:
        return []
    classes_of: dict[Color, set[int]] = {}
    for index, color in enumerate(encoding.palette):
        classes_of.setdefault(color, set()).add(index)
    index_of = {value: index for index, value in enumerate(encoding.values)}
    void = encoding.void | ({VOID} - set(encoding.values))
    wrong = []
    for mask in masks:
        for value, color in mask.colors.items():
            own = index_of.get(value)
            # entries that were never set are black
            if value not in void and color != BLACK and color in classes_of and own not in classes_of[color]:
                named = "no class" if own is None else encoding.classes[own]
                meant = encoding.classes[min(classes_of[color])]
                wrong.append(Location(mask.mask, f"{value}, {named}, has the color of {meant}"))
                break
    # colors can be read instead when every mask has some and each is a class's
    readable = all(mask.colors and set(mask.colors.values()) <= classes_of.keys() for mask in masks)
    recipe = encoding.color_recipe() if readable else {}
    advice = "or, if the numbers are right, put the right palette into these masks" if recipe else None
    return found("wrong-palette", wrong, recipe, advice)


def _find_stored_colors(encoding: Encoding, masks: Sequence[SampleStats]) -> list[Finding]:
    """Return the masks that hold colors although numbers are expected."""
    colored = [mask for mask in masks if mask.is_colored]
    locations = [Location(mask.mask) for mask in colored]
    colors = dict.fromkeys(color for mask in colored for color in mask.stored_colors)
    if colors and all(red == green == blue for red, green, blue in colors):
        return found("grey-stored-as-color", locations)
    recipe, advice = encoding.color_recipe(), None
    if recipe and any(mask.values for mask in masks):
        recipe, advice = {}, "the other masks hold numbers: rewrite these like them"
    elif recipe:
        unnamed = [color for color in colors if color not in (encoding.palette or ())]
        listed = ", ".join(str(list(color)) for color in unnamed[:8]) + (" ..." if len(unnamed) > 8 else "")
        advice = f"and name these colors in classes.yaml, as classes or under void_colors: {listed}" if unnamed else ""
    return found("color-masks", locations, recipe, advice)


def find_unknown_colors(palette: Sequence[Color], masks: Sequence[SampleStats]) -> list[Finding]:
    """Return the masks of colors that hold colors without a meaning."""
    wrong, pixels, *_ = count_unknown(masks, lambda value: value < UNKNOWN_COLOR)
    if not wrong:
        return []
    colors = {tuple((value - UNKNOWN_COLOR).to_bytes(3, "big")): number for value, number in pixels.most_common()}
    distance = np.abs(np.array(list(colors))[:, None] - np.array(palette)[None]).max(2).min(1)
    advice = None
    if (distance <= NEAR).mean() > 0.5:
        advice = "most are nearly a class's color: the masks were smoothed or saved with loss; export them again as PNG"
    return found(
        "unknown-colors",
        (Location(mask.mask, f"{Count(sum(unknown.values())):pixel}") for mask, unknown in wrong),
        advice=advice,
        kinds=Count(len(colors)),
        named=some([f"{color} ({Count(number):pixel})" for color, number in colors.items()]),
        listed=str([list(color) for color in list(colors)[:8]]) + (" ..." if len(colors) > 8 else ""),
    )


def find_classes(tallies: Sequence[Tally], classes: Sequence[str], train_split: str) -> list[Finding]:
    """Return the masks without any label, and the classes that are absent from a split."""
    void = [mask for tally in tallies if tally.labelled or tally.unknown for mask in tally.empty]
    findings = found("all-void", map(Location, void))
    for tally in tallies:
        share = tally.void / max(1, tally.void + tally.labelled)
        if tally.empty and not (tally.labelled or tally.unknown):
            findings += found("split-without-labels", map(Location, tally.empty), split=tally.split)
        elif tally.labelled and share > MOSTLY_VOID:
            findings += found("mostly-void", [Location(tally.split)], percent=100 * share, split=tally.split)
    labelled = [tally for tally in tallies if tally.labelled]
    return findings + list(_find_absent(labelled, classes, train_split))


def _find_absent(tallies: Sequence[Tally], classes: Sequence[str], train_split: str) -> Iterator[Finding]:
    def named(indices: list[int]) -> str:
        return f"{Count(len(indices)):class|classes} ({some([classes[index] for index in indices], 8)})"

    def of_classes(indices: list[int]) -> list[Location]:
        return [Location(f"class {index}", classes[index]) for index in indices]

    if not tallies:
        return
    nowhere = np.flatnonzero(np.sum([tally.pixels for tally in tallies], axis=0) == 0).tolist()
    splits = " and ".join(tally.split for tally in tallies)
    yield from found("class-in-no-split", of_classes(nowhere), names=named(nowhere), splits=splits)
    train = next((tally for tally in tallies if tally.split == train_split), None)
    for other in tallies:
        if train is None or other is train:
            continue
        words: dict[str, Any] = {"split": other.split, "train": train.split}
        only = np.flatnonzero((other.pixels > 0) & (train.pixels == 0)).tolist()
        locations = [
            Location(path, f"{classes[index]}, in {Count(other.masks[index]):mask}")
            for index in only
            for path in other.first[index]
        ]
        yield from found("class-not-in-train", locations, names=named(only), **words)
        missing = np.flatnonzero((train.pixels > 0) & (other.pixels == 0)).tolist()
        yield from found("class-not-scored", of_classes(missing), names=named(missing), **words)
