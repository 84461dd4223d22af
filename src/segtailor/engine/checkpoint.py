"""Training checkpoints: whole or not there, and read without executing anything."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch

from segtailor.errors import SegtailorError, reason
from segtailor.files import write_atomically

FORMAT = 1


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` to ``path`` atomically: on any failure the previous file stays whole.

    Raises ``SegtailorError`` when the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    write_atomically(path, lambda file: file.write(buffer.getbuffer()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint (tensors and plain values only)."""
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise SegtailorError(
            f"cannot read the checkpoint {path}: {reason(error)}; start again with run.exists replace"
        ) from error
    if state.get("format") != FORMAT:
        raise SegtailorError(f"{path} is not a checkpoint of this version; start again with run.exists replace")
    return state
