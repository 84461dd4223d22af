"""A run's folder: new, resumed or replaced, never overwritten by surprise."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from segtailor.config import CompareRecipe, DistillRecipe, RunConfig, TrainRecipe
from segtailor.errors import SegtailorError
from segtailor.files import write_atomically
from segtailor.recipes import REMOVED

# Settings that change where or how fast a run goes, not what it computes.
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

    @property
    def results(self) -> Path:
        """The file that a finished run leaves."""
        return self.path / "results.json"


def open_run(config: RunConfig, name: str, recipe: dict[str, Any]) -> RunFolder:
    """Make, resume or replace the folder of a run and write ``recipe.yaml`` into it.

    Raises ``SegtailorError`` when the folder exists and ``run.exists`` is ``error``, when a resumed recipe has
    changed (the changed keys are named), or when a folder to be replaced is not a run.
    """
    path = config.folder / name
    written = path / "recipe.yaml"
    if path.is_file():
        raise SegtailorError(f"{path} is a file; choose another run.name or run.folder")
    if path.exists() and any(path.iterdir()):
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
    write_text(written, yaml.safe_dump(recipe, sort_keys=False))
    return RunFolder(path)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` atomically; raises ``SegtailorError`` when the disk is full or read-only."""
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON to ``path`` atomically."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def computing_settings(recipe: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a plain recipe that change what a run computes, by dotted key."""
    return {key: value for key, value in _flatten(recipe).items() if not _free(key)}


def _check_same(path: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    old, new = computing_settings(_completed(before)), computing_settings(now)
    changed = [
        f"{key} {old.get(key)} -> {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
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


def _free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE_TO_CHANGE)


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
