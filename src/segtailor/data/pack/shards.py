"""Shards: plain tar files, written front to back and read at any place."""

from __future__ import annotations

import hashlib
import os
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

BLOCK = tarfile.BLOCKSIZE
# Open at once in a process; big data sets have more shards than a process may open files.
OPEN = 64


class ShardWriter:
    """A tar that is written under ``path`` + ``.part`` and named ``path`` once it is whole and on the disk."""

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, path.with_name(path.name + ".part")
        self.length, self.hash = 0, hashlib.sha256()
        self._file = self.part.open("wb")

    def add(self, name: str, content: bytes) -> int:
        """Append a member and return where its content begins."""
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o644
        self._write(member.tobuf(tarfile.USTAR_FORMAT))
        at = self.length
        self._write(content)
        self._write(bytes(-len(content) % BLOCK))
        return at

    def finish(self) -> None:
        """End the tar and give it its name."""
        self._write(bytes(2 * BLOCK))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self.part.replace(self.path)

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self.hash.update(content)
        self.length += len(content)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()


class OpenShard:
    """An open shard, read at any place by several threads and, after a fork, processes."""

    def __init__(self, path: Path) -> None:
        self._lock = threading.Lock()
        self._file = path.open("rb", buffering=0)

    def read(self, at: int, length: int) -> NDArray[np.uint8]:
        """Return ``length`` bytes from ``at`` on; fewer where the file ends."""
        content = np.empty(length, np.uint8)
        view, got = content.data, 0
        while got < length:
            count = self._read_into(view[got:], at + got)
            if not count:
                break
            got += count
        return content[:got]

    def _read_into(self, view: memoryview, at: int) -> int:
        if hasattr(os, "preadv"):  # leaves the file's position alone, which forked workers share
            return os.preadv(self._file.fileno(), [view], at)
        with self._lock:
            self._file.seek(at)
            return self._file.readinto(view) or 0

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()


class OpenShards:
    """The shards of a split, opened when first read; a copy that is sent to another process opens its own."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = tuple(paths)
        self._open: OrderedDict[int, OpenShard] = OrderedDict()

    def read(self, shard: int, at: int, length: int) -> NDArray[np.uint8]:
        """Return ``length`` bytes of shard number ``shard`` from ``at`` on; raises ``OSError``."""
        found = self._open.get(shard)
        if found is None:
            found = self._open[shard] = OpenShard(self.paths[shard])
            if len(self._open) > OPEN:
                # closed as soon as no other thread reads from it
                self._open.popitem(last=False)
        return found.read(at, length)

    def __getstate__(self) -> tuple[Path, ...]:
        return self.paths

    def __setstate__(self, paths: tuple[Path, ...]) -> None:
        self.__init__(paths)  # type: ignore[misc]
