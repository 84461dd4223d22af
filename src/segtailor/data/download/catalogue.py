"""The data sets of `catalogue.yaml`: where their files are, or what the user has to do instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

import yaml

from segtailor.data.ade20k import ADE20K
from segtailor.data.benchmark import BenchmarkDataset
from segtailor.data.camvid import CAMVID
from segtailor.data.cityscapes import CITYSCAPES
from segtailor.data.coco_stuff import COCO_STUFF
from segtailor.data.download.convert import Track, convert_stuff, merge_boundaries
from segtailor.data.loveda import LOVEDA
from segtailor.data.mapillary import MAPILLARY
from segtailor.data.pascal_context import PASCAL_CONTEXT
from segtailor.data.voc import VOC
from segtailor.errors import SegtailorError, unknown

KNOWN = {
    known.name: known
    for known in (ADE20K, CAMVID, CITYSCAPES, COCO_STUFF, LOVEDA, MAPILLARY, PASCAL_CONTEXT, VOC)
}  # fmt: skip
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
                else "nobody publishes a checksum: the CRC of every file in it is checked"
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


@cache
def read_catalogue() -> tuple[tuple[Download, ...], tuple[Manual, ...], dict[str, Own]]:
    """Return what `catalogue.yaml` lists: downloads, data sets to be fetched by hand, and those of the user."""
    content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    downloads = tuple(
        Download(
            KNOWN[item["name"]],
            item["home"],
            tuple(Archive(**{**archive, "urls": tuple(archive["urls"])}) for archive in item["archives"]),
            CONVERT[item["convert"]] if "convert" in item else None,
            item.get("variant"),
            Path(item["root"]) if "root" in item else None,
        )
        for item in content["downloads"]
    )
    manual = tuple(Manual(KNOWN[item["name"]], item["home"], tuple(item["steps"])) for item in content["manual"])
    return downloads, manual, {name: Own(text) for name, text in content["own"].items()}


def find_entry(name: str, variant: str | None = None) -> Entry:
    """Return what is known of the data set ``name``, of its ``variant`` where its forms are different downloads.

    Raises ``SegtailorError`` for a name or variant that there is not.
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
