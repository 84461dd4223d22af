"""Labels that are one too high or one too low, and masks whose zero is not reduced.

For all masks together the values alone tell. For a few among many the values are a suspicion, which is confirmed when
the amounts of the classes fit those of the other masks much better after the shift.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from segtailor.data.checkup.examine import Examined
from segtailor.data.checkup.finding import Finding, Place, Severity, count
from segtailor.data.checkup.rules import Rules, recipe_of, spans
from segtailor.files import VOID

Kind = Literal["labels-one-too-high", "labels-one-too-low", "zero-label-not-reduced"]
# The value after the last class is that class, one too high, when so many masks have it: not a few stray pixels.
FEW_MASKS, FEW_SHARE = 3, 0.25
# Masks without any doubt that are needed to say what is common.
FEWEST_GOOD = 5
# By so much (in nats a pixel) the shifted labels must be more likely.
MARGIN = 0.5
SMOOTHING = 1e-4
# The share that 255 is expected to have in masks in which it is not declared.
STRAY_VOID = 0.02
# What 255 takes at least when it is the first class, less one: a border takes less where there are few classes.
LEAST_CLASS, CERTAIN_CLASS = 0.02, 0.15


class Meaning(NamedTuple):
    """The mask value of each class, and the void values."""

    values: tuple[int, ...]
    void: frozenset[int]


class Shifted(NamedTuple):
    """What was found, the masks that it explains (by ``id``), and the recipe that reduces the zero label, if it may."""

    findings: list[Finding]
    explained: set[int]
    zero_recipe: Mapping[str, Any]


def find_shift(rules: Rules, masks: Sequence[Examined]) -> Shifted:
    """Return whether all ``masks``, or some of them, have shifted labels; their values fit into a byte."""
    seen = {value for mask in masks for value in mask.values} - {VOID}
    unknown = seen - rules.declared
    zero_recipe: dict[str, Any] = {}
    if unknown:
        high = shifted_meaning(rules, seen, 1)
        if high is not None and min(rules.values) not in seen:
            return _whole(rules, masks, "labels-one-too-high", high)
        low = shifted_meaning(rules, seen, -1)
        if low is not None and min(low.values) in seen and max(rules.values) not in seen:
            return _whole(rules, masks, "labels-one-too-low", low)
        zero = shifted_meaning(rules, seen - {0}, 1)
        if zero is not None and 0 in seen and rules.values[0] == 0:
            zero = Meaning(zero.values, zero.void | {0})
            zero_recipe = recipe_of(rules, *zero)
            holding = sum(1 for mask in masks if mask.values.keys() & unknown)
            if holding >= min(FEW_MASKS, math.ceil(FEW_SHARE * len(masks))):
                return _whole(rules, masks, "zero-label-not-reduced", zero, zero_recipe)
    elif (whole := _reduced_twice(rules, masks, seen)) is not None:
        return whole
    return _partly(rules, masks, zero_recipe)


def shifted_meaning(rules: Rules, seen: Iterable[int], by: int) -> Meaning | None:
    """Return the rules with each class's value ``by`` higher, void too or not, if they explain all ``seen`` values."""
    values = tuple(value + by for value in rules.values)
    if min(values) < 0 or max(values) > VOID:
        return None
    moved = frozenset(value + by for value in rules.void - {VOID} if value + by >= 0) | (rules.void & {VOID})
    for void in (moved, rules.void):
        if set(seen) <= {*values, *void}:
            return Meaning(values, void - set(values))
    return None


def _reduced_twice(rules: Rules, masks: Sequence[Examined], seen: set[int]) -> Shifted | None:
    """Return the finding for masks in which the last value never occurs, but all others one lower do."""
    size = sum(sum(mask.values.values()) for mask in masks)
    top = _top(rules)
    if not size or len(rules.values) < 2 or top in seen or not {value + 1 for value in seen} <= rules.declared:
        return None
    share = sum(mask.values.get(VOID, 0) for mask in masks) / size
    severity: Severity
    if rules.values == tuple(range(len(rules.values))) and VOID not in rules.values:
        # 0 - 1 is 255 in a byte
        least = max(LEAST_CLASS, min(CERTAIN_CLASS, 0.5 / len(rules.values)))
        if share < (CERTAIN_CLASS if rules.expects_void else least):
            return None
        severity = "warning" if rules.expects_void else "error"
        low = Meaning((VOID, *rules.values[:-1]), frozenset(value - 1 for value in rules.void - {VOID} if value))
        return _whole(rules, masks, "labels-one-too-low", low, severity=severity)
    if rules.values[0] == 1 and 0 in rules.void and 0 in seen:
        zeros = sum(mask.values.get(0, 0) for mask in masks) / size
        undeclared = share > 0 and VOID not in rules.void
        if undeclared or zeros >= CERTAIN_CLASS:
            low = Meaning(tuple(value - 1 for value in rules.values), rules.void - {0})
            return _whole(rules, masks, "labels-one-too-low", low, severity="error" if undeclared else "warning")
    return None


