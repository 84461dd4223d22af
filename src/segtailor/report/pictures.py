"""Pictures inside the pages: small enough, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from segtailor.report.read import ROLES, Run, Source
from segtailor.results.formatting import percent
from segtailor.results.model import Drawing

BUDGET = 3_600_000  # bytes of data URIs; with all else the page stays below 5 MB
SAMPLE_BUDGET = 2_700_000  # the same on a comparison's page, which has more beside them
TAILORING_BUDGET = 700_000
TAILORING = (
    ("before", "Before", "the teacher's logits as they are"),
    ("after", "After", "the altered logits"),
    ("difference", "Difference", "after minus before"),
)


@dataclass
class Picture:
    """One picture of a sample, its caption and its alternative text; ``key`` says what it shows."""

    key: str
    title: str
    alt: str
    uri: str
    width: int
    height: int
    note: str = ""
    flat: bool = False  # flat colors: enlarged by repeating pixels, not blurred


@dataclass
class Sample:
    """One validation image and all that was drawn of it, in reading order."""

    name: str
    pictures: list[Picture]
    left: str = ""
    right: str = ""
    label: str = ""
    arm: str = ""

    @property
    def pairs(self) -> list[list[Picture]]:
        """The pictures that belong together: image and target, or a prediction and its wrong pixels."""
        found: dict[str, list[Picture]] = {}
        for picture in self.pictures:
            role = "image" if picture.key == "target" else picture.key.removesuffix("-wrong")
            found.setdefault(role, []).append(picture)
        return list(found.values())

    @property
    def bytes(self) -> int:
        """What the pictures add to the page."""
        return sum(len(picture.uri) for picture in self.pictures)

    def __getitem__(self, key: str) -> Picture:
        """Return the picture of this key."""
        return next(picture for picture in self.pictures if picture.key == key)


class Layer(NamedTuple):
    """What one of an entry's pictures shows; a ``photo`` is stored with loss, anything else with its exact colors."""

    key: str
    title: str
    alt: str
    photo: bool = False
    note: str = ""


IMAGE, TARGET = Layer("image", "Image", "photograph", photo=True), Layer("target", "Target", "target classes")


def _sample(folder: Path, entry: Drawing, layers: Iterable[Layer], width: int) -> Sample:
    """Return the entry's pictures, at most ``width`` wide; those without a sound file are passed over."""
    pictures = []
    for key, title, alt, photo, note in layers:
        try:
            with Image.open(folder / entry.pictures[key]) as opened:
                image = opened.convert("RGB")
        except (KeyError, OSError):
            continue
        own = image.size
        if image.width > width:
            smaller = (width, max(1, round(image.height * width / image.width)))
            image = image.resize(smaller, Image.Resampling.LANCZOS if photo else Image.Resampling.NEAREST)
        buffer = io.BytesIO()
        if photo:
            image.save(buffer, "WEBP", quality=82, method=4)
        else:  # classes are few: a palette makes the file small and keeps every color exact
            colors = image.getcolors(256)
            image = image.quantize(len(colors), dither=Image.Dither.NONE) if colors else image
            image.save(buffer, "PNG", optimize=True)
        uri = f"data:image/{'webp' if photo else 'png'};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
        pictures.append(Picture(key, title, f"{entry.name}: {alt}", uri, *own, note, flat=not photo))
    return Sample(entry.name, pictures, label=entry.label, arm=entry.arm)


def sample_rows(run: Run) -> tuple[list[Sample], int]:
    """Return the samples to show, and how many were left out to keep the page small."""

    def layers(entry: Drawing) -> Iterator[Layer]:
        yield from (IMAGE, TARGET)
        for role in ROLES:
            label, share = run.label(role), entry.wrong.get(role)
            note = f"{percent(share, 1)} %" if share is not None else ""
            yield Layer(role, label, f"classes predicted by {label}")
            alt = f"where {label} is wrong" + (f", {note} of scored pixels" if note else "")
            yield Layer(f"{role}-wrong", "Wrong pixels", alt, photo=True, note=note)

    entries = run.results.samples
    kept = _fitted(run.folder, entries, layers, BUDGET)
    return [sample for sample in kept if sample.pictures], len(entries) - len(kept)


def sample_grid(source: Source) -> dict[str, Any] | None:
    """Return the samples with everything that was drawn of them; None when there is no pair to compare.

    ``choices`` are (key, label) in reading order; ``left`` and ``right`` are shown at first: the student alone and the
    best other arm.
    """
    arms = {f"arm:{result.arm}": result.arm for result in source.board.arms}
    predicted = {"teacher": "Teacher", **arms}

    def layers(entry: Drawing) -> Iterator[Layer]:
        yield from (IMAGE, TARGET)
        for key, label in predicted.items():
            share = entry.wrong.get(key)
            note = f"{percent(share, 1)} % wrong" if share is not None else ""
            yield Layer(key, label, f"classes predicted by {label}", note=note)

    entries = source.comparison.samples
    fitted = _fitted(source.comparison.folder, entries, layers, SAMPLE_BUDGET)
    kept = [sample for sample in fitted if len(sample.pictures) > 1]
    if not kept:
        return None
    labels = {picture.key: picture.title for sample in kept for picture in sample.pictures}
    choices = [(key, labels[key]) for key in ("image", "target", *predicted) if key in labels]
    alone = f"arm:{source.baseline}"
    right = next((key for key in arms if key in labels and key != alone), list(labels)[-1])
    left = next(key for key in (alone, "teacher", "target", *labels) if key in labels and key != right)
    for sample in kept:
        keys = [picture.key for picture in sample.pictures]
        sample.left = left if left in keys else keys[0]
        sample.right = right if right in keys else keys[-1]
    return {"samples": kept, "choices": choices, "left": left, "right": right, "left_out": len(entries) - len(kept)}


def tailored_images(source: Source) -> list[Sample]:
    """Return the images that show how a method alters the logits of one class, as many as the page can hold."""

    def layers(entry: Drawing) -> Iterator[Layer]:
        yield IMAGE
        for key, title, meaning in TAILORING:
            yield Layer(key, title, f"{meaning}, class {entry.label}", photo=True)

    comparison = source.comparison
    fitted = _fitted(comparison.folder, comparison.tailoring, layers, TAILORING_BUDGET, (360,))
    return [sample for sample in fitted if sample.pictures]


def _fitted(
    folder: Path,
    entries: Sequence[Drawing],
    layers: Callable[[Drawing], Iterable[Layer]],
    budget: int,
    widths: tuple[int, ...] = (640, 480, 360, 280, 200),
) -> list[Sample]:
    """Return the samples at the largest width at which all fit into ``budget``, else the first ones that do."""
    samples: list[Sample] = []
    for width in widths:
        samples = [_sample(folder, entry, layers(entry), width) for entry in entries]
        if sum(sample.bytes for sample in samples) <= budget:
            break
    sizes = accumulate(sample.bytes for sample in samples)
    return [sample for sample, size in zip(samples, sizes, strict=True) if size <= budget]
