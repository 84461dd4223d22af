"""Pictures inside the page: predictions to compare by a slider, and what tailoring does to the teacher's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from segtailor.report.comparison.source import Source
from segtailor.report.pictures import WIDTHS, Picture, read_picture
from segtailor.results.formatting import percent

SAMPLE_BUDGET = 2_700_000  # bytes of data URIs; with all else the page stays below 5 MB
TAILORING_BUDGET = 700_000
STEPS = (
    ("image", "Image", "photograph"),
    ("before", "Before", "the teacher's logits as they are"),
    ("after", "After", "the tailored logits"),
    ("difference", "Difference", "after minus before"),
)


@dataclass
class Layer:
    """One picture of a sample that can be chosen; ``key`` is image, target, teacher or ``arm:NAME``."""

    key: str
    label: str
    picture: Picture


@dataclass
class Sample:
    """One validation image and all that was drawn of it."""

    name: str
    layers: list[Layer]
    left: str
    right: str

    @property
    def wide(self) -> Picture:
        """The picture whose size the frame has."""
        return self.layers[0].picture

    def __getitem__(self, key: str) -> Layer:
        """Return the layer of this key."""
        return next(layer for layer in self.layers if layer.key == key)


@dataclass
class SampleGrid:
    """The samples, the choices in reading order, and how many samples were left out to keep the page small."""

    samples: list[Sample]
    choices: list[tuple[str, str]]
    left: str
    right: str
    left_out: int


@dataclass
class Tailored:
    """One image's pictures of one class's logits."""

    name: str
    label: str
    pictures: list[Picture]


def sample_grid(source: Source) -> SampleGrid | None:
    """Return the samples with everything that every one of them has; None when there is no pair to compare."""
    entries = source.entries("samples")
    samples: list[list[Layer]] = []
    for width in WIDTHS:
        samples = [_layers(source, entry, width) for entry in entries]
        if sum(map(_size, samples)) <= SAMPLE_BUDGET:
            break
    kept: list[Sample] = []
    total = 0
    for entry, layers in zip(entries, samples, strict=True):
        total += _size(layers)
        if total > SAMPLE_BUDGET:
            break
        if len(layers) > 1:
            kept.append(Sample(str(entry.get("name", "")), layers, "", ""))
    if not kept:
        return None
    labels = {layer.key: layer.label for sample in kept for layer in sample.layers}
    choices = [(key, labels[key]) for key in _keys(source) if key in labels]
    left, right = _first_pair(source, [key for key, _ in choices])
    for sample in kept:
        keys = [layer.key for layer in sample.layers]
        sample.left = left if left in keys else keys[0]
        sample.right = right if right in keys else keys[-1]
    return SampleGrid(kept, choices, left, right, len(entries) - len(kept))


def tailored(source: Source) -> list[Tailored]:
    """Return the images that show what logit tailoring does, at most as many as the page can hold."""
    found: list[Tailored] = []
    total = 0
    for entry in source.entries("tailoring"):
        name, label = str(entry.get("name", "")), str(entry.get("class", ""))
        pictures = []
        for what, title, meaning in STEPS:
            alt = f"{name}: {meaning}" + ("" if what == "image" else f", class {label}")
            picture = read_picture(source.folder, _path(entry, what), title, alt, 360, photo=True)
            pictures += [picture] if picture is not None else []
        total += sum(len(picture.uri) for picture in pictures)
        if total > TAILORING_BUDGET:
            break
        if pictures:
            found.append(Tailored(name, label, pictures))
    return found


def _layers(source: Source, entry: dict[str, Any], width: int) -> list[Layer]:
    wrong = entry.get("wrong") or {}
    layers = []
    for key in _keys(source):
        label = {"image": "Image", "target": "Target", "teacher": "Teacher"}.get(key) or key.removeprefix("arm:")
        meaning = {"image": "photograph", "target": "target classes"}.get(key, f"classes predicted by {label}")
        alt = f"{entry.get('name', '')}: {meaning}"
        picture = read_picture(source.folder, _path(entry, key), label, alt, width, photo=key == "image")
        if picture is not None:
            share = wrong.get(key)
            picture.note = f"{percent(share, 1)} % wrong" if isinstance(share, float) else ""
            layers.append(Layer(key, label, picture))
    return layers


def _keys(source: Source) -> list[str]:
    return ["image", "target", "teacher", *(f"arm:{result.arm}" for result in source.board.arms)]


def _first_pair(source: Source, keys: list[str]) -> tuple[str, str]:
    """Return what is shown at first: the student alone on the left, the best other arm on the right."""
    arms = [key for key in keys if key.startswith("arm:") and key != f"arm:{source.baseline}"]
    right = arms[0] if arms else keys[-1]
    wished = (f"arm:{source.baseline}", "teacher", "target", *keys)
    return next((key for key in wished if key in keys and key != right), right), right


def _path(entry: dict[str, Any], what: str) -> str | None:
    path = entry["pictures"].get(what)
    return path if isinstance(path, str) else None


def _size(layers: list[Layer]) -> int:
    return sum(len(layer.picture.uri) for layer in layers)