def _top(rules: Rules) -> int:
    """Return the largest declared value but 255."""
    return max(rules.declared - {VOID}, default=0)


def _whole(
    rules: Rules,
    masks: Sequence[Examined],
    kind: Kind,
    meaning: Meaning,
    recipe: Mapping[str, Any] | None = None,
    severity: Severity = "error",
) -> Shifted:
    seen = spans({value for mask in masks for value in mask.values})
    texts: dict[Kind, str] = {
        "labels-one-too-high": "the labels are one too high",
        "labels-one-too-low": f"the labels are one too low: {_top(rules)} never occurs",
        "zero-label-not-reduced": "0 seems to mean unlabelled and 1 the first class",
    }
    recipe = recipe_of(rules, *meaning) if recipe is None else recipe
    advice = "" if recipe else f"write the masks anew: their classes have {spans(meaning.values)}"
    if kind == "zero-label-not-reduced":
        stray = {value for mask in masks for value in mask.values} - rules.declared - {VOID}
        advice = (f"{advice}; " if advice else "") + (
            f"but if 0 is a class of its own, name it first in the class file, and if {spans(stray)} is stray, "
            f"data.void: {sorted(rules.void | stray)}"
        )
    text = f"{texts[kind]}: {count(len(masks), 'mask')} hold {seen}, the classes have {spans(rules.values)}"
    finding = Finding(kind, severity, text, [Place(mask.mask) for mask in masks], recipe, advice)
    return Shifted([finding], {id(mask) for mask in masks}, {})


def _partly(rules: Rules, masks: Sequence[Examined], zero_recipe: Mapping[str, Any]) -> Shifted:
    usual = usual_shares(rules, masks)
    groups: defaultdict[Kind, list[Examined]] = defaultdict(list)
    for mask in masks:
        kind = _suspicion(rules, mask)
        if kind and usual and likelier(mask.values, usual, -1 if kind == "labels-one-too-low" else 1):
            groups[kind].append(mask)
    texts: dict[Kind, str] = {
        "labels-one-too-high": "labels one too high, by their values and by what is common in the other masks",
        "labels-one-too-low": "labels one too low and 255 for the first class, by what is common in the others",
        "zero-label-not-reduced": "0 for unlabelled and 1 for the first class, by what is common in the other masks",
    }
    findings = [
        Finding(
            kind,
            "error",
            f"{count(len(found), 'mask')} with {texts[kind]}",
            [Place(mask.mask, f"values {spans(mask.values)}") for mask in found],
            {},
            f"write {'it' if len(found) == 1 else 'them'} anew as the others are, whose classes have "
            f"{spans(rules.values)}",
        )
        for kind, found in sorted(groups.items())
    ]
    return Shifted(findings, {id(mask) for found in groups.values() for mask in found}, zero_recipe)


def _suspicion(rules: Rules, mask: Examined) -> Kind | None:
    seen = mask.values.keys() - {VOID}
    unknown = seen - rules.declared
    if unknown and unknown <= {max(rules.values) + 1, _top(rules) + 1}:
        return "zero-label-not-reduced" if 0 in seen and rules.values[0] == 0 else "labels-one-too-high"
    wraps = rules.values[0] == 0 and VOID in mask.values and not rules.expects_void
    if seen and not unknown and wraps and _top(rules) not in seen:
        return "labels-one-too-low"
    return None


def usual_shares(rules: Rules, masks: Sequence[Examined]) -> dict[int, float]:
    """Return the mean share of each declared value in the masks that hold no other; empty when these are few."""
    good = [mask for mask in masks if mask.values.keys() <= rules.declared]
    if len(good) < FEWEST_GOOD:
        return {}
    shares = dict.fromkeys(rules.declared, 0.0)
    for mask in good:
        size = sum(mask.values.values())
        for value, pixels in mask.values.items():
            shares[value] += pixels / size / len(good)
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
