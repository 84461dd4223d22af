"""Files that a listing cannot use: an error when a data set is opened, a finding when it is checked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

NO_MASK, NO_IMAGE = "image without a mask", "mask without an image"
TWICE, NO_CLASS = "several files of one name", "mask that names no class"
MISSING_IMAGE, MISSING_MASK = "listed image is missing", "listed mask is missing"
NOT_AN_IMAGE = "not an image"

Unpaired = dict[str, list[str]]
"""Paths, or listed names, by what is wrong with them."""

_found: ContextVar[Unpaired | None] = ContextVar("unpaired", default=None)


@contextmanager
def collect_unpaired() -> Iterator[Unpaired]:
    """Let listings go on without the files that they cannot use while the block runs; it yields what they left out."""
    found: Unpaired = {}
    token = _found.set(found)
    try:
        yield found
    finally:
        _found.reset(token)


def collecting() -> bool:
    """Return whether listings go on without the files that they cannot use."""
    return _found.get() is not None


def leave_out(files: Mapping[str, Iterable[Path | str]]) -> bool:
    """Note ``files`` by what is wrong with them and return True; False when a listing must raise instead."""
    found = _found.get()
    if found is None:
        return False
    for problem, paths in files.items():
        if listed := [str(path) for path in paths]:
            found.setdefault(problem, []).extend(listed)
    return True
