"""What a check found, as text for the terminal and as JSON for programs."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segtailor.config import DataConfig
from segtailor.data.checkup.classes import Tally
from segtailor.data.checkup.finding import SEVERITIES, Finding, Place, Severity, count
from segtailor.errors import SegtailorError

REPORT, TEXT, HISTOGRAM = "report.json", "report.txt", "classes.png"
FIRST = 3
LONG = 160
INDENT = " " * 9


@dataclass(frozen=True)
class CheckReport:
    """What ``segtailor data check`` found, and the ``folder`` in which it is written down."""

    config: DataConfig
    name: str
    classes: tuple[str, ...]
    findings: list[Finding]
    tallies: list[Tally]
    unreadable: list[Place]
    samples: int
    seconds: float
    folder: Path

    def number(self, severity: Severity) -> int:
        """Return how many findings have ``severity``."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def errors(self) -> int:
        """The number of errors."""
        return self.number("error")

    def text(self) -> str:
        """Return the report for a terminal: each finding with its first files and the lines that mend it."""
        splits = ", ".join(f"{found.split} {found.samples}" for found in self.tallies)
        numbers = ", ".join(count(self.number(severity), severity) for severity in SEVERITIES)
        lines = [f"{self.name}: {count(self.samples, 'sample')} ({splits}) checked in {self.seconds:.1f} s: {numbers}"]
        for finding in self.findings:
            lines += ["", *format_finding(finding)]
        if self.unreadable:
            lines += ["", f"{count(len(self.unreadable), 'file')} cannot be read: all are listed in {REPORT}"]
        lines += ["", f"report: {self.folder / REPORT}   classes: {self.folder / HISTOGRAM}"]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the whole report, every file included."""
        return {
            "data": self.config.model_dump(mode="json", exclude_unset=True),
            "name": self.name,
            "samples": self.samples,
            "seconds": round(self.seconds, 2),
            "errors": self.number("error"),
            "warnings": self.number("warning"),
            "notes": self.number("note"),
            "findings": [_finding_json(finding) for finding in self.findings],
            "unreadable": {"count": len(self.unreadable), "files": _places_json(self.unreadable)},
            "classes": list(self.classes),
            "splits": {found.split: _tally_json(found, self.classes) for found in self.tallies},
        }


def format_finding(finding: Finding) -> list[str]:
    """Return the lines that tell ``finding``: what, how many, the first three places, what mends it."""
    lines = [f"{finding.severity:<8} {finding.text}"]
    for place in finding.places[:FIRST]:
        lines.append(INDENT + textwrap.shorten(str(place), LONG, placeholder=" ..."))
    if len(finding.places) > FIRST:
        lines.append(f"{INDENT}and {len(finding.places) - FIRST} more")
    return lines + [
        f"{INDENT}{'mend:' if not number else '     '} {line}" for number, line in enumerate(finding.mend())
    ]


def write_report(report: CheckReport) -> None:
    """Write report.json and report.txt; raises ``SegtailorError`` when the folder cannot be written."""
    try:
        content = json.dumps(report.to_json(), indent=1, ensure_ascii=False)
        (report.folder / REPORT).write_text(content + "\n", encoding="utf-8")
        (report.folder / TEXT).write_text(report.text() + "\n", encoding="utf-8")
    except OSError as error:
        raise SegtailorError(f"cannot write the report into {report.folder}: {error.strerror}") from error


def _finding_json(finding: Finding) -> dict[str, Any]:
    return {
        "kind": finding.kind,
        "severity": finding.severity,
        "text": finding.text,
        "count": len(finding.places),
        "files": _places_json(finding.places),
        "recipe": dict(finding.recipe),
        "advice": finding.advice,
    }


def _places_json(places: Sequence[Place]) -> list[dict[str, str]]:
    return [{"path": place.path, **({"detail": place.detail} if place.detail else {})} for place in places]


def _tally_json(found: Tally, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "samples": found.samples,
        "void_pixels": found.void,
        "unknown_pixels": found.unknown,
        "classes": {
            name: {"pixels": int(found.pixels[index]), "masks": int(found.masks[index])}
            for index, name in enumerate(classes)
        },
    }
