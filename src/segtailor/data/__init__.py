"""Data sets: the table of readers, and opening one by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from segtailor.config import DataConfig
from segtailor.data.ade20k import ADE20K, create_ade20k
from segtailor.data.base import Sample, SegmentationDataset
from segtailor.data.benchmark import BenchmarkDataset
from segtailor.data.camvid import CAMVID, create_camvid
from segtailor.data.cityscapes import CITYSCAPES, create_cityscapes
from segtailor.data.coco_json import create_coco_json
from segtailor.data.coco_stuff import COCO_STUFF, create_coco_stuff
from segtailor.data.csv_table import create_csv
from segtailor.data.external import GROUP, TorchDataset, create_external, find_factory
from segtailor.data.folder import create_folder
from segtailor.data.hf import create_hf
from segtailor.data.loveda import LOVEDA, create_loveda
from segtailor.data.mapillary import MAPILLARY, create_mapillary
from segtailor.data.packed import create_packed
from segtailor.data.paired import limit_dataset
from segtailor.data.pascal_context import PASCAL_CONTEXT, create_pascal_context
from segtailor.data.toy import LENGTHS, LICENSE, Toy, create_toy
from segtailor.data.voc import VOC, create_voc
from segtailor.errors import SegtailorError, unknown
from segtailor.files import VOID
from segtailor.plugins import entry_point_names

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "BENCHMARKS",
    "DATASETS",
    "VOID",
    "Sample",
    "SegmentationDataset",
    "TorchDataset",
    "create_dataset",
    "describe_datasets",
    "list_datasets",
]


Create = Callable[[DataConfig, str, bool], SegmentationDataset]
"""Opens one split of a data set; the third argument, training, resizes targets along with the images."""


class Reader(NamedTuple):
    """How a data set is opened, the fields of `data:` that it reads beside the common ones, and a title."""

    create: Create
    fields: frozenset[str]
    title: str


VALUES = frozenset({"values", "void", "reduce_zero_label"})
BENCHMARK_FIELDS = VALUES | {"root", "variant"}
EXTERNAL_FIELDS = BENCHMARK_FIELDS | {"classes"}

READERS: tuple[tuple[BenchmarkDataset, Create], ...] = (
    (ADE20K, create_ade20k),
    (CAMVID, create_camvid),
    (CITYSCAPES, create_cityscapes),
    (COCO_STUFF, create_coco_stuff),
    (LOVEDA, create_loveda),
    (MAPILLARY, create_mapillary),
    (PASCAL_CONTEXT, create_pascal_context),
    (VOC, create_voc),
)
BENCHMARKS: dict[str, BenchmarkDataset] = {benchmark.name: benchmark for benchmark, _ in READERS}
FORMS: dict[str, Reader] = {
    "coco-json": Reader(
        create_coco_json,
        VALUES | {"root", "annotations", "classes", "splits", "masks"},
        "your images, with outlines in a JSON in COCO's format",
    ),
    "csv": Reader(
        create_csv,
        VALUES | {"root", "annotations", "classes", "masks", "image_column", "mask_column"},
        "your images and masks, named by a table",
    ),
    "folder": Reader(
        create_folder, VALUES | {"root", "classes", "splits", "masks"}, "your images and masks, in folders"
    ),
    "hf": Reader(
        create_hf,
        VALUES | {"classes", "masks", "source", "config", "image_column", "mask_column"},
        "a data set of the Hugging Face Hub, or one that its library datasets reads",
    ),
    "packed": Reader(create_packed, frozenset({"root"}), "what `segtailor data pack` wrote"),
    # a root does no harm: any recipe can be tried on toy
    "toy": Reader(create_toy, frozenset({"length", "root"}), "drawn street scenes, nothing to download"),
}
"""Your own images in the forms that are read, and toy."""
DATASETS: dict[str, Create] = {
    **{benchmark.name: create for benchmark, create in READERS},
    **{name: reader.create for name, reader in FORMS.items()},
}


def create_dataset(config: DataConfig, split: str, training: bool) -> SegmentationDataset:
    """Open ``split`` of the data set that ``config`` names; its files are paired by name, not yet read.

    With ``training`` the targets are resized to ``config.size`` along with the images; without, they keep the masks'
    own size, at which models are scored. The training split then has ``config.limit`` samples, where that is given.
    Raises ``SegtailorError`` for an unknown name or split, for fields that the data set does not read, for missing
    folders, for images or masks without a partner and for a limit above the number of samples.
    """
    create = DATASETS.get(config.name)
    if create is None:
        factory = find_factory(config.name)
        if factory is None:
            hint = "For your own images and masks use 'folder', for your own reader 'module:package.file:factory'"
            raise unknown("data set", config.name, list_datasets(), hint)
        create = partial(create_external, factory)
    check_fields(config)
    dataset = create(config, split, training)
    if config.limit is not None and training and split == config.train_split:
        return limit_dataset(dataset, config.limit)
    return dataset


def check_fields(config: DataConfig) -> None:
    """Raise ``SegtailorError`` for fields that were set and that the data set ``config.name`` does not read."""
    if config.name in FORMS:
        read = FORMS[config.name].fields
    else:
        read = BENCHMARK_FIELDS if config.name in BENCHMARKS else EXTERNAL_FIELDS
    some = frozenset[str]().union(*(reader.fields for reader in FORMS.values())) | BENCHMARK_FIELDS
    default = DataConfig()
    if ignored := [field for field in sorted(some - read) if getattr(config, field) != getattr(default, field)]:
        fields = ", ".join(f"data.{field}" for field in ignored)
        readers = sorted(name for name, reader in FORMS.items() if reader.fields.issuperset(ignored))
        known = ["the known data sets"] if BENCHMARK_FIELDS.issuperset(ignored) else []
        by = f"; read by {', '.join(readers + known)}" if readers or known else ""
        raise SegtailorError(f"{config.name} does not read {fields}{by}; leave it out, or choose another data.name")


def list_datasets() -> list[str]:
    """Return the names of all data sets, those that installed packages register included, sorted."""
    return sorted({*DATASETS, *entry_point_names(GROUP)})


YOURS = "yours"


class Entry(NamedTuple):
    """One variant of a data set, as text; ``splits`` with the published numbers of images."""

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
        if benchmark := BENCHMARKS.get(name):
            for variant in benchmark.variants:
                form = variant.name if len(benchmark.variants) > 1 else ""
                classes, splits = str(len(variant.classes)), _counts(variant.splits)
                entries.append(Entry(name, form, classes, splits, benchmark.title, benchmark.license))
        elif name == "toy":
            entries.append(Entry(name, "", str(len(Toy.classes)), _counts(LENGTHS), FORMS[name].title, LICENSE))
        else:
            title = FORMS[name].title if name in FORMS else "registered by an installed package"
            entries.append(Entry(name, "", YOURS, YOURS, title, YOURS))
    return entries


def _counts(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in splits.items())


def datasets_table() -> Table:
    """Return :func:`describe_datasets` as a table for the terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for heading in ("data.name", "data.variant", "classes", "splits (images)", "title and license"):
        table.add_column(heading, justify="right" if heading == "classes" else "left", overflow="fold")
    for _, group in groupby(describe_datasets(), key=lambda entry: entry.name):
        for index, entry in enumerate(group):
            text = entry.title if entry.license == YOURS else f"{entry.title}\n{entry.license}"
            default = " (default)" if entry.variant and not index else ""
            cells = (entry.name, entry.variant + default, entry.classes, entry.splits, "" if index else text)
            table.add_row(*map(escape, cells))
        table.add_section()
    return table
