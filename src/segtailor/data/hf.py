"""``hf``: a data set of the Hugging Face Hub, or a local one in a form that the library ``datasets`` reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segtailor.config import DataConfig
from segtailor.data.base import check_classes
from segtailor.data.classes_file import ClassesFile, read_classes
from segtailor.data.image_io import UnreadableFile, narrow, read_image, read_mask, turn_upright
from segtailor.data.masks import ColorMasks, color_masks, index_values
from segtailor.data.paired import MaskDataset, MaskValues, Raw
from segtailor.errors import SegtailorError, install, unknown
from segtailor.hub import ask_hub, explain_hub
from segtailor.recipes import validate

PART = re.compile(r"(?P<name>[^\[\]]+)(\[(?P<first>\d+%?)?:(?P<last>\d+%?)?\])?")
ID2LABEL = "id2label.json"


class HubDataset(MaskDataset):
    """The rows ``part`` of a ``datasets.Dataset`` of encoded files.

    ``source`` is the id or the folder of the data set, ``where`` names it and the split in errors.
    """

    def __init__(
        self,
        rows: Any,
        part: range,
        source: str,
        where: str,
        config: DataConfig,
        split: str,
        training: bool,
        described: ClassesFile,
        values: MaskValues,
        colors: ColorMasks | None,
    ) -> None:
        super().__init__(config, split, training, described, values)
        self.rows, self.part, self.source, self.where, self.colors = rows, part, source, where, colors
        self.columns = config.image_column, config.mask_column

    def __len__(self) -> int:
        return len(self.part)

    def read(self, index: int) -> Raw:
        """Return the image and the mask of row ``index``."""
        if not 0 <= index < len(self.part):
            raise IndexError(index)
        row = self.part[index]
        image_at, mask_at = f"image {row} of {self.where}", f"mask {row} of {self.where}"
        cells = self.rows[row]
        image_cell, mask_cell = (self._content(cells[column], row, column) for column in self.columns)
        at = image_at
        try:
            image = read_image(image_cell)
            at = mask_at
            mask = self._mask(mask_cell)
        except UnreadableFile as error:
            raise SegtailorError(f"cannot read {at}: {error}; fix or remove this row") from error
        return Raw(turn_upright(image, image_cell, mask.shape), mask, f"{self.split}-{index:06d}", image_at, mask_at)

    def _content(self, cell: Any, row: int, column: str) -> Any:
        """Return the content of the file in ``cell``, or its numbers."""
        content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
        if content:
            return content
        if path:
            inside = Path(self.source).expanduser() / path
            return inside.read_bytes() if inside.is_file() else _download(path, self.source)
        raise SegtailorError(f"row {row} of {self.source} has no {column}; remove such rows")

    def _mask(self, cell: Any) -> NDArray[Any]:
        if isinstance(cell, bytes):
            return self.colors.read(cell) if self.colors is not None else read_mask(cell)
        try:
            mask = np.asarray(cell)
            if (mask != (whole := mask.astype(np.int32))).any():
                raise UnreadableFile("its numbers are not whole, as class indices are")
            mask = narrow(whole)
        except (ValueError, TypeError, OverflowError) as error:
            raise UnreadableFile("it is no array of numbers") from error
        mask = mask[0] if mask.ndim == 3 and len(mask) == 1 else mask
        if mask.ndim != 2:
            raise UnreadableFile(f"it has the shape {mask.shape}, not (height, width)")
        return mask


def create_hf(config: DataConfig, split: str, training: bool) -> HubDataset:
    """Return a split of the Hugging Face data set ``config.source``; ``train[:80%]`` is a part of one.

    Classes come from ``config.classes``, else from the mask column's ``ClassLabel``, else from the ``id2label.json``
    beside the data. Raises ``SegtailorError`` when the library is missing, when the source, split or column is unknown
    or cannot be reached, and when nothing names the classes.
    """
    try:
        import datasets
    except ImportError:
        raise SegtailorError(f"reading Hugging Face data sets needs datasets: {install('hf')}") from None
    if config.source is None:
        raise SegtailorError("the data set 'hf' needs data.source: the id of a Hugging Face data set, or a folder")
    if config.masks == "binary":
        raise SegtailorError("a column holds one mask an image, so data.masks cannot be binary; use index or color")
    matched = PART.fullmatch(split)
    if matched is None:
        raise SegtailorError(f"the split {split!r} is not of the form NAME or NAME[FIRST:LAST], as in train[:80%]")
    with _explained(config.source), ask_hub():
        rows, stated_license = _open(datasets, config, config.source, matched["name"])
        feature = rows.features.get(config.mask_column)
        rows = _select(datasets, rows, config.source, {"image": config.image_column, "mask": config.mask_column})
    described, described_in = _classes(config, config.source, feature)
    if "license" not in described.model_fields_set and stated_license:
        described = described.model_copy(update={"license": stated_license})
    colors: ColorMasks | None = None
    values: MaskValues
    if config.masks == "color":
        colors, values = color_masks(config, described, described_in)
    else:
        values = index_values(config, described, described_in)
    part = slice_rows(len(rows), matched["first"], matched["last"])
    where = f"{config.source} {matched['name']}"
    return HubDataset(rows, part, config.source, where, config, split, training, described, values, colors)


def slice_rows(length: int, first: str | None, last: str | None) -> range:
    """Return the rows between two bounds, each a number or a percentage.

    >>> slice_rows(240, "10%", "50")
    range(24, 50)
    """
    start, stop = (
        round(int(bound[:-1]) * length / 100) if bound.endswith("%") else int(bound)
        for bound in (first or "0", last or "100%")
    )
    return range(length)[start:stop]


def _open(datasets: Any, config: DataConfig, source: str, name: str) -> tuple[Any, str]:
    """Return the split ``name`` of a folder of ``save_to_disk``, a folder of files or a Hub id, and its license."""
    folder = Path(source).expanduser()
    if (folder / "dataset_dict.json").is_file():
        _require(name, json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"], source)
        rows = datasets.load_from_disk(str(folder / name))
        return rows, str(rows.info.license or "")
    if (folder / "state.json").is_file():
        rows = datasets.load_from_disk(str(folder))
        _require(name, [str(rows.split or "train")], source)
        return rows, str(rows.info.license or "")
    if folder.is_file():
        raise SegtailorError(f"data.source is the file {folder}; set it to the folder of the data set")
    if not folder.is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source):
        raise SegtailorError(f"no such folder: {folder}; set data.source to a folder or to the id of a data set")
    builder = datasets.load_dataset_builder(str(folder) if folder.is_dir() else source, config.config)
    if known := builder.info.splits or getattr(builder.config, "data_files", None):
        _require(name, known, source)
    builder.download_and_prepare()
    return builder.as_dataset(split=name), str(builder.info.license or "")


def _require(name: str, splits: Iterable[str], source: str) -> None:
    if name not in (known := [str(split) for split in splits]):
        raise unknown(f"split of {source}", name, known, "Set data.train_split and data.val_split to splits it has")


def _select(datasets: Any, rows: Any, source: str, columns: dict[str, str]) -> Any:
    """Return ``rows`` with only the ``columns`` of images and masks, files not decoded."""
    for kind, name in columns.items():
        if name not in rows.column_names:
            raise unknown(f"column of {source}", name, rows.column_names, f"Set data.{kind}_column")
        feature = rows.features[name]
        if isinstance(feature, datasets.Image) or str(getattr(feature, "dtype", None)).endswith(("string", "binary")):
            rows = rows.cast_column(name, datasets.Image(decode=False))
        # masks may also be lists or arrays; the classes of these features differ between versions of the library
        elif kind == "image" or not (isinstance(feature, list) or {"feature", "shape"} & set(dir(feature))):
            raise SegtailorError(f"the column {name} of {source} holds {feature}, no images; set data.{kind}_column")
    return rows.select_columns(list(columns.values())).with_format(None)


def _classes(config: DataConfig, source: str, feature: Any) -> tuple[ClassesFile, str]:
    if config.classes is not None:
        return read_classes(config.classes), str(config.classes)
    where = f"the mask column of {source}"
    while feature is not None:
        if names := getattr(feature, "names", None):
            check_classes(where, tuple(names))
            return validate(ClassesFile, {"classes": list(names)}, where), where
        feature = feature[0] if isinstance(feature, list) and feature else getattr(feature, "feature", None)
    found = _id2label(source)
    if found is None:
        raise SegtailorError(
            f"{source} does not name its classes; write them in a YAML ('classes: [road, car]') and set data.classes "
            "to it"
        )
    where = f"{ID2LABEL} of {source}"
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
        with ask_hub():
            return Path(hf_hub_download(source, ID2LABEL, repo_type="dataset")).read_text(encoding="utf-8")
    except Exception:  # missing or unreachable: the classes must be named elsewhere
        return None


def _download(path: str, source: str) -> bytes:
    import fsspec

    with _explained(f"{source} (file {path})"), fsspec.open(path) as file:
        return bytes(file.read())


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Turn any error of the libraries into a one-line ``SegtailorError`` that names ``source``."""
    try:
        yield
    except (SegtailorError, MemoryError):
        raise
    except Exception as error:  # of datasets, huggingface_hub, httpx, pyarrow or fsspec: always one line
        text, kind = " ".join(str(error).split())[:300], type(error).__name__
        if known := explain_hub(error, source):
            text = known
        elif "config" in text.lower():
            text = f"{text}; set data.config"
        raise SegtailorError(f"cannot open the Hugging Face data set {source}: {text or kind}") from error
