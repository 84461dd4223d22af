"""`segtailor data get`: fetching (by pooch), checking and unpacking a data set; complete files are kept."""

from __future__ import annotations

import json
import logging
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, TypeVar

import pooch
from rich.console import Console
from rich.progress import track
from tqdm import tqdm

from segtailor.data.download.catalogue import Archive, Entry
from segtailor.data.download.convert import SCRATCH
from segtailor.errors import SegtailorError, causes, reason
from segtailor.files import write_atomically

T = TypeVar("T")
FOLDER = "downloads"
"""Where archives are kept, under the root, until they are unpacked."""
DONE = ".segtailor-get.json"
"""Lists what is unpacked: the names of archives, and CONVERTED."""
CONVERTED = "converted"
RETRIES = 4
"""Further tries at each address; pooch waits 1, 2, 3, ... seconds between them."""
TIMEOUT = 60.0
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


def get(entry: Entry, root: Path | None = None, *, progress: bool = False) -> str:
    """Fetch ``entry`` into ``root`` (default: where its reader looks) and return what was done, for the terminal.

    Archives are fetched, checked, unpacked and removed one after the other. After an interruption the same call
    continues with the incomplete archive; it does nothing when all is there. Raises ``SegtailorError``, on one line,
    for too small a disk, addresses without the file, and a wrong archive.
    """
    root = root or entry.root
    if root.exists() and not root.is_dir():
        raise SegtailorError(f"{root} is a file; give --root a folder")
    done = _read_done(root)
    left = [archive for archive in entry.archives if archive.file not in done]
    if not left and (entry.convert is None or CONVERTED in done):
        _tidy(root)
        return f"{entry.label} is complete in {root}; remove {root / DONE} to fetch it again"
    _require_space(entry.label, left, root)
    for archive in left:
        path = fetch(archive, root / FOLDER, progress)
        unpack(path, archive.parts, root, progress)
        done = _write_done(root, [*done, archive.file])
        path.unlink()
    converted = ""
    if entry.convert is not None:
        converted = "; " + entry.convert(root, partial(_track, progress=progress))
        _write_done(root, [*done, CONVERTED])
    _tidy(root)
    variant = f", variant: {entry.variant}" if entry.variant else ""
    read = f"read it with  data: {{name: {entry.known.name}{variant}, root: {root}}}"
    return f"{entry.label} is in {root}{converted}\n{read}"


def fetch(archive: Archive, folder: Path, progress: bool = False) -> Path:
    """Return ``folder / archive.file``: the complete file that is there, or from the first address that has it.

    Raises ``SegtailorError``, on one line, when no address does.
    """
    pooch.get_logger().setLevel(logging.WARNING)
    target, reasons = folder / archive.file, []
    for url in archive.urls:
        store = pooch.create(
            folder, "", registry={archive.file: archive.checksum}, urls={archive.file: url}, retry_if_failed=RETRIES
        )
        bar = {"desc": f"fetching {archive.file}", "unit": "B", "unit_scale": True, "disable": not progress}
        try:
            with tqdm(total=archive.length, **bar) as shown:
                store.fetch(archive.file, downloader=pooch.HTTPDownloader(progressbar=shown, timeout=TIMEOUT))
        except (OSError, ValueError) as error:  # pooch raises ValueError for a wrong checksum
            why = reason(causes(error)[-1])
            reasons.append(f"{url}: {f'it is not {archive.checksum}' if 'hash' in why else why}")
            continue
        problem = None if archive.checksum else _damage(target)
        if problem is None:
            return target
        target.unlink()
        reasons.append(f"{url}: {problem}")
    raise SegtailorError(
        f"cannot fetch {archive.file} ({'; '.join(reasons)}); check the network and give the same command again, or "
        f"put the right file into {folder} yourself"
    )


class Member(NamedTuple):
    """One entry: its path as stored, whether it is a plain file, and how to open it."""

    name: str
    plain: bool
    open: Callable[[], IO[bytes] | None]


def unpack(path: Path, parts: Mapping[str, str], root: Path, progress: bool = False) -> int:
    """Unpack the ``parts`` of the archive at ``path`` under ``root`` and return the number of files.

    ``parts`` maps paths in the archive (a folder ends with ``/``) to paths under ``root``; the longest that matches a
    file applies. Raises ``SegtailorError`` for a path that leads out of the archive's folder, for a link or a device,
    none of which is written, and when a part is missing.
    """
    missing, count = set(parts), 0
    for member in _track(_members(path), f"unpacking {path.name}", progress):
        name = _inner_path(member.name, path)
        matching = [part for part in parts if name == part or (part.endswith("/") and name.startswith(part))]
        part = max(matching, key=len, default=None)
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
    if missing:
        raise SegtailorError(f"{path} holds no {', '.join(sorted(missing))}; it is not the expected archive")
    return count


def _members(path: Path) -> Iterator[Member]:
    """Yield everything but folders, in the archive's order."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if not info.is_dir():
                    yield Member(info.filename, kind in (0, stat.S_IFREG), partial(archive.open, info))
        return
    with tarfile.open(path) as tar:
        for entry in tar:
            if not entry.isdir():
                yield Member(entry.name, entry.isreg(), partial(tar.extractfile, entry))
        # a compressed stream is checked where it ends, behind the last member
        while tar.fileobj and tar.fileobj.read(2**20):
            pass


def _inner_path(name: str, path: Path) -> str:
    inner = PurePosixPath(name.replace("\\", "/"))
    if inner.is_absolute() or ".." in inner.parts or ":" in name or "\0" in name or not inner.parts:
        raise SegtailorError(f"{path} holds the path {name!r}, which leads out of its folder; it was not unpacked")
    return inner.as_posix()


def _damage(path: Path) -> str | None:
    """Read everything in an archive once; return what is damaged, by the CRC of each file or of the stream."""
    try:
        for member in _members(path):
            file = member.open() if member.plain else None
            while file and file.read(2**20):
                pass
    except DAMAGED as error:
        return f"it is no whole zip or tar file ({' '.join(str(error).split()) or type(error).__name__})"
    return None


def _require_space(label: str, left: Sequence[Archive], root: Path) -> None:
    used = need = 0  # bytes, as archives come and go
    for archive in left:
        path = root / FOLDER / archive.file
        used += max(0, archive.length - (path.stat().st_size if path.exists() else 0)) + archive.unpacked
        need = max(need, used)
        used -= archive.length
    there = next(folder for folder in (root, *root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    if need > free:
        raise SegtailorError(
            f"{label} takes about {need / 1e9:.1f} GB while it is fetched and unpacked, and {there} has "
            f"{free / 1e9:.1f} GB free; free some space, or choose another --root"
        )


def _read_done(root: Path) -> list[str]:
    try:
        content = json.loads((root / DONE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    return [str(name) for name in content] if isinstance(content, list) else []


def _write_done(root: Path, done: list[str]) -> list[str]:
    write_atomically(root / DONE, lambda file: file.write(json.dumps(done).encode() + b"\n"))
    return done


def _track(items: Iterable[T], what: str, progress: bool) -> Iterable[T]:
    return track(items, what, console=Console(stderr=True), disable=not progress)


def _tidy(root: Path) -> None:
    shutil.rmtree(root / SCRATCH, ignore_errors=True)
    folder = root / FOLDER
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
