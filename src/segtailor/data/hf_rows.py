"""The image and the mask of a row, as the bytes of a file, whatever kind of column holds them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from segtailor.data.hf_open import explained
from segtailor.data.stream import Encoded
from segtailor.errors import SegtailorError, unknown

ARRAY_START = b"\x93NUMPY"


class Columns:
    """Which columns of ``source`` hold the images and the masks; masks may also be numbers in lists or arrays."""

    def __init__(self, source: str, image: str, mask: str) -> None:
        self.source, self.image, self.mask = source, image, mask
        folder = Path(source).expanduser()
        self.folder = folder if folder.is_dir() else None

    def select(self, datasets: Any, rows: Any) -> Any:
        """Return ``rows`` with these columns only, files not decoded; raises ``SegtailorError`` for other columns."""
        if rows.column_names is None:
            rows = rows._resolve_features()
        for field, name in (("image_column", self.image), ("mask_column", self.mask)):
            if name not in rows.column_names:
                raise unknown(f"column of {self.source}", name, rows.column_names, f"Set data.{field}")
            feature = rows.features[name]
            kind = getattr(feature, "dtype", None)
            if isinstance(feature, datasets.Image) or kind in ("string", "large_string", "binary", "large_binary"):
                rows = rows.cast_column(name, datasets.Image(decode=False))
            elif field == "image_column" or not _is_array(feature):
                raise SegtailorError(f"the column {name} of {self.source} holds {feature}, no images; set data.{field}")
        return rows.select_columns([self.image, self.mask]).with_format(None)

    def encode(self, row: dict[str, Any], position: int) -> Encoded:
        """Return the files of one row; raises ``SegtailorError`` for a cell that holds nothing."""
        return Encoded(
            self._bytes(row[self.image], self.image, position), self._bytes(row[self.mask], self.mask, position)
        )

    def _bytes(self, cell: Any, column: str, position: int) -> bytes:
        if isinstance(cell, dict):
            content, path = cell.get("bytes"), cell.get("path")
            if content:
                return bytes(content)
            if path:
                return self._file(path)
        elif cell is not None:
            file = io.BytesIO()
            try:
                np.save(file, np.asarray(cell, np.int32), allow_pickle=False)
            except (ValueError, TypeError, OverflowError) as error:
                raise SegtailorError(f"row {position} of {self.source}: {column} is no array of numbers") from error
            return file.getvalue()
        raise SegtailorError(f"row {position} of {self.source} has no {column}; leave such rows out")

    def _file(self, path: str) -> bytes:
        inside = self.folder / path if self.folder is not None else None
        if inside is not None and inside.is_file():
            return inside.read_bytes()
        import fsspec

        with explained(f"{self.source} (file {path})"), fsspec.open(path) as file:
            return bytes(file.read())


class MappedRows:
    """Rows of a data set on disk."""

    def __init__(self, rows: Any, columns: Columns) -> None:
        self.rows, self.columns = rows, columns

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, position: int) -> Encoded:
        """Return the files of row ``position``."""
        return self.columns.encode(self.rows[position], position)


class StreamedRows:
    """Starts a stream at any row; handed to a :class:`StreamCache`."""

    def __init__(self, rows: Any, columns: Columns) -> None:
        self.rows, self.columns = rows, columns

    def __call__(self, first: int) -> Iterator[Encoded]:
        """Yield the files of the rows from ``first`` on."""
        rows = self.rows.skip(first) if first else self.rows
        for position, row in enumerate(rows, first):
            yield self.columns.encode(row, position)


def _is_array(feature: Any) -> bool:
    # the kinds of lists and of arrays that versions of the library have had
    return isinstance(feature, list) or hasattr(feature, "feature") or hasattr(feature, "shape")
