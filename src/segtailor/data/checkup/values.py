"""What the numbers in masks say: outside the classes, one too high or low, zero not reduced, 0 and 255, 255 undeclared.

Files are sorted into groups, each of which is one finding; what explains all masks is mended by a line of the recipe,
what is wrong with a few of them is not.
"""

from __future__ import annotations

from collections.abc import Sequence

from segtailor.data.checkup.colors import find_grey
from segtailor.data.checkup.examine import Examined
from segtailor.data.checkup.finding import Finding, Place, count
from segtailor.data.checkup.rules import Rules, recipe_of, spans
from segtailor.data.checkup.shift import Shifted, find_shift
from segtailor.data.checkup.wide import find_wide
from segtailor.files import VOID

# In masks that have other values, too, this share of 255 is more than borders and gaps take.
MUCH_VOID = 0.2
# A share of 255 that is no border but a class.
MOSTLY = 0.5
# More unknown values than this are no forgotten classes.
MANY_VALUES = 10


def find_values(rules: Rules, masks: Sequence[Examined]) -> list[Finding]:
    """Return what is wrong with the values of ``masks``, all of which go by ``rules``."""
    found, rest = find_wide(rules, [mask for mask in masks if mask.values])
    groups = [found]
    for find in (_find_binary, find_grey):
        found, rest = find(rules, rest)
        groups.append(found)
    shifted = find_shift(rules, rest)
    groups.append(shifted.findings)
    rest = [mask for mask in rest if id(mask) not in shifted.explained]
    groups += [_find_unknown(rules, rest, shifted), _find_undeclared(rules, rest)]
    return [finding for group in groups for finding in group]


def places(masks: Sequence[Examined], detail: bool = True) -> list[Place]:
    """Return where ``masks`` lie, and the values they hold."""
    return [Place(mask.mask, f"values {spans(mask.values)}" if detail else "") for mask in masks]


def _find_binary(rules: Rules, masks: Sequence[Examined]) -> tuple[list[Finding], list[Examined]]:
    if VOID in rules.values or (len(rules.classes) < 2 and VOID in rules.void):
        return [], list(masks)
    only = [mask for mask in masks if mask.values.keys() == {0, VOID}]
    elsewhere = any(VOID in mask.values and mask.values.keys() != {0, VOID} for mask in masks)
    if rules.expects_void and elsewhere:
        only = [mask for mask in only if mask.values[VOID] > MUCH_VOID * sum(mask.values.values())]
    if not only:
        return [], list(masks)
    whole = all(mask.values.keys() <= {0, VOID} for mask in masks)
    recipe, advice = {}, "write them anew with class indices: 255 is void, so the object in them is ignored"
    if whole and len(rules.classes) == 2:
        recipe, advice = recipe_of(rules, (0, VOID), rules.void), "" if rules.settable else advice
    elif whole and len(rules.classes) == 1:
        recipe, advice = recipe_of(rules, (VOID,), {0}), "" if rules.settable else advice
    elif whole:
        advice = "such masks tell one class from the rest: give each class its own masks and set data.masks: binary"
    finding = Finding(
        "binary-mask",
        "error",
        f"{count(len(only), 'mask')} of 0 and 255 only, though 255 is no class: the object is read as void",
        places(only, detail=False),
        recipe,
        advice,
    )
    taken = {id(mask) for mask in only}
    return [finding], [mask for mask in masks if id(mask) not in taken]


def _find_unknown(rules: Rules, masks: Sequence[Examined], shifted: Shifted) -> list[Finding]:
    known = rules.declared | {VOID}
    pixels: dict[int, int] = {}
    files: dict[int, int] = {}
    wrong = []
    for mask in masks:
        unknown = [value for value in mask.values if value not in known]
        for value in unknown:
            pixels[value] = pixels.get(value, 0) + mask.values[value]
            files[value] = files.get(value, 0) + 1
        if unknown:
            wrong.append(Place(mask.mask, f"values {spans(unknown)}"))
    if not wrong:
        return []
    common = sorted(pixels, key=lambda value: -pixels[value])
    told = [
        f"{rules.meaning.describe(value)} ({count(pixels[value], 'pixel')} in {count(files[value], 'file')})"
        for value in common[:3]
    ]
    more = f" and {len(common) - 3} more" if len(common) > 3 else ""
    text = (
        f"{count(len(wrong), 'mask')} with {count(len(common), 'value')} outside the classes: {', '.join(told)}{more}; "
        f"the classes have {spans(rules.values)}"
    )
    if len(common) > MANY_VALUES:
        advice = (
            "so many are hardly forgotten classes: are these masks of instances, of colours turned grey, or photos?"
        )
        return [Finding("values-outside-classes", "error", text, wrong, {}, advice)]
    recipe = recipe_of(rules, rules.values, rules.void | set(common))
    where = "in classes.yaml" if rules.own else "in a classes.yaml of your own (data.name: folder)"
    advice = f"that ignores them; if they are classes, name them {where}"
    if not recipe:
        advice = "mend these masks"
    if shifted.zero_recipe and recipe:
        line = ", ".join(f"{key}: {str(value).lower()}" for key, value in shifted.zero_recipe.items())
        advice += f"; if 0 means unlabelled and 1 is the first class, {line} instead"
    return [Finding("values-outside-classes", "error", text, wrong, recipe, advice)]


def _find_undeclared(rules: Rules, masks: Sequence[Examined]) -> list[Finding]:
    if rules.expects_void:
        return []
    holding = [mask for mask in masks if VOID in mask.values]
    pixels = sum(mask.values[VOID] for mask in holding)
    whole = sum(sum(mask.values.values()) for mask in masks)
    if not pixels:
        return []
    share = pixels / whole
    most = "; so much is hardly void: is it a class?" if share > MOSTLY else ""
    return [
        Finding(
            "255-not-declared",
            "error" if share > MOSTLY else "warning",
            f"255 is ignored, but not declared void: in {count(len(holding), 'mask')}, {100 * share:.2g} % of all "
            f"pixels{most}",
            [Place(mask.mask, count(mask.values[VOID], "pixel")) for mask in holding],
            recipe_of(rules, rules.values, rules.void | {VOID}),
            "" if rules.settable else "nothing, if 255 is meant to be ignored",
        )
    ]
