"""Reading a pack through the same interface as any other data set."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from segtailor.config import DataConfig
from segtailor.data.base import Sample, check_classes, some
from segtailor.data.classes_file import ClassesFile
from segtailor.data.image_io import UnreadableFile, resize_image, resize_mask
from segtailor.data.pack.encode import decode_image, decode_target
from segtailor.data.pack.manifest import COLUMNS, Index, Manifest, PackedSplit, read_json, read_manifest
from segtailor.data.pack.shards import OpenShards
from segtailor.data.paired import MaskDataset, MaskValues, Raw
from segtailor.errors import SegtailorError, unknown
from segtailor.files import Size

AGAIN = "copy the shard anew, or pack again"


class PackedDataset(MaskDataset):
    """One split of a pack; samples, classes, colours and licence are those of the data set that was packed.

    Samples may be read in any order, by any number of workers; in their own order they are read front to back. Every
    image and target is checked against its CRC-32 each time.
    """

    def __init__(self, root: Path, manifest: Manifest, split: str, size: Size | None, training: bool) -> None:
        described = ClassesFile(
            classes=manifest.classes,
            palette=manifest.palette,
            mean_color=manifest.mean_color,
            license=manifest.licence,
        )
        config = DataConfig(name=manifest.source, size=size)
        values = MaskValues({index: index for index in range(len(manifest.classes))})
        super().__init__(config, split, training, described, values)
        packed = manifest.splits[split]
        self.root, self.encoding = root, manifest.encoding
        _require_whole(root, split, packed)
        self._shards = OpenShards([root / shard.file for shard in packed.shards])
        self._names, self._places = _read_indexes(root, split, packed)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, index: int) -> Raw:
        """Return image and target as they were packed."""
        shard, *image, height, width = (int(value) for value in self._places[index][:6])
        target_at = [int(value) for value in self._places[index][6:]]
        name, where = str(self._names[index]), str(self._shards.paths[shard])
        size, target_size = (height, width), (target_at[3], target_at[4])
        try:
            mask = decode_target(self._content(shard, target_at[:3], name), target_size)
            pixels = decode_image(self._content(shard, image, name), self.encoding, size, target_size)
        except UnreadableFile as error:
            raise SegtailorError(f"cannot read the sample {name} of {where}: {error}; {AGAIN}") from error
        return Raw(pixels, mask, name, f"{name} in {where}", f"{name} in {where}")

    def __getitem__(self, index: int, /) -> Sample:
        """Return sample ``index``; raises ``SegtailorError`` when its shard is damaged."""
        image, target, name, *_ = self.read(index)
        if self.size is not None:
            image = resize_image(image, self.size)
            if self.training:
                target = resize_mask(target, self.size)
        return Sample(image, torch.from_numpy(target), name)

    def _content(self, shard: int, place: Sequence[int], name: str) -> NDArray[np.uint8]:
        at, length, crc = place
        where = self._shards.paths[shard]
        try:
            content = self._shards.read(shard, at, length)
        except OSError as error:
            raise SegtailorError(f"cannot read {where}: {error.strerror}; {AGAIN}") from error
        if content.size < length or zlib.crc32(content.data) != crc:
            raise SegtailorError(f"{where} is damaged at the sample {name} (its checksum is another); {AGAIN}")
        return content


def create_packed(config: DataConfig, split: str, training: bool) -> PackedDataset:
    """Return a split of the pack in ``config.root``, which ``segtailor data pack`` wrote.

    Images that were resized on packing keep that size: ``config.size`` is it, or is left out. Raises ``SegtailorError``
    for a pack that is missing, unfinished or damaged, for another size, and for scoring on targets that were resized.
    """
    if config.root is None:
        raise SegtailorError("the data set 'packed' needs data.root: the folder that `segtailor data pack` wrote")
    manifest = read_manifest(config.root)
    check_classes(str(config.root), tuple(manifest.classes))
    if split not in manifest.splits:
        raise unknown(f"split of the pack in {config.root}:", split, manifest.splits, "Pack it with --splits")
    if manifest.size is not None and config.size not in (None, manifest.size):
        raise SegtailorError(
            f"the pack in {config.root} was made at data.size {list(manifest.size)}, not {list(config.size or ())}; "
            "set data.size to that, or pack again without data.size"
        )
    if not training and manifest.splits[split].resized_targets:
        raise SegtailorError(
            f"the targets of {split} in {config.root} were resized for training, and scores are taken at the masks' "
            "own size; score another split, or pack again without data.size"
        )
    return PackedDataset(config.root, manifest, split, config.size or manifest.size, training)


def _require_whole(root: Path, split: str, packed: PackedSplit) -> None:
    wrong = []
    for shard in packed.shards:
        path = root / shard.file
        length = path.stat().st_size if path.is_file() else None
        if length != shard.bytes:
            wrong.append(f"{shard.file} ({'missing' if length is None else f'{length} of {shard.bytes} bytes'})")
    if wrong:
        count = f"{len(wrong)} of {len(packed.shards)} shards"
        raise SegtailorError(f"the pack in {root} is damaged, split {split}: {count} not whole: {some(wrong)}; {AGAIN}")


def _read_indexes(root: Path, split: str, packed: PackedSplit) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the names of all samples, and for each its shard and the rest of its row."""
    names: list[str] = []
    places: list[list[int]] = []
    for number, shard in enumerate(packed.shards):
        index = read_json(root / shard.index, Index)
        if index.columns != COLUMNS or (index.shard, index.sha256, len(index.samples)) != (
            shard.file,
            shard.sha256,
            shard.samples,
        ):
            raise SegtailorError(f"{root / shard.index} is not the index of {shard.file}; {AGAIN}")
        names += [str(row[0]) for row in index.samples]
        places += [[number, *row[1:]] for row in index.samples]
    if len(names) != packed.samples:
        raise SegtailorError(f"the pack in {root} is damaged, split {split}: its indexes do not add up; {AGAIN}")
    # arrays, which forked workers share; Python's objects are copied as they are counted
    return np.array(names, np.str_), np.array(places, np.int64).reshape(-1, len(COLUMNS))
