"""Masks whose colours are the classes, read as if they were numbers: turned grey, palettes, colours, unknown ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from segtailor.data.checkup.examine import COLORED, Examined
from segtailor.data.checkup.finding import Finding, Place, count
from segtailor.data.checkup.rules import Rules, as_color, recipe_of, spans
from segtailor.data.masks import UNKNOWN_COLOR
from segtailor.files import VOID, Color

BLACK: Color = (0, 0, 0)
# Colours that differ by no more than this in any channel come from smoothing or a lossy format.
NEAR = 24


def grey_of(color: Color) -> int:
    """Return the grey that programs make of an RGB colour (ITU-R BT.601); they round differently, by one at most.

    >>> grey_of((128, 64, 128))
    90
    """
    return round(0.299 * color[0] + 0.587 * color[1] + 0.114 * color[2])


def find_grey(rules: Rules, masks: Sequence[Examined]) -> tuple[list[Finding], list[Examined]]:
    """Return the masks whose values are the classes' colours turned grey, and the others."""
    if rules.palette is None:
        return [], list(masks)
    greys = {near: index for index, color in enumerate(rules.palette) for near in _near(grey_of(color))}
    greys.update({grey_of(color): index for index, color in enumerate(rules.palette)})
    grey: list[Examined] = []
    rest: list[Examined] = []
    for mask in masks:
        seen = mask.values.keys() - {0, VOID}
        unknown = sum(pixels for value, pixels in mask.values.items() if value not in rules.declared | {VOID})
        is_grey = seen <= greys.keys() and 2 * unknown > sum(mask.values.values())
        (grey if is_grey else rest).append(mask)
    # one value may be a class's grey by chance
    if not any(len(mask.values.keys() - {0, VOID}) > 1 for mask in grey):
        return [], list(masks)
    recipe = {}
    whole = not rest or all(mask.values.keys() <= {0, VOID} for mask in rest)
    values = _grey_values(rules.palette, grey)
    if whole and values:
        recipe = recipe_of(rules, values, ({0} | rules.void & {VOID}) - set(values))
    advice = "these are not class indices: write the masks anew from the coloured ones"
    if rules.own:
        advice += ", or read those with data.masks: color"
    if recipe:
        advice = "or read the coloured masks, where you still have them, with data.masks: color"
    finding = Finding(
        "colors-read-as-grey",
        "error",
        f"{count(len(grey), 'mask')} whose values are the classes' colours turned grey, not the classes "
        f"({spans(rules.values)})",
        [Place(mask.mask, f"values {spans(mask.values)}") for mask in grey],
        recipe,
        advice,
    )
    return [finding], rest


def _near(grey: int) -> range:
    return range(max(grey - 1, 1), min(grey + 1, 254) + 1)


def _grey_values(palette: Sequence[Color], masks: Sequence[Examined]) -> list[int]:
    """Return the grey of each class as the masks round it; empty when two classes have the same."""
    seen = Counter(value for mask in masks for value in mask.values)
    values = [max((grey_of(color), *_near(grey_of(color))), key=lambda value: seen[value]) for color in palette]
    return values if len(set(values)) == len(values) else []


