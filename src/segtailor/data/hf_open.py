"""Opening a split with the library ``datasets``, and telling in one line why it does not open."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from segtailor.config import DataConfig
from segtailor.errors import SegtailorError, unknown


class Opened(NamedTuple):
    """A split: a ``Dataset``, or an ``IterableDataset`` with a key of its content and its length where it is known."""

    rows: Any
    streamed: bool
    license: str
    key: str = ""
    length: int | None = None


def require_datasets() -> Any:
    """Return the library ``datasets``; raises ``SegtailorError`` when it is not installed."""
    try:
        import datasets
    except ImportError:
        raise SegtailorError('reading Hugging Face data sets needs the extra hf: pip install "segtailor[hf]"') from None
    return datasets


def open_split(config: DataConfig, name: str) -> Opened:
    """Open the split ``name`` of ``config.source``: a folder of ``save_to_disk``, a folder of files, or a Hub id.

    Folders of ``save_to_disk`` are read in place, also when ``config.streaming``. Raises ``SegtailorError``.
    """
    datasets = require_datasets()
    source = config.source
    if source is None:
        raise SegtailorError("the data set 'hf' needs data.source: the id of a Hugging Face data set, or a folder")
    folder = Path(source).expanduser()
    with explained(source):
        if (folder / "dataset_dict.json").is_file():
            splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
            _require(name, splits, source)
            return _saved(datasets, folder / name)
        if (folder / "state.json").is_file():
            opened = _saved(datasets, folder)
            _require(name, [str(opened.rows.split or "train")], source)
            return opened
        if folder.is_file():
            raise SegtailorError(f"data.source is the file {folder}; set it to the folder of the data set")
        if not folder.is_dir() and (source.startswith((".", "/", "~")) or source.count("/") > 1 or "\\" in source):
            raise SegtailorError(f"no such folder: {folder}; set data.source to a folder or to the id of a data set")
        builder = datasets.load_dataset_builder(str(folder) if folder.is_dir() else source, config.config)
        known = builder.info.splits or getattr(builder.config, "data_files", None)
        if known:
            _require(name, known, source)
        stated = str(builder.info.license or "")
        if not config.streaming:
            builder.download_and_prepare()
            return Opened(builder.as_dataset(split=name), False, stated)
        rows = builder.as_streaming_dataset(split=name)
        key = f"{builder.cache_dir} {builder.hash} {name}"
        return Opened(rows, True, stated, key, _length(builder, name))


@contextmanager
def explained(source: str) -> Iterator[None]:
    """Turn what the libraries raise for ``source`` into a ``SegtailorError`` of one line."""
    try:
        yield
    except SegtailorError:
        raise
    except MemoryError:
        raise
    except Exception as error:  # of datasets, huggingface_hub, httpx, pyarrow, fsspec: whatever it is, one line
        text, kind = " ".join(str(error).split())[:300], type(error).__name__
        if "gated" in text.lower():
            text = "it is gated: accept its terms on the Hub and log in with `hf auth login`"
        elif kind in ("DatasetNotFoundError", "RepositoryNotFoundError"):
            text = "the Hub has none of this name, or it is private: mend data.source or log in with `hf auth login`"
        elif isinstance(error, ConnectionError) or kind in ("OfflineModeIsEnabled", "LocalEntryNotFoundError"):
            text = "the Hub cannot be reached and it is not in the cache; load it once online or give a folder"
        elif "config" in text.lower():
            text = f"{text}; set data.config"
        raise SegtailorError(f"cannot open the Hugging Face data set {source}: {text or kind}") from error


def _saved(datasets: Any, folder: Path) -> Opened:
    rows = datasets.load_from_disk(str(folder))
    return Opened(rows, False, str(rows.info.license or ""))


def _require(name: str, splits: Iterable[str], source: str) -> None:
    if name not in (known := [str(split) for split in splits]):
        raise unknown(f"split of {source}", name, known, "Set data.train_split and data.val_split to splits it has")


def _length(builder: Any, name: str) -> int | None:
    """Return the number of rows that the description or the Parquet files' footers state."""
    if builder.info.splits and name in builder.info.splits:
        return int(builder.info.splits[name].num_examples) or None
    files = [str(file) for file in (getattr(builder.config, "data_files", None) or {}).get(name, ())]
    if not files or not all(file.endswith(".parquet") for file in files):
        return None
    import fsspec
    from pyarrow import parquet

    count = 0
    for file in files:
        with fsspec.open(file) as opened:
            count += parquet.ParquetFile(opened).metadata.num_rows
    return count
