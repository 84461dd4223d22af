"""What `segtailor data get` knows of a data set: where its files are, or what the user has to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from segtailor.data.benchmark import BenchmarkDataset
from segtailor.data.download.archive import Archive
from segtailor.data.download.matlab import Track

Convert = Callable[[Path, Track], str]
"""Turns the MATLAB files that were unpacked under a root into what the reader expects, and says what it did."""


class Download(NamedTuple):
    """A data set that anyone may fetch; ``variant`` is set where only some of the data set's variants are in it."""

    known: BenchmarkDataset
    home: str
    archives: tuple[Archive, ...]
    convert: Convert | None = None
    variant: str | None = None
    default_root: Path | None = None

    @property
    def label(self) -> str:
        """The data set's name, and the variant where it matters."""
        return f"{self.known.name} {self.variant}" if self.variant else self.known.name

    @property
    def root(self) -> Path:
        """Where its reader looks by default."""
        return self.default_root or self.known.root

    def describe(self, root: Path | None = None) -> str:
        """Return what will be fetched, under which terms, and how it is checked."""
        size = sum(archive.length for archive in self.archives)
        lines = [
            f"{self.label}: {size / 1e9:.1f} GB, into {root or self.root}",
            f"license: {self.known.license}",
            f"terms:   {self.home}",
        ]
        for archive in self.archives:
            how = (
                f"checked by its {archive.checksum.partition(':')[0]}"
                if archive.checksum
                else "nobody publishes a checksum: its length and the CRC of every file in it are checked"
            )
            lines.append(f"  {archive.urls[0]} ({how})")
        return "\n".join(lines)


class Manual(NamedTuple):
    """A data set that its publishers give only to those who ask; in ``steps``, ROOT is where it goes."""

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
    """A data set that the user has, or that needs no files."""

    text: str

    def describe(self, root: Path | None = None) -> str:
        """Return why there is nothing to fetch."""
        del root
        return self.text


Entry = Download | Manual | Own
