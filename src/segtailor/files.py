"""Atomic writing, and the constants and shapes that all modules share."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from segtailor.errors import SegtailorError

VOID = 255
"""The target value of pixels without a class; ignored everywhere."""
Size = tuple[int, int]
"""(height, width) in pixels."""
Color = tuple[int, int, int]
"""(red, green, blue), 0 to 255."""


def write_atomically(path: str | Path, write: Callable[[BinaryIO], object]) -> None:
    """Call ``write`` with an open temporary file beside ``path``, then put that file in the place of ``path``.

    On any failure, a full disk included, the temporary file is removed and the previous file is intact. Raises
    SegtailorError for an OSError.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            kept = "; the previous file is whole" if path.exists() else ""
            raise SegtailorError(f"cannot write {path}: {reason}{kept}; free space or choose another folder") from error
        raise
