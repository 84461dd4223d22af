"""What lies beside the shards of a pack: the manifest of the whole, and the index of each shard."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import NonNegativeInt, PositiveInt, ValidationError

from segtailor.config import PositiveSize, Strict
from segtailor.data.pack.encode import Encoding, Loss
from segtailor.errors import SegtailorError
from segtailor.files import Color

MANIFEST = "manifest.json"
PLAN = "unfinished.json"
"""What an unfinished pack is to become; the manifest takes its place when every shard is whole."""

M = TypeVar("M", bound=Strict)


class LossFigures(Strict):
    """The stated loss of a split: over all pixels and channels, values 0 to 255."""

    psnr: float
    worst_psnr: float
    mean_abs_error: float
    largest_error: NonNegativeInt


class Shard(Strict):
    """One tar file and its index, with what they must be to be whole."""

    file: str
    index: str
    samples: PositiveInt
    bytes: PositiveInt
    sha256: str


class PackedSplit(Strict):
    """The shards of one split.

    ``resized_targets``: targets were resized along with the images; ``source_bytes``: what the source's files take.
    """

    samples: NonNegativeInt
    resized_targets: bool
    loss: LossFigures | None
    source_bytes: int | None
    shards: list[Shard]


class Manifest(Strict):
    """Everything but the samples."""

    format: Literal["segtailor-pack"] = "segtailor-pack"
    version: Literal[1] = 1
    source: str
    classes: list[str]
    palette: list[Color]
    mean_color: Color
    licence: str
    encoding: Encoding
    quality: int | None
    size: PositiveSize | None
    splits: dict[str, PackedSplit]


class Index(Strict):
    """Where the samples of one shard lie: a row of ``columns`` for each; offsets and lengths are bytes of the tar."""

    shard: str
    bytes: PositiveInt
    sha256: str
    columns: list[str]
    samples: list[list[Any]]
    loss: tuple[int, int, int, int, float]


COLUMNS = ["name", *(f"{kind}_{what}" for kind in ("image", "target") for what in ("at", "bytes", "crc32", "h", "w"))]


def figures(loss: Loss) -> LossFigures | None:
    """Return what ``loss`` comes to; None when every pixel is as it was."""
    if not loss.squared:
        return None
    return LossFigures(
        psnr=round(_psnr(loss.squared / loss.pixels), 2),
        worst_psnr=round(_psnr(loss.worst), 2),
        mean_abs_error=round(loss.absolute / loss.pixels, 4),
        largest_error=loss.largest,
    )


def _psnr(error: float) -> float:
    return 10 * math.log10(255**2 / error)


def read_manifest(root: Path) -> Manifest:
    """Return the manifest of the pack in ``root``; raises ``SegtailorError`` where there is none, or half of one."""
    path = root / MANIFEST
    if path.exists():
        return read_json(path, Manifest)
    if (root / PLAN).exists():
        raise SegtailorError(
            f"the pack in {root} is unfinished; give the same `segtailor data pack` command again, it goes on"
        )
    if not root.is_dir():
        raise SegtailorError(f"no such folder: {root}; set data.root to what `segtailor data pack` wrote")
    raise SegtailorError(f"no pack in {root}: {MANIFEST} is missing; `segtailor data pack` writes it")


def read_json(path: Path, kind: type[M]) -> M:
    """Read ``path`` as ``kind``; raises ``SegtailorError``, on one line, when it is damaged or of another version."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise SegtailorError(
            f"{path} is damaged or of another version ({where + ': ' if where else ''}{first['msg']}); "
            "copy it anew, or pack again"
        ) from None
    except OSError as error:
        raise SegtailorError(f"cannot read {path}: {error.strerror}; copy it anew, or pack again") from error


def write_json(path: Path, value: Strict) -> None:
    """Write ``value`` to ``path``: whole, or not at all."""
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        json.dump(value.model_dump(mode="json"), file)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
