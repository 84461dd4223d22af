"""Random access to a stream: what has come is kept in a file on disk, and read from there ever after."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout

from segtailor.errors import SegtailorError, reason

# Samples fetched beyond the furthest that was asked for.
AHEAD = 256
POLL_SECONDS = 0.02
# Of each sample in the index: where it begins in the data, and the bytes of image and mask.
RECORD = struct.Struct("<3q")
NUMBER = struct.Struct("<q")


class Encoded(NamedTuple):
    """An image and a mask as they are stored."""

    image: bytes
    mask: bytes


class StreamCache:
    """Samples of a stream by position; each is fetched once, in the stream's order, by one process for all.

    ``start(n)`` iterates over the stream from sample n on. The process that first misses a sample fetches in the
    background, ``AHEAD`` samples beyond what any process has asked for, and holds a lock while it lives; others read
    what it has written. A sample that is not there yet is waited for, with all that the stream gives before it.
    ``length`` is the number of samples, None when only the stream's end tells. ``what`` names the stream in errors.
    """

    def __init__(self, folder: Path, start: Callable[[int], Iterator[Encoded]], length: int | None, what: str) -> None:
        self.folder, self.start, self.what = folder, start, what
        folder.mkdir(parents=True, exist_ok=True)
        self.index, self.data, self.end, self.wanted = (
            folder / name for name in ("index.bin", "data.bin", "end", "wanted.bin")
        )
        for path in (self.index, self.data):
            path.touch()
        self._wanted = -1
        self._forget_process()
        if length is None:
            length = self._find_end()
        self.length = length

    def _forget_process(self) -> None:
        self._process = os.getpid()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_thread": None, "_error": None, "_process": 0}

    def __len__(self) -> int:
        return self.length

    def count(self) -> int:
        """Return how many samples have come so far."""
        return self.index.stat().st_size // RECORD.size

    def __getitem__(self, position: int) -> Encoded:
        """Return the sample at ``position``, waiting for it; raises ``SegtailorError`` when the stream breaks off."""
        self._want(position)
        self._wait(lambda: self.count() > position, position)
        with self.index.open("rb") as index, self.data.open("rb") as data:
            index.seek(position * RECORD.size)
            first, image, mask = RECORD.unpack(index.read(RECORD.size))
            data.seek(first)
            return Encoded(data.read(image), data.read(mask))

    def _find_end(self) -> int:
        if not self.end.is_file():
            self._want(2**62)
            self._wait(self.end.is_file, 0)
        return int(self.end.read_text())

    def _wait(self, done: Callable[[], bool], position: int) -> None:
        if os.getpid() != self._process:  # the thread that fetches did not come along
            self._forget_process()
        while not done():
            if self._error is not None:
                raise SegtailorError(f"{self.what} broke off after {self.count()} samples: {reason(self._error)}")
            if self.end.is_file() and not done():
                raise SegtailorError(
                    f"{self.what} ended after {self.count()} samples, before sample {position}, though its description "
                    "promises more"
                )
            if self._thread is None or not self._thread.is_alive():
                self._begin()
            time.sleep(POLL_SECONDS)

    def _want(self, position: int) -> None:
        """Note that ``position`` is needed, for the process that fetches."""
        if position <= self._wanted:
            return
        self._wanted = position
        if position > self._read_wanted():
            self.wanted.write_bytes(NUMBER.pack(position))

    def _read_wanted(self) -> int:
        content = self.wanted.read_bytes() if self.wanted.is_file() else b""
        return int(NUMBER.unpack(content)[0]) if len(content) == NUMBER.size else -1

    def _begin(self) -> None:
        """Fetch in the background if no process does."""
        lock = FileLock(self.folder / "lock", thread_local=False)  # released by the thread that fetches
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return
        self._thread = threading.Thread(target=self._fetch, args=(lock,), daemon=True)
        self._thread.start()

    def _fetch(self, lock: FileLock) -> None:
        try:
            self._append_stream()
        except Exception as error:  # told by the thread that waits
            self._error = error
        finally:
            lock.release()

    def _append_stream(self) -> None:
        count = self.count()
        with self.index.open("r+b") as index, self.data.open("r+b") as data:
            # what a killed process left half written is written again
            index.seek(max(0, count - 1) * RECORD.size)
            first = sum(RECORD.unpack(index.read(RECORD.size))) if count else 0
            for file, size in ((index, count * RECORD.size), (data, first)):
                file.truncate(size)
                file.seek(size)
            limit = -1
            for image, mask in self.start(count):
                data.write(image + mask)
                data.flush()
                index.write(RECORD.pack(first, len(image), len(mask)))
                index.flush()
                first, count = first + len(image) + len(mask), count + 1
                while count > limit:
                    limit = self._read_wanted() + AHEAD
                    if count > limit:
                        time.sleep(POLL_SECONDS)
        self.end.write_text(str(count))
