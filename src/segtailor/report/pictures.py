"""Pictures inside the pages: small enough, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from PIL import Image

from segtailor.report.read import ROLES, Run, Source
from segtailor.results.formatting import percent
from segtailor.results.model import Drawing

WIDTHS = (640, 480, 360, 280, 200)
BUDGET = 3_600_000  # bytes of data URIs; with all else the page stays below 5 MB
SAMPLE_BUDGET = 2_700_000  # the same on a comparison's page, which has more beside them
TAILORING_BUDGET = 700_000
TAILORING = (
    ("image", "Image", "photograph"),
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


def read_picture(
    folder: Path, entry: Drawing, key: str, title: str, alt: str, width: int, photo: bool = False
) -> list[Picture]:
    """Return the entry's picture ``key``, at most ``width`` wide, in a list; an empty one without a sound file.

    A ``photo`` is stored with loss, anything else with its exact colors.
    """
    try:
        with Image.open(folder / entry.pictures[key]) as opened:
            image = opened.convert("RGB")
    except (KeyError, OSError):
        return []
    own = image.size
    if image.width > width:
        smaller = (width, max(1, round(image.height * width / image.width)))
        image = image.resize(smaller, Image.Resampling.LANCZOS if photo else Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    if photo:
        image.save(buffer, "WEBP", quality=82, method=4)
    else:  # classes are few: a palette makes the file small and keeps every color exact
        colors = image.getcolors(256)
        (image.quantize(len(colors), dither=Image.Dither.NONE) if colors else image).save(buffer, "PNG", optimize=True)
    kind = "webp" if photo else "png"
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return [Picture(key, title, f"{entry.name}: {alt}", uri, *own, flat=not photo)]


def sample_rows(run: Run) -> tuple[list[Sample], int]:
    """Return the samples to show, and how many were left out to keep the page small; missing files are passed over."""
    entries = run.results.samples
    kept = _fitted(entries, lambda entry, width: _sample(run, entry, width), BUDGET)
    return [sample for sample in kept if sample.pictures], len(entries) - len(kept)


def _sample(run: Run, entry: Drawing, width: int) -> Sample:
    pictures = read_picture(run.folder, entry, "image", "Image", "photograph", width, photo=True)
    pictures += read_picture(run.folder, entry, "target", "Target", "target classes", width)
    for role in ROLES:
        label, share = run.label(role), entry.wrong.get(role)
        note = f"{percent(share, 1)} %" if share is not None else ""
        pictures += read_picture(run.folder, entry, role, label, f"classes predicted by {label}", width)
        alt = f"where {label} is wrong" + (f", {note} of scored pixels" if note else "")
        for wrong in read_picture(run.folder, entry, f"{role}-wrong", "Wrong pixels", alt, width, photo=True):
            wrong.note = note
            pictures.append(wrong)
    return Sample(entry.name, pictures)


@dataclass
class SampleGrid:
    """The samples, the choices (key, label) in reading order, and how many samples were left out."""

    samples: list[Sample]
    choices: list[tuple[str, str]]
    left: str
    right: str
    left_out: int


def sample_grid(source: Source) -> SampleGrid | None:
    """Return the samples with everything that was drawn of them; None when there is no pair to compare."""
    entries = source.comparison.samples
    fitted = _fitted(entries, lambda entry, width: _layers(source, entry, width), SAMPLE_BUDGET)
    kept = [sample for sample in fitted if len(sample.pictures) > 1]
    if not kept:
        return None
    labels = {picture.key: picture.title for sample in kept for picture in sample.pictures}
    choices = [(key, labels[key]) for key in _keys(source) if key in labels]
    left, right = _first_pair(source, list(labels))
    for sample in kept:
        keys = [picture.key for picture in sample.pictures]
        sample.left = left if left in keys else keys[0]
        sample.right = right if right in keys else keys[-1]
    return SampleGrid(kept, choices, left, right, len(entries) - len(kept))


def _layers(source: Source, entry: Drawing, width: int) -> Sample:
    pictures = []
    for key in _keys(source):
        label = {"image": "Image", "target": "Target", "teacher": "Teacher"}.get(key) or key.removeprefix("arm:")
        alt = {"image": "photograph", "target": "target classes"}.get(key, f"classes predicted by {label}")
        share = entry.wrong.get(key)
        for picture in read_picture(source.comparison.folder, entry, key, label, alt, width, photo=key == "image"):
            picture.note = f"{percent(share, 1)} % wrong" if share is not None else ""
            pictures.append(picture)
    return Sample(entry.name, pictures)


def _keys(source: Source) -> list[str]:
    return ["image", "target", "teacher", *(f"arm:{result.arm}" for result in source.board.arms)]


def _first_pair(source: Source, keys: list[str]) -> tuple[str, str]:
    """Return what is shown at first: the student alone on the left, the best other arm on the right."""
    alone = f"arm:{source.baseline}"
    right = next((key for key in _keys(source) if key in keys and key.startswith("arm:") and key != alone), keys[-1])
    return next((key for key in (alone, "teacher", "target", *keys) if key in keys and key != right), right), right


def tailored_images(source: Source) -> list[Sample]:
    """Return the images that show how a method alters the logits of one class, as many as the page can hold."""

    def drawn(entry: Drawing, width: int) -> Sample:
        sample = Sample(entry.name, [], label=entry.label, arm=entry.arm)
        for key, title, meaning in TAILORING:
            alt = meaning if key == "image" else f"{meaning}, class {entry.label}"
            sample.pictures += read_picture(source.comparison.folder, entry, key, title, alt, width, photo=True)
        return sample

    fitted = _fitted(source.comparison.tailoring, drawn, TAILORING_BUDGET, (360,))
    return [sample for sample in fitted if sample.pictures]


def _fitted(
    entries: list[Drawing], draw: Callable[[Drawing, int], Sample], budget: int, widths: tuple[int, ...] = WIDTHS
) -> list[Sample]:
    """Return the samples at the largest width at which all fit into ``budget``, else the first ones that do."""
    samples: list[Sample] = []
    for width in widths:
        samples = [draw(entry, width) for entry in entries]
        if sum(sample.bytes for sample in samples) <= budget:
            break
    sizes = accumulate(sample.bytes for sample in samples)
    return [sample for sample, size in zip(samples, sizes, strict=True) if size <= budget]
