"""Findings: what is wrong, where, and what fixes it; one table of all kinds."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import yaml

from segtailor.data.image_io import IMAGE_SUFFIXES

Severity = Literal["error", "warning", "note"]
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
# Of a finding so many locations are printed, cut to this length.
FIRST, LONG, INDENT = 3, 160, " " * 9


class Count(int):
    """A number that is formatted with the noun that fits.

    >>> f"{Count(1):mask}, {Count(2):mask}, {Count(2):class|classes}"
    '1 mask, 2 masks, 2 classes'
    """

    def __format__(self, spec: str) -> str:
        """Return the number and ``spec``: a noun, or its forms for one and for several."""
        one, _, many = spec.partition("|")
        return f"{int(self)} {one if self == 1 else many or one + 's'}"


REWRITE = "rewrite them with class indices"
# Text and advice by kind: ``n`` in a text is the number of locations; what follows a slash is a variant of the kind.
# An error stops a run or spoils it.
ERRORS = {
    "split-not-opened": ("the split {split} cannot be checked: {problem}", ""),
    "limit": ("{field} asks for {asked} images, but there are {size}", ""),
    "image-without-mask": (
        "{n:image without a mask|images without a mask}",
        "add the masks, or move these images to a folder for data.unlabelled",
    ),
    "mask-without-image": ("{n:mask without an image|masks without an image}", "add the images, or remove these masks"),
    "several-files-of-one-name": (
        "{n:file that shares its|files that share their} name with another",
        "keep one of each",
    ),
    "mask-of-no-class": (
        "{n:mask whose name holds|masks whose names hold} no class",
        "rename them, or name the class in classes.yaml",
    ),
    "missing-image": (
        "{n:image that is|images that are} listed but not there",
        "add them, or take them out of the list",
    ),
    "missing-mask": ("{n:mask that is|masks that are} listed but not there", "add them, or take them out of the list"),
    "size-mismatch": (
        "{n:mask} not of the image's size",
        "export them at the images' size, or check that they belong to these images",
    ),
    "duplicate-across-splits": (
        "{n:image} in two splits, also where saved again in another format, quality or size",
        "remove them from one split: the score is of images that the student learned from ({train})",
    ),
    "16-bit-values": ("{n:mask} with values that no byte holds{origin}", f"{REWRITE} in 8 bits"),
    "binary-mask": (
        "{n:mask} of 0 and 255 only, though 255 is no class: the object is read as void",
        f"{REWRITE}: 255 is void, so the object in them is ignored",
    ),
    "values-outside-classes": (
        "{n:mask} with {kinds:value} outside the classes: {named}; the classes have {expected}",
        "so many are hardly forgotten classes: are these masks of instances, of colors turned grey, or photos?",
    ),
    "labels-one-too-high": ("the labels are one too high: {n:mask} hold {seen}, the classes have {expected}", ""),
    "labels-one-too-low": (
        "the labels are one too low: {top} never occurs: {n:mask} hold {seen}, the classes have {expected}",
        "",
    ),
    "zero-label-not-reduced": (
        "0 seems to mean unlabelled and 1 the first class: {n:mask} hold {seen}, the classes have {expected}",
        "",
    ),
    "labels-one-too-high/some": (
        "{n:mask} with labels one too high, by their values and by what is common in the other masks",
        "",
    ),
    "labels-one-too-low/some": (
        "{n:mask} with labels one too low and 255 for the first class, by what is common in the others",
        "",
    ),
    "zero-label-not-reduced/some": (
        "{n:mask} with 0 for unlabelled and 1 for the first class, by what is common in the other masks",
        "",
    ),
    "colors-read-as-grey": (
        "{n:mask} whose values are the classes' colors turned grey, not the classes ({expected})",
        "these are not class indices: write the masks again from the colored ones",
    ),
    "wrong-palette": (
        "{n:mask} with a palette in which values have the colors of other classes",
        "numbers and colors contradict each other: find out which are right, and rewrite these masks",
    ),
    "grey-stored-as-color": (
        "{n:mask} with three equal channels instead of one number a pixel",
        "rewrite them with one channel",
    ),
    "color-masks": ("{n:mask} of colors, though numbers are expected", "rewrite them with one class index a pixel"),
    "unknown-colors": (
        "{n:mask} with {kinds:color} that no class has: {named}",
        "name them in classes.yaml, as classes or as void_colors: {listed}",
    ),
    **{
        f"{kind}-{role}": (
            f"{{n:{role} that is|{role}s that are}} {words}",
            "copy or export them again, or remove them with their partners",
        )
        for kind, words in (
            ("empty", "empty"),
            ("truncated", "truncated"),
            ("undecodable", "no readable picture"),
            ("unreadable", "unreadable"),
        )
        for role in ("image", "mask")
    },
}
# A warning may be intended.
WARNINGS = {
    "not-an-image": (
        "{n:file among the images that is|files among the images that are} not read",
        f"images end in {', '.join(sorted(IMAGE_SUFFIXES))}: convert or remove these",
    ),
    "exif-rotated": (
        "{n:EXIF-rotated image}, read as stored, which is not how a viewer shows them",
        "check whether the masks were drawn on the turned view; save such photos upright, without the note",
    ),
    "nearly-black-image": (
        "{n:image} nearly black: nothing is brighter than 15 of 255",
        "if 10 or 12 bits are stored in 16, scale them to the whole range",
    ),
    "nearly-the-same-across-splits": (
        "{n:image} nearly the same as one of another split: neighbouring frames of a film?",
        "split films by recording, not frame by frame, or the score says little of new places",
    ),
    "16-bit-mask": (
        "{n:mask} stored with more than 8 bits a pixel; all values fit into a byte and are read",
        "rewrite them with 8 bits: other tools clip or scale such masks",
    ),
    "255-not-declared": ("255 is ignored, but not declared void: in {n:mask}, {percent:.2g} % of all pixels{most}", ""),
    "all-void": ("{n:mask} void throughout: nothing there is learned or scored", "label them, or remove them"),
    "split-without-labels": ("the split {split} has no labels: all its {n:mask} are void throughout", ""),
    "mostly-void": ("{percent:.0f} % of the pixels of {split} are void", ""),
    "class-in-no-split": (
        "{names} in no mask of {splits}",
        "nothing can be learned of them; check whether the class file fits the masks",
    ),
    "class-not-in-train": (
        "{names} in {split}, but never in {train}",
        "the student cannot learn them: move some of these images to {train}",
    ),
}
# A note is worth knowing.
NOTES = {
    "other-count": ("the split {split} has {found} images, {published} are published", ""),
    "exif-turned": ("{n:EXIF-rotated image}, turned upright on reading, as the masks are upright", ""),
    "class-not-scored": ("{names} in {train}, but never in {split}: not scored there", ""),
}
RULES: dict[str, tuple[Severity, str, str]] = {
    **{kind: ("error", *texts) for kind, texts in ERRORS.items()},
    **{kind: ("warning", *texts) for kind, texts in WARNINGS.items()},
    **{kind: ("note", *texts) for kind, texts in NOTES.items()},
}


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
