"""What `segtailor data get` knows of a data set: where its files are, or what the user has to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from segtailor.data.download.archive import Archive
from segtailor.data.download.matlab import Track

Convert = Callable[[Path, Track], str]
"""Turns what was unpacked under a root into what the reader expects, and says what it did."""


class Download(NamedTuple):
    """A data set that anyone may fetch; ``convert`` reads MATLAB files."""

    name: str
    title: str
    licence: str
    home: str
    root: Path
    archives: tuple[Archive, ...]
    convert: Convert | None = None
    variant: str | None = None

    def describe(self, root: Path | None = None) -> str:
        """Return what will be fetched, under which terms, and how it is checked."""
        lines = [
            f"{self.title}, {sum(archive.length for archive in self.archives) / 1e9:.1f} GB, into {root or self.root}",
            f"licence: {self.licence}",
            f"terms:   {self.home}",
        ]
        for archive in self.archives:
            how = (
                f"checked by its {archive.checksum.partition(':')[0]}"
                if archive.checksum
                else "no checksum is published: its length and the CRC of every file in it are checked"
            )
            lines.append(f"  {archive.file}: {archive.urls[0]} ({how})")
        return "\n".join(lines)


class Manual(NamedTuple):
    """A data set that its publishers give only to those who ask, or that the user has."""

    name: str
    title: str
    licence: str
    home: str
    root: Path
    steps: tuple[str, ...]
    variant: str | None = None

    def describe(self, root: Path | None = None) -> str:
        """Return what to fetch where, under which terms, and where to put it."""
        folder = root or self.root
        lines = [
            f"{self.title} is not fetched by segtailor. Get it yourself:",
            f"licence: {self.licence}",
            f"from:    {self.home}",
        ]
        lines += [f"  {number}. {step.replace('ROOT', str(folder))}" for number, step in enumerate(self.steps, 1)]
        return "\n".join([*lines, f"then     data: {{name: {self.name}, root: {folder}}}"])


Entry = Download | Manual
