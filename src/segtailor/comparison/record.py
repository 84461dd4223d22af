"""What one finished run of a comparison recorded, checked field by field."""

from __future__ import annotations

import math
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from segtailor.comparison.bootstrap import Counts, ImageCounts
from segtailor.errors import reason


@dataclass(eq=False)
class Outcome:
    """A finished run of one arm with one seed. Scores lie in [0, 1], times in seconds; None is "not measured".

    ``miou`` and ``iou`` are of the last checkpoint. ``seconds`` is the student's own training, ``stage_seconds`` the
    method's own stages; ``teacher_seconds`` is this arm's share of the teacher's passes, which the arms have in
    common, and ``teacher_seconds_alone`` the whole. ``images`` and ``confusion`` (int64 (K,K), rows target) come from
    ``confusions.npz``.
    """

    arm: str
    seed: int
    miou: float
    miou_all: float
    best_miou: float
    best_step: int | None
    iou: list[float | None]
    steps: int | None
    seconds: float | None
    teacher_seconds: float | None
    teacher_seconds_alone: float | None
    stage_seconds: float | None
    peak_bytes: int | None
    parameters: int | None
    multiply_adds: int | None
    boundary: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    confusion: Counts | None = None
    images: ImageCounts | None = None

    @property
    def seconds_shared(self) -> float | None:
        """Training, own stages and the arm's share of the teacher; None when one of them was not measured."""
        return _sum(self.seconds, self.stage_seconds, self.teacher_seconds)

    @property
    def seconds_alone(self) -> float | None:
        """What the arm alone would take: training, own stages and the whole of the teacher's passes."""
        return _sum(self.seconds, self.stage_seconds, self.teacher_seconds_alone)


def is_number(value: object, low: float = -math.inf, high: float = math.inf) -> TypeGuard[float]:
    """Tell whether ``value`` is a finite number from ``low`` to ``high``."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and low <= value <= high
    )


def read_outcome(record: dict[str, Any], num_classes: int) -> Outcome:
    """Build an Outcome from a finished run's record; ValueError names the first field that is wrong."""
    iou = record.get("iou")
    if not isinstance(iou, list) or len(iou) != num_classes:
        raise ValueError(f"'iou' is no list of {num_classes} classes")
    if not all(value is None or is_number(value, 0, 1) for value in iou):
        raise ValueError("'iou' holds a value that is neither null nor from 0 to 1")
    return Outcome(
        arm=str(record["arm"]),
        seed=int(record["seed"]),
        miou=_score(record, "miou"),
        miou_all=_score(record, "miou_all"),
        best_miou=_score(record, "best_miou"),
        best_step=_whole(record, "best_step"),
        iou=iou,
        steps=_whole(record, "steps"),
        seconds=_measure(record, "seconds"),
        teacher_seconds=_measure(record, "teacher_seconds"),
        teacher_seconds_alone=_measure(record, "teacher_seconds_alone"),
        stage_seconds=_measure(record, "stage_seconds"),
        peak_bytes=_whole(record, "peak_bytes"),
        parameters=_whole(record, "parameters"),
        multiply_adds=_whole(record, "multiply_adds"),
        boundary=_mapping(record, "boundary"),
        calibration=_mapping(record, "calibration"),
    )


def check_images(path: Path, num_classes: int) -> tuple[Counts, ImageCounts]:
    """Read the images' confusion matrices, int (N,K,K), and return their sum and each image's counts.

    Raises ValueError that says what is wrong with the file.
    """
    if not path.exists():
        raise ValueError(f"no {path.name}")
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            confusions = archive["confusions"]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path.name} is damaged ({reason(error)})") from error
    shape = confusions.shape
    if len(shape) != 3 or shape[0] == 0 or shape[1:] != (num_classes, num_classes):
        raise ValueError(f"{path.name} has shape {shape}, not (images, {num_classes}, {num_classes})")
    if not np.issubdtype(confusions.dtype, np.integer) or confusions.min() < 0:
        raise ValueError(f"{path.name} holds values that are no pixel counts")
    return confusions.sum(0, dtype=np.int64), ImageCounts.from_confusions(confusions)


def _score(record: dict[str, Any], key: str) -> float:
    value = record.get(key)
    if not is_number(value, 0, 1):
        raise ValueError(f"'{key}' is {value!r}, not a number from 0 to 1")
    return float(value)


def _measure(record: dict[str, Any], key: str) -> float | None:
    value = record.get(key)
    if value is None:
        return None
    if not is_number(value, 0):
        raise ValueError(f"'{key}' is {value!r}, not a number from 0")
    return float(value)


def _whole(record: dict[str, Any], key: str) -> int | None:
    value = _measure(record, key)
    return None if value is None else int(value)


def _mapping(record: dict[str, Any], key: str) -> dict[str, Any] | None:
    value = record.get(key)
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"'{key}' is {value!r}, not null or a table")
    return value


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
