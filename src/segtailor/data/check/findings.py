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


class Rule(NamedTuple):
    """How a kind of finding is reported: ``n`` in ``text`` is the number of its locations.

    An ``error`` stops a run or spoils it, a ``warning`` may be intended, a ``note`` is worth knowing. ``advice`` says
    what to do where no field of a recipe fixes it.
    """

    severity: Severity
    text: str
    advice: str = ""


SPREAD = ", also where saved again in another format, quality or size"
REWRITE = "rewrite them with class indices"
# By kind; what follows a slash is a variant of that kind.
RULES: dict[str, Rule] = {
    # splits and files
    "split-not-opened": Rule("error", "the split {split} cannot be checked: {problem}"),
    "limit": Rule("error", "{field} asks for {asked} images, but there are {size}"),
    "other-count": Rule("note", "the split {split} has {found} images, {published} are published"),
    "image-without-mask": Rule(
        "error",
        "{n:image without a mask|images without a mask}",
        "add the masks, or move these images to a folder for data.unlabelled",
    ),
    "mask-without-image": Rule(
        "error", "{n:mask without an image|masks without an image}", "add the images, or remove these masks"
    ),
    "several-files-of-one-name": Rule(
        "error", "{n:file that shares its|files that share their} name with another", "keep one of each"
    ),
    "mask-of-no-class": Rule(
        "error",
        "{n:mask whose name holds|masks whose names hold} no class",
        "rename them, or name the class in classes.yaml",
    ),
    "missing-image": Rule(
        "error", "{n:image that is|images that are} listed but not there", "add them, or take them out of the list"
    ),
    "missing-mask": Rule(
        "error", "{n:mask that is|masks that are} listed but not there", "add them, or take them out of the list"
    ),
    "not-an-image": Rule(
        "warning",
        "{n:file among the images that is|files among the images that are} not read",
        f"images end in {', '.join(sorted(IMAGE_SUFFIXES))}: convert or remove these",
    ),
    **{
        f"{kind}-{role}": Rule(
            "error",
            f"{{n:{role} that is|{role}s that are}} {words}",
            "copy or export them again, or remove them with their partners",
        )
        for kind, words in {
            "empty": "empty",
            "truncated": "truncated",
            "undecodable": "no readable picture",
            "unreadable": "unreadable",
        }.items()
        for role in ("image", "mask")
    },
    "size-mismatch": Rule(
        "error",
        "{n:mask} not of the image's size",
        "export them at the images' size, or check that they belong to these images",
    ),
    "exif-turned": Rule("note", "{n:EXIF-rotated image}, turned upright on reading, as the masks are upright"),
    "exif-rotated": Rule(
        "warning",
        "{n:EXIF-rotated image}, read as stored, which is not how a viewer shows them",
        "check whether the masks were drawn on the turned view; save such photos upright, without the note",
    ),
    "duplicate-across-splits": Rule(
        "error",
        "{n:image} in two splits" + SPREAD,
        "remove them from one split: the score is of images that the student learned from ({train})",
    ),
    "nearly-the-same-across-splits": Rule(
        "warning",
        "{n:image} nearly the same as one of another split: neighbouring frames of a film?",
        "split films by recording, not frame by frame, or the score says little of new places",
    ),
    # numbers in masks
    "16-bit-values": Rule("error", "{n:mask} with values that no byte holds{origin}", f"{REWRITE} in 8 bits"),
    "16-bit-mask": Rule(
        "warning",
        "{n:mask} stored with more than 8 bits a pixel; all values fit into a byte and are read",
        "rewrite them with 8 bits: other tools clip or scale such masks",
    ),
    "binary-mask": Rule(
        "error",
        "{n:mask} of 0 and 255 only, though 255 is no class: the object is read as void",
        f"{REWRITE}: 255 is void, so the object in them is ignored",
    ),
    "values-outside-classes": Rule(
        "error",
        "{n:mask} with {kinds:value} outside the classes: {named}; the classes have {expected}",
        "so many are hardly forgotten classes: are these masks of instances, of colors turned grey, or photos?",
    ),
    "255-not-declared": Rule(
        "warning", "255 is ignored, but not declared void: in {n:mask}, {percent:.2g} % of all pixels{most}"
    ),
    "labels-one-too-high": Rule(
        "error", "the labels are one too high: {n:mask} hold {seen}, the classes have {expected}"
    ),
    "labels-one-too-low": Rule(
        "error", "the labels are one too low: {top} never occurs: {n:mask} hold {seen}, the classes have {expected}"
    ),
    "zero-label-not-reduced": Rule(
        "error", "0 seems to mean unlabelled and 1 the first class: {n:mask} hold {seen}, the classes have {expected}"
    ),
    "labels-one-too-high/some": Rule(
        "error", "{n:mask} with labels one too high, by their values and by what is common in the other masks"
    ),
    "labels-one-too-low/some": Rule(
        "error", "{n:mask} with labels one too low and 255 for the first class, by what is common in the others"
    ),
    "zero-label-not-reduced/some": Rule(
        "error", "{n:mask} with 0 for unlabelled and 1 for the first class, by what is common in the other masks"
    ),
    # colors in masks
    "colors-read-as-grey": Rule(
        "error",
        "{n:mask} whose values are the classes' colors turned grey, not the classes ({expected})",
        "these are not class indices: write the masks again from the colored ones",
    ),
    "wrong-palette": Rule(
        "error",
        "{n:mask} with a palette in which values have the colors of other classes",
        "numbers and colors contradict each other: find out which are right, and rewrite these masks",
    ),
    "grey-stored-as-color": Rule(
        "error", "{n:mask} with three equal channels instead of one number a pixel", "rewrite them with one channel"
    ),
    "color-masks": Rule(
        "error", "{n:mask} of colors, though numbers are expected", "rewrite them with one class index a pixel"
    ),
    "unknown-colors": Rule(
        "error",
        "{n:mask} with {kinds:color} that no class has: {named}",
        "name them in classes.yaml, as classes or as void_colors: {listed}",
    ),
    # classes
    "all-void": Rule(
        "warning", "{n:mask} void throughout: nothing there is learned or scored", "label them, or remove them"
    ),
    "split-without-labels": Rule("warning", "the split {split} has no labels: all its {n:mask} are void throughout"),
    "mostly-void": Rule("warning", "{percent:.0f} % of the pixels of {split} are void"),
    "class-in-no-split": Rule(
        "warning",
        "{names} in no mask of {splits}",
        "nothing can be learned of them; check whether the class file fits the masks",
    ),
    "class-not-in-train": Rule(
        "warning",
        "{names} in {split}, but never in {train}",
        "the student cannot learn them: move some of these images to {train}",
    ),
    "class-not-scored": Rule("note", "{names} in {train}, but never in {split}: not scored there"),
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
