"""Findings: what is wrong, where, and what fixes it; `rules.yaml` is the table of all kinds."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from segtailor.data.base import Count

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
# How many locations of a finding are printed, and the length to which each is cut.
FIRST, LONG, INDENT = 3, 160, " " * 9


def _read_rules() -> dict[str, tuple[Severity, str, str]]:
    rules: dict[str, tuple[Severity, str, str]] = {}
    content = yaml.safe_load(Path(__file__).with_name("rules.yaml").read_text(encoding="utf-8"))
    for severity in SEVERITIES:
        for kind, texts in content[severity].items():
            text, fix = (texts, "") if isinstance(texts, str) else texts
            for role in ("image", "mask"):
                rules[kind.replace("ROLE", role)] = severity, text.replace("ROLE", role), fix
    return rules


RULES = _read_rules()
"""Severity, text and fix of each kind of finding."""


class Location(NamedTuple):
    """Where something is wrong: a path (or the name of a class), and what about it."""

    path: str
    detail: str = ""

    def __str__(self) -> str:
        """Return the path, with the detail in brackets."""
        return f"{self.path} ({self.detail})" if self.detail else self.path


class Finding(NamedTuple):
    """What is wrong, and where: ``kind`` is for programs, ``text`` for people.

    ``recipe`` holds the fields of a recipe that fix it, ``advice`` what else to do.
    """

    kind: str
    severity: Severity
    text: str
    locations: Sequence[Location]
    recipe: Mapping[str, Any]
    advice: str

    def fix(self) -> list[str]:
        """Return what fixes it: lines of a recipe, then advice."""
        lines = [f"{key}: {as_yaml(value)}" for key, value in self.recipe.items()]
        return lines + ([self.advice] if self.advice else [])

    def lines(self) -> list[str]:
        """Return the finding for a terminal: its text, the first three locations, and what fixes it."""
        lines = [f"{self.severity:<8} {self.text}"]
        lines += [
            INDENT + textwrap.shorten(str(location), LONG, placeholder=" ...") for location in self.locations[:FIRST]
        ]
        if len(self.locations) > FIRST:
            lines.append(f"{INDENT}and {len(self.locations) - FIRST} more")
        return lines + [f"{INDENT}{'     ' if number else 'fix: '}{line}" for number, line in enumerate(self.fix())]


def found(
    rule: str,
    locations: Iterable[Location],
    recipe: Mapping[str, Any] | None = None,
    advice: str | None = None,
    severity: Severity | None = None,
    **words: Any,
) -> list[Finding]:
    """Return the finding of :data:`RULES` in ``locations``, with ``words`` in its text; none without a location.

    ``advice`` and ``severity`` replace those of the rule.
    """
    locations = list(locations)
    if not locations:
        return []
    usual, text, usual_advice = RULES[rule]
    advice = usual_advice.format(**words) if advice is None else advice
    text = text.format(n=Count(len(locations)), **words)
    return [Finding(rule.partition("/")[0], severity or usual, text, locations, recipe or {}, advice)]


def as_yaml(value: Any) -> str:
    """Return ``value`` as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
