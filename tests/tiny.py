"""Recipes that take seconds, on the toy data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TINY_DATA: dict[str, Any] = {"name": "toy", "size": [32, 48], "crop": [32, 48], "workers": 0, "length": 12}
TINY_TRAIN: dict[str, Any] = {"steps": 4, "batch": 4, "threads": 1, "log_every": 1, "optimizer": {"lr": 0.001}}
TINY_EVALUATE: dict[str, Any] = {"every": 2, "batch": 32, "samples": 1}
TINY_MODEL = "deeplabv3plus-lcnet_035"


def tiny_train(folder: Path, name: str = "teacher", **train: Any) -> dict[str, Any]:
    """Return a recipe of `train` that takes seconds."""
    return {
        "data": dict(TINY_DATA),
        "model": {"model": TINY_MODEL},
        "train": {**TINY_TRAIN, **train},
        "evaluate": dict(TINY_EVALUATE),
        "run": {"folder": str(folder), "name": name},
    }


def tiny_distill(folder: Path, teacher: Path, name: str = "student", **train: Any) -> dict[str, Any]:
    """Return a recipe of `distill` that takes seconds."""
    return {
        "data": dict(TINY_DATA),
        "teacher": {"weights": str(teacher), "check": False},
        "student": {"model": TINY_MODEL},
        "method": {"name": "kt"},
        "train": {**TINY_TRAIN, **train},
        "evaluate": dict(TINY_EVALUATE),
        "run": {"folder": str(folder), "name": name},
    }
