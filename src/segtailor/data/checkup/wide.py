"""Masks of more than 8 bits."""

from __future__ import annotations

from collections.abc import Sequence

from segtailor.data.checkup.examine import Examined
from segtailor.data.checkup.finding import Finding, Place, count
from segtailor.data.checkup.rules import Rules, spans
from segtailor.files import VOID

WIDE_MODES = ("I", "I;16", "I;16B", "I;16L")
# How a class index becomes a larger number: scaled to 16 bits, in the high byte, with the number of an instance.
ORIGINS = {257: "scaled from 8 to 16 bits", 256: "in the high byte", 1000: "class * 1000 + instance"}


def find_wide(rules: Rules, masks: Sequence[Examined]) -> tuple[list[Finding], list[Examined]]:
    """Return what is wrong with masks of 16 or 32 bits, and the masks whose values fit into a byte."""
    findings: list[Finding] = []
    narrow: list[Examined] = []
    large: list[Examined] = []
    for mask in masks:
        fits = min(mask.values) >= 0 and max(mask.values) <= VOID
        (narrow if fits or not rules.stored else large).append(mask)
    if large:
        guess = _origin(rules, large)
        findings.append(
            Finding(
                "16-bit-values",
                "error",
                f"{count(len(large), 'mask')} with values that no byte holds{f': {guess[0]}' if guess else ''}",
                [Place(mask.mask, f"values up to {max(mask.values)}") for mask in large],
                {},
                guess[1] if guess else "write them anew with class indices in 8 bits",
            )
        )
    stored = [mask for mask in narrow if mask.mode in WIDE_MODES]
    if stored:
        findings.append(
            Finding(
                "16-bit-mask",
                "warning",
                f"{count(len(stored), 'mask')} stored with more than 8 bits a pixel; all values fit into a byte and "
                "are read",
                [Place(mask.mask, f"values {spans(mask.values)}") for mask in stored],
                {},
                "write them anew with 8 bits: other tools clip or scale such masks",
            )
        )
    return findings, narrow


def _origin(rules: Rules, masks: Sequence[Examined]) -> tuple[str, str] | None:
    known = rules.declared | {0, VOID}
    for factor, text in ORIGINS.items():
        exact = factor != 1000
        values = [value for mask in masks for value in mask.values]
        if all(value // factor in known and (not exact or value % factor == 0) for value in values):
            return text, f"write them anew in 8 bits, divided by {factor}"
    return None
