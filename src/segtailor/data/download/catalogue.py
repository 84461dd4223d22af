"""The data sets of `catalogue.yaml`: where to download their files, or the steps to get them by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from segtailor.data import BENCHMARKS
from segtailor.data.benchmark import BenchmarkDataset
from segtailor.data.download.convert import Track, convert_stuff, merge_boundaries
from segtailor.errors import SegtailorError, unknown

Convert = Callable[[Path, Track], str]
"""Turns the MATLAB files that were unpacked under a root into what the reader expects, and returns what it did."""
CONVERT: dict[str, Convert] = {"convert_stuff": convert_stuff, "merge_boundaries": merge_boundaries}


class Archive(NamedTuple):
    """A zip or tar file on the network; `catalogue.yaml` explains the fields. ``checksum`` is ``ALGORITHM:HEX``."""

    file: str
    urls: tuple[str, ...]
    length: int
    checksum: str | None
    parts: Mapping[str, str]
    unpacked: int


class Download(NamedTuple):
    """A data set that anyone may fetch; ``variant`` is set where only some of the data set's variants are in it."""

    known: BenchmarkDataset
    home: str
    archives: tuple[Archive, ...]
    convert: Convert | None = None
    variant: str | None = None

    @property
    def label(self) -> str:
        """The data set's name, and the variant where it matters."""
        return f"{self.known.name} {self.variant}" if self.variant else self.known.name

    @property
    def root(self) -> Path:
        """Where its reader looks by default."""
        variant = next((variant for variant in self.known.variants if variant.name == self.variant), None)
        return (variant and variant.root) or self.known.root

    def describe(self, root: Path | None = None) -> str:
        """Return what will be fetched, under which terms, and how it is checked."""
        size = sum(archive.length for archive in self.archives)
        lines = [
            f"{self.label}: {size / 1e9:.1f} GB, into {root or self.root}",
            f"license: {self.known.license}",
            f"terms:   {self.home}",
        ]
        for archive in self.archives:
            how = "nobody publishes a checksum: the CRC of every file in it is checked"
            if archive.checksum:
                how = f"checked by its {archive.checksum.partition(':')[0]}"
            lines.append(f"  {archive.urls[0]} ({how})")
        return "\n".join(lines)


class Manual(NamedTuple):
    """A data set that its publishers give only on request; ROOT in ``steps`` is the folder to put it in."""

    known: BenchmarkDataset
    home: str
    steps: tuple[str, ...]

    def describe(self, root: Path | None = None) -> str:
        """Return what to fetch where, under which terms, and where to put it."""
        folder = root or self.known.root
        lines = [
            f"{self.known.name} is not fetched by segtailor; get it yourself:",
            f"license: {self.known.license}",
            f"from:    {self.home}",
        ]
        lines += [f"  {number}. {step.replace('ROOT', str(folder))}" for number, step in enumerate(self.steps, 1)]
        return "\n".join([*lines, f"then     data: {{name: {self.known.name}, root: {folder}}}"])


class Own(NamedTuple):
    """A data set that needs no download, and why."""

    text: str

    def describe(self, root: Path | None = None) -> str:
        """Return why there is nothing to fetch."""
        return self.text


Entry = Download | Manual | Own


@cache
def read_catalogue() -> tuple[tuple[Download, ...], tuple[Manual, ...], dict[str, Own]]:
    """Return what `catalogue.yaml` lists: downloads, data sets to fetch by hand, and those without a download."""
    content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    downloads = tuple(
        Download(
            BENCHMARKS[item["name"]],
            item["home"],
            tuple(Archive(**{**archive, "urls": tuple(archive["urls"])}) for archive in item["archives"]),
            CONVERT[item["convert"]] if "convert" in item else None,
            item.get("variant"),
        )
        for item in content["downloads"]
    )
    manual = tuple(Manual(BENCHMARKS[item["name"]], item["home"], tuple(item["steps"])) for item in content["manual"])
    return downloads, manual, {name: Own(text) for name, text in content["own"].items()}


def find_entry(name: str, variant: str | None = None) -> Entry:
    """Return the entry of the data set ``name``, of its ``variant`` where variants are different downloads.

    Raises ``SegtailorError`` for an unknown name or variant.
    """
    plain = name.replace("_", "-")
    downloads, manual, own = read_catalogue()
    known: list[Download | Manual] = [*downloads, *manual]
    found = [entry for entry in known if entry.known.name == plain]
    if not found and plain in own:
        return own[plain]
    if not found:
        raise unknown("data set", name, [*(entry.known.name for entry in known), *own])
    if variant is None:
        return found[0]
    names = [form.name for form in found[0].known.variants]
    if variant not in names:
        if len(names) == 1:
            raise SegtailorError(f"{plain} has no variants; leave --variant out")
        raise unknown(f"variant of {plain}", variant, names)
    only = [entry for entry in found if isinstance(entry, Download) and entry.variant]
    return next((entry for entry in only if variant.startswith(str(entry.variant))), found[0])
