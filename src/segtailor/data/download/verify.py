"""Whether a fetched file is the one that was meant."""

from __future__ import annotations

import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from segtailor.data.download.archive import Archive

CHUNK = 2**20
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError)


def find_fault(archive: Archive, path: Path, advance: Callable[[int, int | None], object]) -> str | None:
    """Return what is wrong with the file at ``path``, None when nothing is.

    Its checksum decides; where none is published, everything in it is read once, which for zip compares the CRC-32 of
    every file. ``advance`` is told the bytes read and the bytes there are.
    """
    length = path.stat().st_size
    if archive.checksum is None:
        return _find_damage(path)
    if length != archive.length:
        return f"it has {length} bytes, not {archive.length}"
    kind, _, expected = archive.checksum.partition(":")
    found = hashlib.new(kind, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            found.update(chunk)
            advance(file.tell(), length)
    return None if found.hexdigest() == expected else f"its {kind} is {found.hexdigest()}, not {expected}"


def _find_damage(path: Path) -> str | None:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as content:
                first = content.testzip()
            return f"{first} in it is damaged" if first else None
        with tarfile.open(path) as content:
            for member in content:
                file = content.extractfile(member) if member.isreg() else None
                while file and file.read(CHUNK):
                    pass
            # a compressed stream is checked where it ends, behind the last member
            while content.fileobj and content.fileobj.read(CHUNK):
                pass
    except DAMAGED as error:
        return f"it is no whole zip or tar file ({' '.join(str(error).split()) or type(error).__name__})"
    return None
