"""Ctrl-C and SIGTERM: finish the step, write a checkpoint, say how to go on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


class RunStopped(Exception):  # noqa: N818 - it is a request, not an error
    """The run was asked to stop and did so after a checkpoint.

    ``code`` is the exit code to leave with, ``folder`` the run's folder once the job has filled it in.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
        self.folder: Path | None = None


class StopRequest:
    """A context in which the first SIGINT or SIGTERM is only noted; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Handlers can be set in the main thread only; elsewhere the caller keeps its own.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal is not None

    @property
    def code(self) -> int:
        """The exit code by convention: 128 plus the signal's number."""
        return 128 + (self.signal or 0)


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Tell a ``RunStopped`` raised inside which run folder is to be resumed."""
    try:
        yield
    except RunStopped as stop:
        stop.folder = folder
        raise
