"""`segtailor data pack`: a data set repacked once for fast reading, in litdata's chunks (see `packed`)."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.data.base import Count, SegmentationDataset
from segtailor.data.image_io import read_image
from segtailor.data.loader import as_is
from segtailor.data.packed import (
    ENCODINGS,
    MANIFEST,
    UNFINISHED,
    Encoding,
    Loss,
    Manifest,
    PackedSplit,
    checksum,
    import_litdata,
)
from segtailor.data.paired import FileDataset
from segtailor.errors import SegtailorError, unknown
from segtailor.files import VOID, Color, write_atomically

QUALITY, SHARD_MB = 95, 256


def pack(
    config: DataConfig,
    out: Path,
    *,
    splits: Sequence[str] | None = None,
    encoding: str = "raw",
    quality: int | None = None,
    shards: int | None = None,
    shard_mb: int | None = None,
    progress: bool = False,
) -> Manifest:
    """Write ``splits`` (default: the recipe's two) of the data set that ``config`` names into the folder ``out``.

    Images are stored in ``encoding``, at ``config.size`` where it is set, as are the training split's targets; other
    targets keep the masks' own size. A split has ``shards`` chunk files, or files of ``shard_mb`` MiB. The result of an
    interrupted call cannot be read as a pack; the same call continues with the first unfinished split.

    Raises ``SegtailorError`` for contradictory settings, a folder with other files, too small a disk, and samples that
    cannot be read.
    """
    kind = next((known for known in ENCODINGS if known == encoding), None)
    if kind is None:
        raise unknown("--format", encoding, ENCODINGS)
    if quality is not None and not 1 <= quality <= 100:
        raise SegtailorError(f"--quality is 1 to 100, not {quality}")
    if quality is not None and kind != "jpeg":
        raise SegtailorError(f"--quality is for --format jpeg, not {kind}; leave it out, or choose jpeg")
    if any(number is not None and number < 1 for number in (shards, shard_mb)):
        raise SegtailorError("--shards and --shard-size are at least 1")
    if shards is not None and shard_mb is not None:
        raise SegtailorError("--shards and --shard-size exclude each other; keep one of them")
    if kind == "jpeg":
        quality = quality or QUALITY
    import_litdata()
    # a recipe that reads the pack chooses its samples then
    config = config.model_copy(update={"limit": None, "unlabelled": None})
    names = list(dict.fromkeys(splits or (config.train_split, config.val_split)))
    folders = {name: re.sub("[^A-Za-z0-9_-]", "_", name) for name in names}
    if len(set(folders.values())) < len(names):
        raise SegtailorError(f"the files of the splits {', '.join(names)} would have the same names; pack each alone")
    resized = {name: config.size is not None and name == config.train_split for name in names}
    sources = {name: create_dataset(config, name, training=resized[name]) for name in names}
    first = sources[names[0]]
    for source in sources.values():
        _check_source(source, first, config, kind)
    plan = {
        "data": config.model_dump(mode="json", exclude={"workers"}), "encoding": kind, "quality": quality,
        "shards": shards, "shard_mb": shard_mb, "samples": {name: len(source) for name, source in sources.items()},
    }  # fmt: skip
    encoders = {name: Encoder(source, kind, quality) for name, source in sources.items()}
    _begin(out, plan)
    _require_space(out, encoders)
    packed = {}
    for name, encoder in encoders.items():
        size = (
            {"chunk_size": math.ceil(len(encoder.source) / shards)}
            if shards
            else {"chunk_bytes": (shard_mb or SHARD_MB) * 2**20}
        )
        _write(out / folders[name], encoder, size, config.workers, progress)
        packed[name] = _describe(out / folders[name], encoder.source, resized[name])
    manifest = Manifest(
        source=first.name, classes=list(first.classes), palette=list(first.palette), mean_color=first.mean_color,
        license=first.license, encoding=kind, quality=quality, size=config.size, splits=packed,
    )  # fmt: skip
    write_atomically(out / MANIFEST, lambda file: file.write(manifest.model_dump_json(indent=1).encode()))
    (out / UNFINISHED).unlink()
    return manifest


class Encoder(Dataset[Any]):
    """The samples of ``source`` as chunks store them; errors are returned, so that they stay one line."""

    def __init__(self, source: SegmentationDataset, encoding: Encoding, quality: int | None) -> None:
        self.source, self.encoding, self.quality = source, encoding, quality

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any] | SegtailorError:
        try:
            return self.encode(index)
        except SegtailorError as error:
            return error

    def encode(self, index: int) -> dict[str, Any]:
        """Return sample ``index``; raises ``SegtailorError`` when it cannot be read."""
        sample, loss = self.source[index], torch.zeros(4, dtype=torch.float64)
        image: Tensor | bytes = sample.image.contiguous()
        target: Tensor | bytes = sample.target.contiguous()
        if self.encoding != "raw":
            target = _encoded(sample.target, "PNG", palette=self.source.palette)
        if self.encoding == "keep":
            assert isinstance(self.source, FileDataset)
            image = self.source.pairs[index].image.read_bytes()
        elif self.encoding == "png":
            # the compression level changes the size, not the time to read: undoing the row filters takes most of it
            image = _encoded(sample.image.permute(1, 2, 0), "PNG", compress_level=6)
        elif self.encoding == "jpeg":
            image = _encoded(sample.image.permute(1, 2, 0), "JPEG", quality=self.quality, subsampling=0)
            apart = (sample.image.double() - read_image(image).double()).abs()
            loss = torch.stack([torch.tensor(apart.numel()), apart.square().sum(), apart.sum(), apart.max()]).double()
        return {"name": sample.name, "image": image, "target": target, "check": checksum(image, target), "loss": loss}


def format_pack(manifest: Manifest, out: Path) -> str:
    """Return a summary for the terminal: splits, loss of the encoding, and how to read the pack."""
    at = f" at {manifest.size[0]} x {manifest.size[1]}" if manifest.size else ""
    lines = [f"{manifest.source} packed into {out}{at}"]
    for name, split in manifest.splits.items():
        taken = sum(split.files.values())
        before = f" (its files: {split.source_bytes / 1e6:.1f} MB)" if split.source_bytes is not None else ""
        shards = Count(len(split.files) - 1)  # one file is the index
        lines.append(f"  {name}: {split.samples} samples, {shards:shard}, {taken / 1e6:.1f} MB{before}")
        loss = split.loss
        lines.append(
            "    images: identical pixels"
            if loss is None
            else f"    images: JPEG quality {manifest.quality}, PSNR {loss.psnr:.1f} dB (worst image "
            f"{loss.worst_psnr:.1f}), mean absolute error {loss.mean_abs_error:.2f} of 255; targets: identical"
        )
    size = f", size: {list(manifest.size)}" if manifest.size else ""
    return "\n".join([*lines, f"read it with  data: {{name: packed, root: {out}{size}}}"])


def _encoded(pixels: Tensor, kind: str, palette: Sequence[Color] | None = None, **options: Any) -> bytes:
    picture = Image.fromarray(np.ascontiguousarray(pixels.numpy()))
    if palette is not None:
        colors = np.zeros((256, 3), np.uint8)
        colors[: len(palette)] = np.array(palette, np.uint8).reshape(-1, 3)
        colors[VOID] = 0
        picture.putpalette(colors.ravel().tolist())
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def _write(folder: Path, encoder: Encoder, size: dict[str, int], workers: int, progress: bool) -> None:
    """Write one split, unless an earlier call did; raises ``SegtailorError`` for a sample that cannot be read."""
    if folder.exists():
        return
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    # litdata's own `optimize` waits forever for a process that meets an unreadable sample
    chunks = import_litdata().streaming.Cache(str(part), **size)
    loader: DataLoader[Any] = DataLoader(
        encoder, batch_size=None, num_workers=min(workers, len(encoder)), collate_fn=as_is,
        worker_init_fn=_start_worker, prefetch_factor=4 if workers else None,
    )  # fmt: skip
    console = Console(stderr=True)
    for index, sample in enumerate(track(loader, f"packing {folder.name}", console=console, disable=not progress)):
        if isinstance(sample, SegtailorError):
            raise sample
        chunks[index] = sample
    chunks.done()
    chunks.merge()
    part.rename(folder)


def _start_worker(_: int) -> None:
    # one thread each: the processes are the parallelism; the main process handles Ctrl-C
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _describe(folder: Path, source: SegmentationDataset, resized: bool) -> PackedSplit:
    """Read a written split once and return its entry in the manifest."""
    chunks = import_litdata().StreamingDataset(str(folder))
    # values, squared, absolute and largest error of each sample
    rows = torch.stack([chunks[index]["loss"].double() for index in range(len(source))])
    values, squared, absolute, _ = rows.sum(0).tolist()
    loss = files = None
    if squared:  # some pixels changed
        loss = Loss(
            psnr=round(10 * math.log10(255**2 / (squared / values)), 2),
            worst_psnr=round(10 * math.log10(255**2 / (rows[:, 1] / rows[:, 0]).max().item()), 2),
            mean_abs_error=round(absolute / values, 4),
            largest_error=int(rows[:, 3].max()),
        )
    if isinstance(source, FileDataset):
        files = sum(path.stat().st_size for pair in source.pairs for path in {pair.image, pair.mask} if path.is_file())
    return PackedSplit(
        folder=folder.name, samples=len(source), resized_targets=resized, loss=loss, source_bytes=files,
        files={path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()},
    )  # fmt: skip


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


def _begin(out: Path, plan: dict[str, Any]) -> None:
    """Prepare ``out`` for ``plan``: the settings of the pack, with which alone an unfinished one is continued."""
    if (out / MANIFEST).exists():
        raise SegtailorError(f"{out} is a complete pack already; give another --out, or remove it first")
    if (out / UNFINISHED).exists():
        try:
            begun = json.loads((out / UNFINISHED).read_text(encoding="utf-8"))
            other = [name for name, value in plan.items() if begun.get(name) != value]
        except (ValueError, AttributeError):
            other = ["unreadable"]
        if other:
            raise SegtailorError(
                f"{out} holds an unfinished pack with other settings ({', '.join(other)}); give the same ones to "
                "continue it, another --out, or remove it"
            )
        return
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SegtailorError(f"{out} holds other files; give --out a folder that is new or empty")
    write_atomically(out / UNFINISHED, lambda file: file.write(json.dumps(plan).encode()))


def _require_space(out: Path, encoders: dict[str, Encoder]) -> None:
    """Raise when the disk cannot hold the pack, estimated from the first sample of each split."""
    need = 0
    for encoder in encoders.values():
        first = encoder.encode(0)
        parts = (first["image"], first["target"])
        need += len(encoder) * sum(len(part) if isinstance(part, bytes) else part.numel() for part in parts)
    need -= sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    free = shutil.disk_usage(out).free
    if need > free:
        raise SegtailorError(
            f"the pack takes about {need / 1e9:.1f} GB, and {out} has {free / 1e9:.1f} GB free; free some space, "
            "choose another --out, a smaller data.size or --format jpeg"
        )
