"""``hf``: a data set of the Hugging Face Hub, or a local one in a form that the library ``datasets`` reads."""

from __future__ import annotations

import hashlib
import io
import json
import re
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Unpack

from segtailor.config import DataConfig
from segtailor.data.base import check_classes
from segtailor.data.classes_file import ClassesFile, read_classes
from segtailor.data.folder import describe
from segtailor.data.hf_open import Opened, explained, open_split, require_datasets
from segtailor.data.hf_rows import ARRAY_START, Columns, MappedRows, StreamedRows
from segtailor.data.image_io import UnreadableFile, narrow, read_image, read_mask, turn_upright
from segtailor.data.masks import ColorMasks, color_masks, index_values
from segtailor.data.paired import Description, MaskDataset, Raw
from segtailor.data.stream import Encoded, StreamCache
from segtailor.errors import SegtailorError
from segtailor.recipes import validate

# The first epoch of a stream shows it in its own order, shuffled within blocks of so many samples.
BLOCK = 512
PART = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<first>\d+%?)?:(?P<last>\d+%?)?\])?")
ID2LABEL = "id2label.json"


class Rows(Protocol):
    """Images and masks as they are stored, by position."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int, /) -> Encoded: ...


class HubDataset(MaskDataset):
    """``rows[first + i]`` for i below ``length``, decoded; ``where`` names the data set in errors.

    ``streamed`` rows come in an order, so the first epoch follows it: it is shuffled within blocks of ``BLOCK``.
    """

    def __init__(
        self,
        rows: Rows,
        part: range,
        where: str,
        colors: ColorMasks | None,
        streamed: bool,
        **described: Unpack[Description],
    ) -> None:
        super().__init__(**described)
        self.rows, self.part, self.where, self.colors, self.streamed = rows, part, where, colors, streamed

    def __len__(self) -> int:
        return len(self.part)

    def read(self, index: int) -> Raw:
        """Return the image and the mask of row ``index``."""
        if not 0 <= index < len(self.part):
            raise IndexError(index)
        row = self.part[index]
        image_at, mask_at = f"image {row} of {self.where}", f"mask {row} of {self.where}"
        encoded = self.rows[row]
        at = image_at
        try:
            image = read_image(encoded.image)
            at = mask_at
            mask = self._read_mask(encoded.mask)
        except UnreadableFile as error:
            raise SegtailorError(f"cannot read {at}: {error}; mend or leave out this row") from error
        image = turn_upright(image, encoded.image, mask.shape)
        return Raw(image, mask, f"{self.split}-{index:06d}", image_at, mask_at)

    def _read_mask(self, content: bytes) -> NDArray[Any]:
        if content.startswith(ARRAY_START):
            return narrow(np.load(io.BytesIO(content), allow_pickle=False))
        return self.colors.read(content) if self.colors is not None else read_mask(content)

    def order(self, epoch: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return the order of training in ``epoch``: of a stream's first one, shuffled within blocks."""
        if not self.streamed or epoch > 0:
            return super().order(epoch, rng)
        blocks = [np.arange(first, min(first + BLOCK, len(self))) for first in range(0, len(self), BLOCK)]
        return np.concatenate([rng.permutation(block) for block in blocks])


def create_hf(config: DataConfig, split: str, training: bool) -> HubDataset:
    """Return a split of the Hugging Face data set ``config.source``; ``train[:80%]`` is a part of one.

    Classes come from ``config.classes``, else from the mask column's ``ClassLabel``, else from the ``id2label.json``
    that lies with the data. With ``config.streaming`` samples come as training asks for them and are kept on disk (see
    :class:`StreamCache`). Raises ``SegtailorError`` when the library is missing, when the source, split or column is
    unknown or cannot be reached, and when nothing names the classes.
    """
    datasets = require_datasets()
    if config.masks == "binary":
        raise SegtailorError("a column holds one mask an image, so data.masks cannot be binary; use index or color")
    matched = PART.fullmatch(split)
    if matched is None:
        raise SegtailorError(f"the split {split!r} is not of the form NAME or NAME[FIRST:LAST], as in train[:80%]")
    opened = open_split(config, matched["name"])
    where = f"{config.source} {matched['name']}"
    columns = Columns(str(config.source), config.image_column, config.mask_column)
    with explained(str(config.source)):
        feature = (opened.rows.features or {}).get(config.mask_column)
        selected = columns.select(datasets, opened.rows)
    described, described_in = _classes(config, feature)
    if described.license == ClassesFile.model_fields["license"].default and opened.license:
        described = described.model_copy(update={"license": opened.license})
    colors, values = None, None
    if config.masks == "color":
        colors, values = color_masks(config, described, described_in)
    rows: Rows = MappedRows(selected, columns)
    if opened.streamed:
        rows = _cached(selected, columns, opened, where, Path(datasets.config.HF_DATASETS_CACHE))
    return HubDataset(
        rows,
        slice_rows(len(rows), matched["first"], matched["last"]),
        where,
        colors,
        opened.streamed,
        **describe(config, described, values or index_values(config, described, described_in), split, training),
    )


def slice_rows(length: int, first: str | None, last: str | None) -> range:
    """Return the rows between two bounds, each a number or a percentage.

    >>> slice_rows(240, "10%", "50")
    range(24, 50)
    """

    def bound(text: str | None, default: int) -> int:
        if text is None:
            return default
        return round(int(text[:-1]) * length / 100) if text.endswith("%") else int(text)

    return range(length)[bound(first, 0) : bound(last, length)]


def _cached(rows: Any, columns: Columns, opened: Opened, where: str, cache: Path) -> StreamCache:
    key = f"{opened.key} {columns.image} {columns.mask}"
    folder = cache / "segtailor-streams" / hashlib.sha256(key.encode()).hexdigest()[:24]
    return StreamCache(folder, StreamedRows(rows, columns), opened.length, f"the stream of {where}")


def _classes(config: DataConfig, feature: Any) -> tuple[ClassesFile, str]:
    if config.classes is not None:
        return read_classes(config.classes), str(config.classes)
    where = f"the mask column of {config.source}"
    while feature is not None:
        if names := getattr(feature, "names", None):
            check_classes(where, tuple(names))
            return validate(ClassesFile, {"classes": list(names)}, where), where
        feature = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    found = _id2label(str(config.source))
    if found is None:
        raise SegtailorError(
            f"{config.source} does not name its classes; write them in a YAML ('classes: [road, car]') and set "
            "data.classes to it"
        )
    where = f"{ID2LABEL} of {config.source}"
    try:
        names_of = {int(value): str(name) for value, name in json.loads(found).items()}
    except (ValueError, AttributeError) as error:
        raise SegtailorError(f"{where} is no mapping of mask values to names; set data.classes") from error
    ordered = sorted(names_of)
    check_classes(where, tuple(names_of.values()))
    return validate(ClassesFile, {"classes": [names_of[value] for value in ordered], "values": ordered}, where), where


def _id2label(source: str) -> str | None:
    folder = Path(source).expanduser()
    if folder.is_dir():
        path = folder / ID2LABEL
        return path.read_text(encoding="utf-8") if path.is_file() else None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(source, ID2LABEL, repo_type="dataset")).read_text(encoding="utf-8")
    except Exception:  # it is not there, or not within reach: the classes must be named elsewhere
        return None
