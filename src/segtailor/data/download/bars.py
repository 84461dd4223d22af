"""Progress bars for bytes and files, on the terminal's error stream."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from segtailor.data.download.fetch import Advance


@contextmanager
def byte_bar(what: str, show: bool) -> Iterator[Advance]:
    """Show a bar for ``what`` while the block runs; it yields what to tell the bytes so far, and all there will be."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), disable=not show) as progress:
        task = progress.add_task(what, total=None)
        yield lambda have, whole: progress.update(task, completed=have, total=whole)
