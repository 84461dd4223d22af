"""What segtailor reads: known data sets with their variants, and the forms of a user's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from segtailor.data import list_datasets, toy
from segtailor.data.ade20k import ADE20K
from segtailor.data.benchmark import BenchmarkDataset
from segtailor.data.camvid import CAMVID
from segtailor.data.cityscapes import CITYSCAPES
from segtailor.data.coco_stuff import COCO_STUFF
from segtailor.data.loveda import LOVEDA
from segtailor.data.mapillary import MAPILLARY
from segtailor.data.pascal_context import PASCAL_CONTEXT
from segtailor.data.voc import VOC

BENCHMARKS: dict[str, BenchmarkDataset] = {
    known.name: known for known in (ADE20K, CAMVID, CITYSCAPES, COCO_STUFF, LOVEDA, MAPILLARY, PASCAL_CONTEXT, VOC)
}
OWN: dict[str, str] = {
    "coco-json": "your images, with outlines in a JSON of COCO's form",
    "csv": "your images and masks, named by a table",
    "folder": "your images and masks, in folders",
    "hf": "a data set of the Hugging Face Hub, or one that its library datasets reads",
    "packed": "what `segtailor data pack` wrote",
}
YOURS = "yours"


class Entry(NamedTuple):
    """One variant of a data set, in words; ``splits`` with the numbers of images that are published."""

    name: str
    variant: str
    classes: str
    splits: str
    title: str
    license: str


def describe_datasets() -> list[Entry]:
    """Return what segtailor reads, sorted by name; of each data set its default variant first."""
    entries: list[Entry] = []
    for name in list_datasets():
        if name in BENCHMARKS:
            entries += _known(BENCHMARKS[name])
        elif name == "toy":
            splits = _counts(toy.LENGTHS)
            title = "drawn street scenes, nothing to download"
            entries.append(Entry(name, "", str(len(toy.Toy.classes)), splits, title, toy.LICENSE))
        else:
            entries.append(Entry(name, "", YOURS, YOURS, OWN.get(name, ""), YOURS))
    return entries


def _known(known: BenchmarkDataset) -> list[Entry]:
    several = len(known.variants) > 1
    return [
        Entry(
            known.name,
            variant.name if several else "",
            str(len(variant.classes)),
            _counts(variant.splits),
            known.title,
            known.license,
        )
        for variant in known.variants
    ]


def _counts(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in splits.items())


def datasets_table() -> Table:
    """Return :func:`describe_datasets` as a table for the terminal."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("data.name", "data.variant", "classes", "splits (images)", "what it is, and its license"):
        table.add_column(heading, justify="right" if heading == "classes" else "left", overflow="fold")
    entries = describe_datasets()
    for index, entry in enumerate(entries):
        first = index == 0 or entries[index - 1].name != entry.name
        last = index + 1 == len(entries) or entries[index + 1].name != entry.name
        text = "\n".join([entry.title, *([entry.license] if entry.license != YOURS else [])]) if first else ""
        variant = f"{entry.variant} (default)" if first and entry.variant else entry.variant
        cells = (entry.name, variant, entry.classes, entry.splits, text)
        table.add_row(*map(escape, cells), end_section=last)
    return table