def find_palettes(rules: Rules, masks: Sequence[Examined]) -> list[Finding]:
    """Return the palette masks in which a value has the colour of another class."""
    if rules.palette is None:
        return []
    classes_of: dict[Color, set[int]] = {}
    for index, color in enumerate(rules.palette):
        classes_of.setdefault(color, set()).add(index)
    index_of = {value: index for index, value in enumerate(rules.values)}
    void = rules.void | ({VOID} - set(rules.values))
    wrong = []
    for mask in masks:
        others = {
            value: color
            for value, color in mask.colors.items()
            if value not in void and color in classes_of and index_of.get(value, -1) not in classes_of[color]
        }
        # entries that were never set are black
        if any(color != BLACK for color in others.values()):
            value, color = next((value, color) for value, color in others.items() if color != BLACK)
            named = rules.classes[index_of[value]] if value in index_of else "no class"
            meant = rules.classes[min(classes_of[color])]
            wrong.append((mask, Place(mask.mask, f"{value}, {named}, has the colour of {meant}")))
    if not wrong:
        return []
    numbered = [mask for mask in masks if mask.values]
    # colours can be read instead when every mask has some and each is a class's
    readable = all(mask.colors and set(mask.colors.values()) <= classes_of.keys() for mask in numbered)
    recipe = as_color(rules) if readable else {}
    advice = "or, if the numbers are right, put the right palette into these masks"
    if not recipe:
        advice = "numbers and colours contradict each other: find out which are right, and write these masks anew"
    return [
        Finding(
            "wrong-palette",
            "error",
            f"{count(len(wrong), 'mask')} with a palette in which values have the colours of other classes",
            [place for _, place in wrong],
            recipe,
            advice,
        )
    ]


def find_stored_colors(rules: Rules, masks: Sequence[Examined]) -> list[Finding]:
    """Return the masks that hold colours although numbers are expected."""
    colored = [mask for mask in masks if mask.stored_colors or COLORED in mask.mask_problem]
    if not colored:
        return []
    found = {color for mask in colored for color in mask.stored_colors}
    if found and all(red == green == blue for red, green, blue in found):
        text = f"{count(len(colored), 'mask')} with three equal channels instead of one number a pixel"
        advice = "write them anew with one channel"
        return [Finding("grey-stored-as-color", "error", text, [Place(mask.mask) for mask in colored], {}, advice)]
    declared = set(rules.palette or ())
    unnamed = [
        color for color in dict.fromkeys(c for mask in colored for c in mask.stored_colors) if color not in declared
    ]
    advice = ""
    if unnamed:
        listed = ", ".join(str(list(color)) for color in unnamed[:8]) + (" ..." if len(unnamed) > 8 else "")
        advice = f"and name these colours in classes.yaml, as classes or under void_colors: {listed}"
    recipe = as_color(rules)
    if recipe and any(mask.values for mask in masks):
        recipe, advice = {}, "the other masks hold numbers: write these anew as they are"
    elif not recipe:
        advice = "write them anew with one class index a pixel"
    text = f"{count(len(colored), 'mask')} of colours, though numbers are expected"
    return [Finding("color-masks", "error", text, [Place(mask.mask) for mask in colored], recipe, advice)]


def find_unknown_colors(palette: Sequence[Color], masks: Sequence[Examined]) -> list[Finding]:
    """Return the masks of colours that hold colours without a meaning."""
    pixels: Counter[int] = Counter()
    wrong = []
    for mask in masks:
        unknown = {value: number for value, number in mask.values.items() if value >= UNKNOWN_COLOR}
        pixels.update(unknown)
        if unknown:
            wrong.append(Place(mask.mask, count(sum(unknown.values()), "pixel")))
    if not wrong:
        return []
    colors = [tuple((value - UNKNOWN_COLOR).to_bytes(3, "big")) for value, _ in pixels.most_common()]
    told = [
        f"{color} ({count(pixels[value], 'pixel')})"
        for color, (value, _) in zip(colors, pixels.most_common(3), strict=False)
    ]
    more = f" and {len(colors) - 3} more" if len(colors) > 3 else ""
    distance = np.abs(np.array(colors)[:, None] - np.array(palette)[None]).max(2).min(1)
    advice = "name them in classes.yaml, as classes or as void_colors: "
    advice += str([list(color) for color in colors[:8]]) + (" ..." if len(colors) > 8 else "")
    if (distance <= NEAR).mean() > 0.5:
        advice = "most are nearly a class's colour: the masks were smoothed or saved with loss; export them anew as PNG"
    text = f"{count(len(wrong), 'mask')} with {count(len(colors), 'colour')} that no class has: {', '.join(told)}{more}"
    return [Finding("unknown-colors", "error", text, wrong, {}, advice)]
