"""Sample pictures inside the page: small enough, as data URIs."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from segtailor.report.read import ROLES, Run
from segtailor.results.formatting import percent

WIDTHS = (640, 480, 360, 280, 200)
BUDGET = 3_600_000  # bytes of data URIs; with all else the page stays below 5 MB


@dataclass
class Picture:
    """One picture of a sample and what is said of it."""

    title: str
    alt: str
    uri: str
    width: int
    height: int
    note: str = ""
    flat: bool = False  # flat colours: enlarged by repeating pixels, not blurred


@dataclass
class Pair:
    """Two pictures that belong together: image and target, or a prediction and its wrong pixels."""

    role: str
    pictures: list[Picture]


@dataclass
class SampleRow:
    """One validation image as the page shows it."""

    name: str
    pairs: list[Pair]


def sample_rows(run: Run) -> tuple[list[SampleRow], int]:
    """Return the samples to show, and how many were left out to keep the page small; missing files are passed over."""
    samples = run.results.get("samples") or []
    for width in WIDTHS:
        rows = [_row(run, sample, width) for sample in samples]
        if sum(map(_size, rows)) <= BUDGET:
            return [row for row in rows if row.pairs], 0
    kept: list[SampleRow] = []
    for row in rows:
        if sum(map(_size, [*kept, row])) > BUDGET:
            break
        kept.append(row)
    return [row for row in kept if row.pairs], len(rows) - len(kept)


def _row(run: Run, sample: dict[str, Any], width: int) -> SampleRow:
    name, paths, wrong = str(sample.get("name", "")), sample.get("pictures", {}), sample.get("wrong", {})
    pairs = []
    first = [
        read_picture(run.folder, paths.get("image"), "Image", f"{name}: photograph", width, photo=True),
        read_picture(run.folder, paths.get("target"), "Target", f"{name}: target classes", width),
    ]
    pairs.append(Pair("data", [picture for picture in first if picture]))
    for role in ROLES:
        label, share = run.label(role), wrong.get(role)
        note = f"{percent(share, 1)} %" if share is not None else ""
        both = [
            read_picture(run.folder, paths.get(role), label, f"{name}: classes predicted by {label}", width),
            read_picture(
                run.folder,
                paths.get(f"{role}-wrong"),
                "Wrong pixels",
                f"{name}: where {label} is wrong" + (f", {note} of scored pixels" if note else ""),
                width,
                photo=True,
            ),
        ]
        if both[1] is not None:
            both[1].note = note
        pairs.append(Pair(role, [picture for picture in both if picture]))
    return SampleRow(name, [pair for pair in pairs if pair.pictures])


def read_picture(
    folder: Path, path: str | None, title: str, alt: str, width: int, photo: bool = False
) -> Picture | None:
    """Return the picture at ``path`` under ``folder``, at most ``width`` wide; None without a sound file.

    A ``photo`` is stored with loss, anything else with its exact colours.
    """
    if path is None or not (folder / path).is_file():
        return None
    try:
        with Image.open(folder / path) as opened:
            image = opened.convert("RGB")
    except OSError:
        return None
    own = image.size
    if image.width > width:
        smaller = (width, max(1, round(image.height * width / image.width)))
        image = image.resize(smaller, Image.Resampling.LANCZOS if photo else Image.Resampling.NEAREST)
    buffer = io.BytesIO()
    if photo:
        image.save(buffer, "WEBP", quality=82, method=4)
        kind = "webp"
    else:  # classes are few: a palette makes the file small and keeps every colour exact
        colors = image.getcolors(256)
        (image.quantize(len(colors), dither=Image.Dither.NONE) if colors else image).save(buffer, "PNG", optimize=True)
        kind = "png"
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return Picture(title, alt, uri, *own, flat=not photo)


def _size(row: SampleRow) -> int:
    return sum(len(picture.uri) for pair in row.pairs for picture in pair.pictures)
