"""Data sets, augmentation and training batches."""

from __future__ import annotations

from typing import Protocol

from segtailor.config import DataConfig
from segtailor.data.ade20k import create_ade20k
from segtailor.data.base import Sample, SegmentationDataset
from segtailor.data.camvid import create_camvid
from segtailor.data.cityscapes import create_cityscapes
from segtailor.data.coco_json import create_coco_json
from segtailor.data.coco_stuff import create_coco_stuff
from segtailor.data.csv_table import create_csv
from segtailor.data.fields import check_fields
from segtailor.data.folder import create_folder
from segtailor.data.hf import create_hf
from segtailor.data.loveda import create_loveda
from segtailor.data.mapillary import create_mapillary
from segtailor.data.pack.reader import create_packed
from segtailor.data.pascal_context import create_pascal_context
from segtailor.data.subset import limit_dataset
from segtailor.data.toy import create_toy
from segtailor.data.voc import create_voc
from segtailor.errors import unknown
from segtailor.files import VOID

__all__ = ["DATASETS", "VOID", "Sample", "SegmentationDataset", "create_dataset", "list_datasets"]


class Create(Protocol):
    """Opens one split of a data set; ``training`` resizes targets along with the images."""

    def __call__(self, config: DataConfig, split: str, training: bool) -> SegmentationDataset: ...


DATASETS: dict[str, Create] = {
    "ade20k": create_ade20k,
    "camvid": create_camvid,
    "cityscapes": create_cityscapes,
    "coco-json": create_coco_json,
    "coco-stuff": create_coco_stuff,
    "csv": create_csv,
    "folder": create_folder,
    "hf": create_hf,
    "loveda": create_loveda,
    "mapillary": create_mapillary,
    "packed": create_packed,
    "pascal-context": create_pascal_context,
    "toy": create_toy,
    "voc": create_voc,
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
        raise unknown("data set", config.name, DATASETS, "For your own images and masks use the name 'folder'")
    check_fields(config, config.name)
    dataset = create(config, split, training)
    if config.limit is not None and training and split == config.train_split:
        return limit_dataset(dataset, config.limit)
    return dataset


def list_datasets() -> list[str]:
    """Return the names of all data sets, sorted."""
    return sorted(DATASETS)
