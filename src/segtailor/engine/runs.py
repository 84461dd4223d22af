"""A run's folder and checkpoint: new, resumed or replaced, never overwritten by accident, and whole after a stop."""

from __future__ import annotations

import io
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import yaml
from pydantic import ValidationError

from segtailor.config import CompareRecipe, DistillRecipe, RunConfig, TrainRecipe
from segtailor.errors import SegtailorError, reason
from segtailor.files import write_atomically
from segtailor.recipes import REMOVED

# Settings that change where or how fast a run computes, not its results.
FREE_TO_CHANGE = (
    "description", "run", "data.root", "data.unlabelled.images", "data.workers", "data.check", "train.devices",
    "train.nodes", "train.threads", "train.accelerator", "train.log_every", "train.checkpoint_every",
    "evaluate.samples", "arms_at_once",
)  # fmt: skip


@dataclass
class RunFolder:
    """An opened run folder; ``finished`` when its results are already there."""

    path: Path
    finished: bool = False


def open_run(config: RunConfig, name: str, recipe: dict[str, Any]) -> RunFolder:
    """Make, resume or replace the folder of a run and write ``recipe.yaml`` into it.

    Raises ``SegtailorError`` when the folder exists and ``run.exists`` is ``error``, when a resumed recipe has
    changed (the changed keys are named), or when a folder to be replaced is not a run.
    """
    path = config.folder / name
    written = path / "recipe.yaml"
    if path.is_file():
        raise SegtailorError(f"{path} is a file; choose another run.name or run.folder")
    # A first write that was cut off leaves a partial file, and no run.
    if path.exists() and any(entry.suffix != ".partial" for entry in path.iterdir()):
        if config.exists == "error":
            raise SegtailorError(
                f"run folder {path} exists already; choose another --run.name, or --run.exists resume or replace"
            )
        if not written.exists():
            raise SegtailorError(f"{path} is not a run folder (no recipe.yaml); choose another --run.name")
        if config.exists == "resume":
            _check_same(path, yaml.safe_load(written.read_text(encoding="utf-8")), recipe)
            return RunFolder(path, finished=(path / "results.json").exists())
        shutil.rmtree(path)
    text = yaml.safe_dump(recipe, sort_keys=False)
    write_atomically(written, lambda file: file.write(text.encode("utf-8")))
    return RunFolder(path)


def _check_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    old, new, free = _flatten(_completed(before)), _flatten(now), tuple(f"{key}." for key in FREE_TO_CHANGE)
    changed = [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not f"{key}.".startswith(free)
    ]
    if changed:
        listed = "; ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise SegtailorError(
            f"cannot resume {path}: the recipe has changed ({listed}); undo that, or choose another --run.name"
        )


def _completed(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return a recipe that an earlier version wrote: without removed settings, and new ones at their defaults."""
    recipe = {key: value for key, value in recipe.items() if key not in REMOVED}
    data = {key: value for key, value in recipe.get("data", {}).items() if f"data.{key}" not in REMOVED}
    recipe = {**recipe, "data": data} if data else recipe
    kind = CompareRecipe if "arms" in recipe else TrainRecipe if "model" in recipe else DistillRecipe
    try:
        return kind.model_validate(recipe).model_dump(mode="json")
    except ValidationError:
        return recipe


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        items = enumerate(value)
    else:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in items:
        flat.update(_flatten(item, f"{prefix}.{key}" if prefix else str(key)))
    return flat


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


@contextmanager
def fitting_checkpoint(path: Path) -> Iterator[None]:
    """Turn the errors of a checkpoint at ``path`` that does not fit the run into one line."""
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise SegtailorError(
            f"{path} is of another version of segtailor and does not fit; finish the run with that version, or start "
            "again with run.exists replace"
        ) from error


class RunStopped(Exception):  # noqa: N818 - a request, not an error
    """The run stopped on request, after a checkpoint.

    ``code`` is the exit code to leave with, ``folder`` the run's folder once the job has filled it in.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code
        self.folder: Path | None = None


class StopRequest:
    """A context in which the first SIGINT or SIGTERM is only recorded; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Only the main thread can set handlers; in others the caller's stay.
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
    """Add the run folder to a ``RunStopped`` raised inside."""
    try:
        yield
    except RunStopped as stop:
        stop.folder = folder
        raise
