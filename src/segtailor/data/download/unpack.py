"""Unpacking zip and tar files: plain files only, and never outside the folder meant."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from segtailor.errors import SegtailorError


class Member(NamedTuple):
    """One entry: its path as stored, whether it is a plain file, how to open it, and how far it is in the archive."""

    name: str
    plain: bool
    open: Callable[[], IO[bytes] | None]
    at: int


def unpack(path: Path, parts: Mapping[str, str], root: Path, advance: Callable[[int, int | None], object]) -> int:
    """Unpack the ``parts`` of the archive at ``path`` under ``root`` and return the number of files.

    ``parts`` maps paths in the archive (a folder ends with ``/``) to paths under ``root``; the longest that fits a file
    holds. Raises ``SegtailorError`` for a path that leads out of the archive's folder, for a link or a device, none of
    which is written, and when a part is missing.
    """
    length, missing, count = path.stat().st_size, set(parts), 0
    nearest_first = sorted(parts, key=len, reverse=True)
    for member in _members(path):
        name = _inner_path(member.name, path)
        part = next((part for part in nearest_first if _belongs(name, part)), None)
        if part is None:
            continue
        if not member.plain:
            raise SegtailorError(f"{path} holds {member.name!r}, which is a link or a device; it was not unpacked")
        missing.discard(part)
        target = root / (parts[part] + name[len(part) :])
        target.parent.mkdir(parents=True, exist_ok=True)
        source = member.open()
        assert source is not None
        with source, target.open("wb") as file:
            shutil.copyfileobj(source, file, 2**20)
        count += 1
        advance(member.at, length)
    if missing:
        raise SegtailorError(f"{path} holds no {', '.join(sorted(missing))}; it is another file than expected")
    return count


def _members(path: Path) -> Iterator[Member]:
    """Yield everything but folders, in the archive's order."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if not info.is_dir():
                    plain = kind in (0, stat.S_IFREG)
                    yield Member(info.filename, plain, partial(archive.open, info), info.header_offset)
        return
    with path.open("rb") as file, tarfile.open(fileobj=file) as tar:
        for entry in tar:
            if not entry.isdir():
                yield Member(entry.name, entry.isreg(), partial(tar.extractfile, entry), file.tell())


def _belongs(name: str, part: str) -> bool:
    return name.startswith(part) if part.endswith("/") else name == part


def _inner_path(name: str, path: Path) -> str:
    inner = PurePosixPath(name.replace("\\", "/"))
    if inner.is_absolute() or ".." in inner.parts or ":" in name or "\0" in name or not inner.parts:
        raise SegtailorError(f"{path} holds the path {name!r}, which leads out of its folder; it was not unpacked")
    return inner.as_posix()
