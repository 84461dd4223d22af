"""Repacking a data set: every sample is read once, as training or scoring would, and written into a shard."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from segtailor.config import DataConfig, Strict
from segtailor.data import create_dataset
from segtailor.data.base import SegmentationDataset
from segtailor.data.pack.encode import ENCODINGS, Encoding, Loss
from segtailor.data.pack.manifest import MANIFEST, PLAN, Manifest, PackedSplit, Shard, figures, read_json, write_json
from segtailor.data.pack.samples import Encoder
from segtailor.data.pack.shards import BLOCK
from segtailor.data.pack.split import finished_shards, index_name, shard_name, write_shards
from segtailor.data.paired import FileDataset
from segtailor.errors import SegtailorError, unknown

SHARD_MB = 256


class Plan(Strict):
    """What an unfinished pack is to become; a call with another plan cannot go on with its shards."""

    data: dict[str, Any]
    encoding: Encoding
    quality: int | None
    shards: int | None
    shard_mb: int
    samples: dict[str, int]


def pack(
    config: DataConfig,
    out: Path,
    *,
    splits: Sequence[str] | None = None,
    encoding: str = "raw",
    quality: int = 95,
    shards: int | None = None,
    shard_mb: int = SHARD_MB,
    progress: bool = False,
) -> Manifest:
    """Write ``splits`` (default: the recipe's two) of the data set that ``config`` names into the folder ``out``.

    Images are stored as ``encoding`` says, at ``config.size`` where it is set; the training split's targets follow it,
    other targets keep the masks' own size. A split has ``shards`` shards, else as many as hold ``shard_mb`` MiB each.
    An interrupted call leaves nothing that reads as a pack; the same call goes on after the last whole shard.

    Raises ``SegtailorError`` for settings that do not fit, for a folder that holds something else, for too small a
    disk, and for samples that cannot be read.
    """
    kind = _check_settings(encoding, quality, shards, shard_mb)
    # which samples a run takes is the recipe's matter, also when it reads the pack
    config = config.model_copy(update={"limit": None, "unlabelled": None})
    names = list(dict.fromkeys(splits or (config.train_split, config.val_split)))
    if len({shard_name(name, 0) for name in names}) < len(names):
        raise SegtailorError(f"the files of the splits {', '.join(names)} would have the same names; pack each alone")
    resized = {name: config.size is not None and name == config.train_split for name in names}
    sources = {name: create_dataset(config, name, training=resized[name]) for name in names}
    first = sources[names[0]]
    for source in sources.values():
        _check_source(source, first, config, kind)
    plan = Plan(
        data=config.model_dump(mode="json", exclude={"workers"}),
        encoding=kind,
        quality=quality if kind == "jpeg" else None,
        shards=shards,
        shard_mb=shard_mb,
        samples={name: len(source) for name, source in sources.items()},
    )
    encoders = {name: Encoder(source, kind, quality) for name, source in sources.items()}
    _begin(out, plan)
    _require_space(out, encoders)
    for name, encoder in encoders.items():
        write_shards(out, name, encoder, shards, shard_mb, config.workers, progress)
    manifest = Manifest(
        source=first.name,
        classes=list(first.classes),
        palette=list(first.palette),
        mean_color=first.mean_color,
        licence=first.license,
        encoding=kind,
        quality=plan.quality,
        size=config.size,
        splits={name: _describe(out, name, source, resized[name]) for name, source in sources.items()},
    )
    write_json(out / MANIFEST, manifest)
    (out / PLAN).unlink()
    return manifest


def format_pack(manifest: Manifest, out: Path) -> str:
    """Return what was packed, what it lost, and how to read it, as lines for the terminal."""
    at = f" at {manifest.size[0]} x {manifest.size[1]}" if manifest.size else ""
    lines = [f"{manifest.source} packed into {out}{at}"]
    for name, split in manifest.splits.items():
        taken = sum(shard.bytes for shard in split.shards)
        before = f" (its files: {split.source_bytes / 1e6:.1f} MB)" if split.source_bytes is not None else ""
        shards = f"{len(split.shards)} shard{'' if len(split.shards) == 1 else 's'}"
        lines.append(f"  {name}: {split.samples} samples, {shards}, {taken / 1e6:.1f} MB{before}")
        loss = split.loss
        lines.append(
            "    images: identical pixels"
            if loss is None
            else f"    images: JPEG quality {manifest.quality}, PSNR {loss.psnr:.1f} dB (worst image "
            f"{loss.worst_psnr:.1f}), mean absolute error {loss.mean_abs_error:.2f} of 255; targets: identical"
        )
    size = f", size: {list(manifest.size)}" if manifest.size else ""
    return "\n".join([*lines, f"read it with  data: {{name: packed, root: {out}{size}}}"])


def _check_settings(encoding: str, quality: int, shards: int | None, shard_mb: int) -> Encoding:
    kind = next((known for known in ENCODINGS if known == encoding), None)
    if kind is None:
        raise unknown("--format", encoding, ENCODINGS)
    if not 1 <= quality <= 100:
        raise SegtailorError(f"--quality is 1 to 100, not {quality}")
    if (shards is not None and shards < 1) or shard_mb < 1:
        raise SegtailorError("--shards and --shard-size are at least 1")
    return kind


def _check_source(source: SegmentationDataset, first: SegmentationDataset, config: DataConfig, kind: Encoding) -> None:
    if len(source) == 0:
        raise SegtailorError(f"the split {source.split} of {source.name} holds no images")
    if (source.classes, source.palette) != (first.classes, first.palette):
        raise SegtailorError(
            f"{source.name}: the splits {first.split} and {source.split} differ in classes; pack each alone (--splits)"
        )
    if kind == "keep" and not isinstance(source, FileDataset):
        raise SegtailorError(f"--format keep copies image files, and {config.name} has none; choose raw, png or jpeg")
    if kind == "keep" and config.size is not None:
        raise SegtailorError(
            "--format keep copies image files as they are; leave out data.size (--data.size null), or choose raw, png "
            "or jpeg"
        )


def _begin(out: Path, plan: Plan) -> None:
    if (out / MANIFEST).exists():
        raise SegtailorError(f"{out} is a whole pack already; give another --out, or remove it first")
    if (out / PLAN).exists():
        begun = read_json(out / PLAN, Plan)
        other = [name for name in Plan.model_fields if getattr(begun, name) != getattr(plan, name)]
        if other:
            raise SegtailorError(
                f"{out} holds an unfinished pack with other settings ({', '.join(other)}); give the same ones to go "
                "on, another --out, or remove it"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SegtailorError(f"{out} holds other files; give --out a folder that is new or empty")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / PLAN, plan)


def _require_space(out: Path, encoders: dict[str, Encoder]) -> None:
    """Raise when the disk cannot hold what is left to write, reckoned from the first sample of each split."""
    need = 0
    for name, encoder in encoders.items():
        left = len(encoder) - sum(len(index.samples) for index in finished_shards(out, name))
        if left:
            first = encoder.encode(0)
            need += left * (len(first.image) + len(first.target) + 3 * BLOCK)
    free = shutil.disk_usage(out).free
    if need > free:
        raise SegtailorError(
            f"the pack takes about {need / 1e9:.1f} GB, and {out} has {free / 1e9:.1f} GB free; free some space, "
            "choose another --out, a smaller data.size or --format jpeg"
        )


def _describe(out: Path, name: str, source: SegmentationDataset, resized: bool) -> PackedSplit:
    shards, loss = [], Loss()
    for number, index in enumerate(finished_shards(out, name)):
        loss = loss.plus(Loss(*index.loss))
        shards.append(
            Shard(
                file=shard_name(name, number),
                index=index_name(name, number),
                samples=len(index.samples),
                bytes=index.bytes,
                sha256=index.sha256,
            )
        )
    files = None
    if isinstance(source, FileDataset):
        files = sum(path.stat().st_size for pair in source.pairs for path in {pair.image, pair.mask} if path.is_file())
    return PackedSplit(
        samples=len(source), resized_targets=resized, loss=figures(loss), source_bytes=files, shards=shards
    )
