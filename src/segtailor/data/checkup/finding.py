"""One thing that is wrong with a data set: how bad, where, and what mends it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import yaml

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")


class Place(NamedTuple):
    """Where something is wrong: a path (or the name of a class), and what about it."""

    path: str
    detail: str = ""

    def __str__(self) -> str:
        """Return the path, with the detail in brackets."""
        return f"{self.path} ({self.detail})" if self.detail else self.path


class Finding(NamedTuple):
    """What is wrong: ``kind`` in a few words for programs, ``text`` for people.

    ``recipe`` holds the fields of a recipe that mend it, ``advice`` what to do where no field does. An ``error`` stops
    a run or spoils it, a ``warning`` may be meant so, a ``note`` is worth knowing.
    """

    kind: str
    severity: Severity
    text: str
    places: Sequence[Place] = ()
    recipe: Mapping[str, Any] = {}
    advice: str = ""

    def mend(self) -> list[str]:
        """Return what mends it: lines of a recipe, then advice."""
        lines = [f"{key}: {as_yaml(value)}" for key, value in self.recipe.items()]
        return lines + ([self.advice] if self.advice else [])


def as_yaml(value: Any) -> str:
    """Return ``value`` as YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")


def count(number: int, one: str, many: str = "") -> str:
    """Return ``number`` with the noun that fits.

    >>> count(1, "mask"), count(2, "class", "classes")
    ('1 mask', '2 classes')
    """
    return f"{number} {one if number == 1 else many or one + 's'}"
