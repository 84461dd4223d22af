"""`segtailor data get`: fetching, checking and unpacking a data set, going on where an earlier call stopped."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import track

from segtailor.data.download.archive import Archive
from segtailor.data.download.bars import byte_bar
from segtailor.data.download.entry import Download
from segtailor.data.download.fetch import fetch
from segtailor.data.download.matlab import SCRATCH
from segtailor.data.download.unpack import unpack
from segtailor.data.download.verify import find_fault
from segtailor.errors import SegtailorError

FOLDER = "downloads"
"""Where archives lie, under the root, until they are unpacked."""

DONE = ".segtailor-get.json"
"""What is unpacked already: the names of archives, and CONVERTED."""

CONVERTED = "converted"


def get(
    entry: Download, root: Path | None = None, *, progress: bool = False, pause: Callable[[float], object] = time.sleep
) -> str:
    """Fetch ``entry`` into ``root`` (default: where its reader looks) and return what was done, for the terminal.

    An archive is checked, unpacked and then removed, one after the other. A wrong one is removed and fetched once more.
    The same call goes on after an interruption, and does nothing when all is there. Raises ``SegtailorError``, on one
    line, for too small a disk, an address that does not answer and a wrong archive.
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
        path = _obtain(archive, root / FOLDER, progress, pause)
        with byte_bar(f"unpacking {archive.file}", progress) as advance:
            unpack(path, archive.parts, root, advance)
        done = _write_done(root, [*done, archive.file])
        path.unlink()
    said = ""
    if entry.convert is not None:
        said = "; " + entry.convert(root, _tracker(progress))
        _write_done(root, [*done, CONVERTED])
    _tidy(root)
    variant = f", variant: {entry.variant}" if entry.variant else ""
    return f"{entry.label} is in {root}{said}\nread it with  data: {{name: {entry.known.name}{variant}, root: {root}}}"


def _obtain(archive: Archive, folder: Path, progress: bool, pause: Callable[[float], object]) -> Path:
    """Return the archive, fetched and found right; a wrong one is removed, and fetched once more."""
    urls, fault = archive.urls, ""
    for _ in range(2):
        with byte_bar(f"fetching {archive.file}", progress) as advance:
            path = fetch(archive, folder, urls=urls, advance=advance, pause=pause)
        with byte_bar(f"checking {archive.file}", progress) as advance:
            found = find_fault(archive, path, advance)
        if found is None:
            return path
        path.unlink()
        # another address, if there is one
        urls, fault = (*urls[1:], urls[0]), found
    raise SegtailorError(
        f"{archive.file} was wrong twice and has been removed: {fault}; it comes from {', '.join(archive.urls)}, which "
        f"may have another edition now; if you have the right file, put it into {folder}"
    )


def _require_space(label: str, left: Sequence[Archive], root: Path) -> None:
    used = need = 0  # bytes, as archives come and go
    for archive in left:
        have = max(_length(root / FOLDER / name) for name in (archive.file, archive.file + ".part"))
        used += max(0, archive.length - have) + archive.unpacked
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
    part = root / (DONE + ".part")
    part.write_text(json.dumps(done) + "\n", encoding="utf-8")
    part.replace(root / DONE)
    return done


def _tracker(progress: bool) -> Callable[[Sequence[Path], str], Iterable[Path]]:
    return lambda files, what: track(files, what, console=Console(stderr=True), disable=not progress)


def _tidy(root: Path) -> None:
    shutil.rmtree(root / SCRATCH, ignore_errors=True)
    folder = root / FOLDER
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
