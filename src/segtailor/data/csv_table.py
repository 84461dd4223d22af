"""``csv``: images and masks in any folders, named by a table."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from segtailor.config import DataConfig
from segtailor.data.base import some
from segtailor.data.classes_file import read_classes
from segtailor.data.folder import PLACEHOLDER, annotation_file, class_file, open_pairs
from segtailor.data.paired import FileDataset
from segtailor.data.pairing import Pair, check_missing
from segtailor.errors import SegtailorError, unknown

KIND = "a CSV or TSV with a header and the columns of data.image_column and data.mask_column"
SPLIT_COLUMN = "split"
DELIMITERS = (",", ";", "\t", "|")


class Row(NamedTuple):
    """One row of the table, and the line where it ends."""

    image: str
    mask: str
    split: str
    line: int


def create_csv(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return the rows of ``split`` in the table ``config.annotations``, in its order.

    A row belongs to the split that its column ``split`` names; a table for each split has ``{split}`` in its path
    instead. Paths are absolute, under ``config.root``, or beside the table. Classes come from ``config.classes``, else
    from ``classes.yaml`` in the root or beside the table. Raises ``SegtailorError`` for columns, cells and files that
    are missing, and for an image that is named twice.
    """
    table = annotation_file(config, split, KIND)
    if config.masks == "binary":
        raise SegtailorError("a table names one mask an image, so data.masks cannot be binary; use index or color")
    described_in = class_file(config, table) or table.parent / "classes.yaml"
    described = read_classes(described_in)
    rows, has_splits = read_table(table, config.image_column, config.mask_column)
    if has_splits:
        chosen = [row for row in rows if row.split == split]
        if not chosen:
            raise unknown(f"split of {table}", split, {row.split for row in rows}, "Its column `split` names them")
    elif PLACEHOLDER in str(config.annotations):
        chosen = rows
    else:
        raise SegtailorError(
            f"{table} does not assign rows to the split {split}; add a column `{SPLIT_COLUMN}`, or give each split a "
            "table and write {split} in data.annotations"
        )
    roots = [table.parent] if config.root is None else [config.root, table.parent]
    return open_pairs(_pairs(chosen, roots, table), config, described, described_in, split, training)


def read_table(path: Path, image_column: str, mask_column: str) -> tuple[list[Row], bool]:
    """Return the rows of the table at ``path``, and whether it has a column ``split``."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header = file.readline()
            file.seek(0)
            # the comma where no column is found
            delimiter = max(DELIMITERS, key=lambda char: len(_names(header.split(char)) & {image_column, mask_column}))
            reader = csv.DictReader(file, delimiter=delimiter, restval="")
            columns = reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
            for name, kind in ((image_column, "image"), (mask_column, "mask")):
                if name not in columns:
                    raise unknown(f"column of {path}", name, columns, f"Set data.{kind}_column to its name")
            wanted = [image_column, mask_column, *({SPLIT_COLUMN} & set(columns))]
            rows, short = [], []
            for cells in reader:
                image, mask, *split = (cells[name].strip() for name in wanted)
                if image and mask and all(split):
                    rows.append(Row(image, mask, "".join(split), reader.line_num))
                elif any(cell.strip() for name, cell in cells.items() if name is not None):
                    short.append(str(reader.line_num))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SegtailorError(f"cannot read {path} as a table: {' '.join(str(error).split())}") from error
    if short:
        missing = " or ".join(wanted)
        raise SegtailorError(f"{path}: {len(short)} rows without {missing}: line {some(short)}; fill or remove them")
    if not rows:
        raise SegtailorError(f"{path} has a header but no rows; add one for each image")
    return rows, SPLIT_COLUMN in columns


def _names(cells: Iterable[str]) -> set[str]:
    return {cell.strip().strip('"') for cell in cells}


def _pairs(rows: list[Row], roots: list[Path], table: Path) -> tuple[Pair, ...]:
    pairs: list[Pair] = []
    missing: dict[str, list[str]] = {"image": [], "mask": []}
    for row in rows:
        image, mask = _find(row.image, roots), _find(row.mask, roots)
        for kind, text, path in (("image", row.image, image), ("mask", row.mask, mask)):
            if path is None:
                missing[kind].append(f"{text} (line {row.line})")
        if image is not None and mask is not None:
            pairs.append(Pair(image, mask, _name(row.image, image, roots)))
    looked = f"looked under {' and '.join(map(str, roots))}: correct the paths or set data.root"
    check_missing(missing, bool(pairs), f"of the files listed in {table}", looked)
    counts = Counter(str(pair.image) for pair in pairs)
    if twice := sorted(path for path, count in counts.items() if count > 1):
        raise SegtailorError(f"{table} names {len(twice)} images more than once: {some(twice)}; keep one row of each")
    return tuple(pairs)


def _find(text: str, roots: list[Path]) -> Path | None:
    path = Path(text.replace("\\", "/"))
    return next((found for root in roots if (found := root / path).is_file()), None)


def _name(text: str, path: Path, roots: list[Path]) -> str:
    """Return the path without suffix, under the first root that holds it."""
    inside = next((path.relative_to(root) for root in roots if path.is_relative_to(root)), None)
    name = inside.as_posix() if inside is not None else text.replace("\\", "/").lstrip("/")
    return PurePosixPath(name).with_suffix("").as_posix()
