"""The data sets of `catalogue.yaml`: where to download their files, or the steps to get them by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    urls: Sequence[str]
    length: int
    checksum: str | None
    parts: Mapping[str, str]
    unpacked: int


class Entry(NamedTuple):
    """A benchmark data set: the archives that anyone may fetch, or the steps to get what is only given on request.

    ``variant`` is set where only some of the data set's variants are in the archives; ROOT in ``steps`` is the folder
    to put it in.
    """

    known: BenchmarkDataset
    home: str
    archives: tuple[Archive, ...] = ()
    convert: Convert | None = None
    variant: str | None = None
    steps: Sequence[str] = ()

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
        """Return what will be fetched or is to be fetched by hand, under which terms, and how it is checked."""
        folder, terms = root or self.root, f"license: {self.known.license}"
        if self.steps:
            steps = [f"  {number}. {step.replace('ROOT', str(folder))}" for number, step in enumerate(self.steps, 1)]
            first = f"{self.label} is not fetched by segtailor; get it yourself:"
            last = f"then     data: {{name: {self.known.name}, root: {folder}}}"
            return "\n".join([first, terms, f"from:    {self.home}", *steps, last])
        size = sum(archive.length for archive in self.archives)
        lines = [f"{self.label}: {size / 1e9:.1f} GB, into {folder}", terms, f"terms:   {self.home}"]
        for archive in self.archives:
            how = "nobody publishes a checksum: the CRC of every file in it is checked"
            if archive.checksum:
                how = f"checked by its {archive.checksum.partition(':')[0]}"
            lines.append(f"  {archive.urls[0]} ({how})")
        return "\n".join(lines)


@cache
def read_catalogue() -> tuple[tuple[Entry, ...], dict[str, str]]:
    """Return what `catalogue.yaml` lists: benchmarks, and why other data sets need no download."""
    content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    entries = []
    for item in content["benchmarks"]:
        archives = tuple(Archive(**archive) for archive in item.pop("archives", ()))
        known, convert = BENCHMARKS[item.pop("name")], CONVERT.get(item.pop("convert", ""))
        entries.append(Entry(known, archives=archives, convert=convert, **item))
    return tuple(entries), content["own"]


def find_entry(name: str, variant: str | None = None) -> Entry | str:
    """Return the entry of the data set ``name``, of its ``variant`` where variants are different downloads.

    Of a data set that needs no download the reason is returned. Raises ``SegtailorError`` for an unknown name or
    variant.
    """
    plain = name.replace("_", "-")
    entries, own = read_catalogue()
    found = [entry for entry in entries if entry.known.name == plain]
    if not found and plain in own:
        return own[plain]
    if not found:
        raise unknown("data set", name, [*(entry.known.name for entry in entries), *own])
    if variant is None:
        return found[0]
    names = [form.name for form in found[0].known.variants]
    if variant not in names:
        if len(names) == 1:
            raise SegtailorError(f"{plain} has no variants; leave --variant out")
        raise unknown(f"variant of {plain}", variant, names)
    return next((entry for entry in found if entry.variant and variant.startswith(entry.variant)), found[0])
