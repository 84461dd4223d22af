"""The shards of one split: written one after the other, each with its index, and found again after an interruption."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.progress import track

from segtailor.data.pack.encode import Loss
from segtailor.data.pack.manifest import COLUMNS, Index, read_json, write_json
from segtailor.data.pack.samples import Encoded, Encoder, encode_samples
from segtailor.data.pack.shards import ShardWriter

MIB = 2**20


def shard_name(split: str, number: int) -> str:
    """Return the file name of shard ``number`` of ``split``."""
    return f"{re.sub('[^A-Za-z0-9_-]', '_', split)}-{number:05d}.tar"


def index_name(split: str, number: int) -> str:
    """Return the file name of the index of shard ``number`` of ``split``."""
    return shard_name(split, number).replace(".tar", ".json")


def finished_shards(out: Path, split: str) -> list[Index]:
    """Return the indexes of the whole shards of ``split`` in ``out``, up to the first that is missing."""
    found: list[Index] = []
    while (path := out / index_name(split, len(found))).exists():
        index = read_json(path, Index)
        shard = out / index.shard
        if not shard.exists() or shard.stat().st_size != index.bytes:
            break
        found.append(index)
    return found


def write_shards(
    out: Path, split: str, encoder: Encoder, shards: int | None, shard_mb: int, workers: int, progress: bool
) -> None:
    """Write the shards of ``split`` that are missing: ``shards`` of them, else each of about ``shard_mb`` MiB."""
    whole = finished_shards(out, split)
    number, position, total = len(whole), sum(len(index.samples) for index in whole), len(encoder)
    samples = iter(
        track(
            encode_samples(encoder, position, workers),
            f"packing {split}",
            total=total - position,
            console=Console(stderr=True),
            disable=not progress or position == total,
        )
    )
    shards = None if shards is None else min(shards, total)
    size = shard_mb * MIB if shards is None else None
    while position < total:
        # an index comes after its shard: a shard without one is written again
        stop = total if shards is None else (number + 1) * total // shards
        index = _write_shard(out / shard_name(split, number), samples, position, stop - position, size)
        write_json(out / index_name(split, number), index)
        position, number = position + len(index.samples), number + 1
    next(samples, None)  # ends the progress bar


def _write_shard(path: Path, samples: Iterator[Encoded], position: int, most: int, size: int | None) -> Index:
    """Write at most ``most`` of ``samples``, the first of which is number ``position``, until ``size`` is reached."""
    rows: list[list[str | int]] = []
    loss = Loss()
    with ShardWriter(path) as shard:
        for sample in samples:
            key = f"{position + len(rows):08d}"
            row: list[str | int] = [sample.name]
            for suffix, content, (height, width) in (
                (f".image{sample.image_suffix}", sample.image, sample.image_size),
                (".target.png", sample.target, sample.target_size),
            ):
                at = shard.add(key + suffix, content)
                row += [at, len(content), zlib.crc32(content), height, width]
            rows.append(row)
            loss = loss.plus(sample.loss)
            if len(rows) == most or (size is not None and shard.length >= size):
                break
        shard.finish()
    return Index(
        shard=path.name,
        bytes=shard.length,
        sha256=shard.hash.hexdigest(),
        columns=COLUMNS,
        samples=rows,
        loss=tuple(loss),
    )
