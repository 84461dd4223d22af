"""Findings and the report of a check: text, JSON, and a picture of the share of each class in every split.

`rules.yaml` is the table of all kinds of findings.
"""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from PIL import Image, ImageDraw, ImageFont

from segtailor.config import DataConfig
from segtailor.data.base import Count
from segtailor.data.check.scan import Tally
from segtailor.errors import SegtailorError
from segtailor.files import Color

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


REPORT, TEXT, HISTOGRAM = "report.json", "report.txt", "classes.png"


@dataclass(frozen=True)
class CheckReport:
    """The findings of ``segtailor data check``, and the ``folder`` of the written report."""

    config: DataConfig
    name: str
    classes: tuple[str, ...]
    palette: tuple[Color, ...]
    findings: list[Finding]
    tallies: list[Tally]
    unreadable: list[Location]
    samples: int
    seconds: float
    folder: Path

    def number(self, severity: Severity) -> Count:
        """Return how many findings have ``severity``."""
        return Count(sum(finding.severity == severity for finding in self.findings))

    @property
    def errors(self) -> int:
        """The number of errors."""
        return self.number("error")

    def text(self) -> str:
        """Return the report for a terminal: each finding with its first files and the lines that fix it."""
        splits = ", ".join(f"{tally.split} {tally.samples}" for tally in self.tallies)
        numbers = ", ".join(f"{self.number(severity):{severity}}" for severity in SEVERITIES)
        lines = [f"{self.name}: {Count(self.samples):sample} ({splits}) checked in {self.seconds:.1f} s: {numbers}"]
        for finding in self.findings:
            lines += ["", *finding.lines()]
        if self.unreadable:
            lines += ["", f"{Count(len(self.unreadable)):file} cannot be read: all are listed in {REPORT}"]
        lines += ["", f"report: {self.folder / REPORT}   classes: {self.folder / HISTOGRAM}"]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Return the whole report, every file included."""

        def files(locations: Sequence[Location]) -> dict[str, Any]:
            paths = [{"path": at.path, **({"detail": at.detail} if at.detail else {})} for at in locations]
            return {"count": len(paths), "files": paths}

        return {
            "data": self.config.model_dump(mode="json", exclude_unset=True),
            "name": self.name,
            "samples": self.samples,
            "seconds": round(self.seconds, 2),
            **{f"{severity}s": int(self.number(severity)) for severity in SEVERITIES},
            "findings": [
                {key: value for key, value in finding._asdict().items() if key != "locations"}
                | files(finding.locations)
                for finding in self.findings
            ],
            "unreadable": files(self.unreadable),
            "classes": list(self.classes),
            "splits": {
                tally.split: {
                    "samples": tally.samples,
                    "void_pixels": tally.void,
                    "unknown_pixels": tally.unknown,
                    "classes": {
                        name: {"pixels": int(pixels), "masks": int(masks)}
                        for name, pixels, masks in zip(self.classes, tally.pixels, tally.masks, strict=True)
                    },
                }
                for tally in self.tallies
            },
        }

    def write(self) -> None:
        """Write classes.png, report.json and report.txt; raises ``SegtailorError`` where they cannot be written."""
        try:
            draw_histogram(self.folder / HISTOGRAM, self.name, self.classes, self.palette, self.tallies)
            content = json.dumps(self.to_json(), indent=1, ensure_ascii=False)
            (self.folder / REPORT).write_text(content + "\n", encoding="utf-8")
            (self.folder / TEXT).write_text(self.text() + "\n", encoding="utf-8")
        except OSError as error:
            raise SegtailorError(f"cannot write the report into {self.folder}: {error.strerror}") from error


# The smallest share that the logarithmic scale shows.
LEAST = 1e-5
BAR, GAP, MARGIN, SWATCH = 14, 10, 24, 14
AXIS_WIDTH, NUMBERS_WIDTH = 560, 150
# Longer names of classes are cut.
MOST_NAME = 40
INK, FAINT, GRID, ABSENT = (30, 34, 40), (105, 112, 122), (226, 229, 233), (176, 42, 48)
# Distinct with every kind of color vision (Okabe and Ito).
SPLITS: tuple[Color, ...] = ((0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167))


def draw_histogram(
    path: Path, name: str, classes: Sequence[str], palette: Sequence[Color], tallies: Sequence[Tally]
) -> None:
    """Write the picture to ``path`` (PNG): for each class one bar a split, the share of the split's labelled pixels.

    The scale is logarithmic, so that rare classes show. Each bar is followed by the share and the number of masks.
    """
    small, body, head = (ImageFont.load_default(size) for size in (11, 13, 18))
    names = [text if len(text) <= MOST_NAME else text[: MOST_NAME - 1] + "…" for text in classes]
    left = MARGIN + SWATCH + 8 + max((math.ceil(body.getlength(text)) for text in names), default=0) + 12
    top = 102
    block = BAR * max(1, len(tallies)) + GAP
    width = left + AXIS_WIDTH + NUMBERS_WIDTH + MARGIN
    bottom = top + block * len(names)
    picture = Image.new("RGB", (width, bottom + 44), (255, 255, 255))
    draw = ImageDraw.Draw(picture)
    draw.text((MARGIN, 16), f"{name}: classes", INK, head)
    place = MARGIN
    for tally, color in zip(tallies, cycle(SPLITS), strict=False):
        whole = tally.labelled + tally.void + tally.unknown
        void = f", {100 * tally.void / whole:.1f} % void" if whole else ""
        text = f"{tally.split}: {Count(tally.samples):image}{void}"
        draw.rectangle([place, 52, place + SWATCH, 52 + SWATCH], color)
        draw.text((place + SWATCH + 6, 52 + SWATCH // 2), text, INK, body, anchor="lm")
        place += SWATCH + 6 + math.ceil(body.getlength(text)) + 28
    for power in range(round(math.log10(LEAST)), 1):
        at = left + _length(10.0**power)
        draw.line([at, top - 4, at, bottom], GRID)
        draw.text((at, top - 8), f"{100 * 10.0**power:g} %", FAINT, small, anchor="ms")
    draw.text((left, bottom + 14), "share of the split's labelled pixels, logarithmic", FAINT, body)
    for row, text in enumerate(names):
        upper = top + row * block + GAP // 2
        middle = upper + (block - GAP) // 2
        swatch = [MARGIN, middle - SWATCH // 2, MARGIN + SWATCH, middle + SWATCH // 2]
        draw.rectangle(swatch, tuple(palette[row]), outline=FAINT)
        draw.text((left - 12, middle), text, INK, body, anchor="rm")
        for tally, color in zip(tallies, cycle(SPLITS), strict=False):
            _draw_bar(draw, left, upper, tally, row, color, small)
            upper += BAR
    picture.save(path, optimize=True)


def _draw_bar(
    draw: ImageDraw.ImageDraw, left: int, upper: int, tally: Tally, index: int, color: Color, font: Any
) -> None:
    share = int(tally.pixels[index]) / tally.labelled if tally.labelled else 0.0
    middle = upper + BAR // 2
    if not share:
        text = f"not in {tally.split}" if tally.labelled or tally.void else f"no mask of {tally.split} was counted"
        draw.text((left + 6, middle), text, ABSENT, font, anchor="lm")
        return
    end = left + max(2, _length(share))
    draw.rectangle([left, upper + 1, end, upper + BAR - 2], color)
    percent = f"{100 * share:.1f}" if share >= 0.01 else f"{100 * share:.2g}"
    label = f"{percent} %  in {Count(tally.masks[index]):mask}"
    place = (end + 6, middle)
    draw.rectangle(draw.textbbox(place, label, font, anchor="lm"), (255, 255, 255))  # over the grid
    draw.text(place, label, FAINT, font, anchor="lm")


def _length(share: float) -> int:
    """Return the pixels from the start of the axis to ``share``."""
    return round(AXIS_WIDTH * (1 - math.log10(max(share, LEAST)) / math.log10(LEAST)))
