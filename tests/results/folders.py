"""A comparison's folder of invented runs, written as the job writes it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CLASSES = ("road", "car", "sky")
IMAGES = 40


def invented_confusions(quality: float, seed: int, images: int = IMAGES, classes: int = len(CLASSES)) -> NDArray[Any]:
    """Return int32 (N,K,K): the same targets whatever ``quality``, which is the share of pixels that are right."""
    pixels = np.random.default_rng(7).integers(50, 400, (images, classes))
    generator = np.random.default_rng(seed + 1)
    confusions = np.zeros((images, classes, classes), np.int32)
    for image in range(images):
        for target in range(classes):
            shares = np.full(classes, (1 - quality) / (classes - 1))
            shares[target] = quality
            confusions[image, target] = generator.multinomial(pixels[image, target], shares)
    return confusions


def iou_of(confusions: NDArray[Any]) -> list[float]:
    """Return each class's IoU by the textbook formula."""
    total = confusions.sum(0)
    return [float(total[k, k] / (total[k].sum() + total[:, k].sum() - total[k, k])) for k in range(total.shape[0])]


def outcome(arm: str, seed: int, confusions: NDArray[Any], **changes: Any) -> dict[str, Any]:
    iou = iou_of(confusions)
    miou = sum(iou) / len(iou)
    record = {
        "version": 1, "arm": arm, "seed": seed, "status": "finished", "reason": None,
        "miou": miou, "miou_all": miou, "best_miou": miou + 0.01, "best_step": 80, "iou": iou,
        "steps": 100, "seconds": 60.0, "teacher_seconds": 5.0, "teacher_seconds_alone": 20.0, "stage_seconds": 1.0,
        "peak_bytes": 2**30 + seed, "boundary": None, "calibration": None,
        "parameters": 1_000_000, "multiply_adds": 2_000_000_000,
    }  # fmt: skip
    return {**record, **changes}


def write_run(folder: Path, arm: str, seed: int, quality: float, **changes: Any) -> None:
    place = folder / "arms" / arm / f"seed{seed}"
    place.mkdir(parents=True, exist_ok=True)
    confusions = invented_confusions(quality, seed=1000 * sum(map(ord, arm)) + seed)
    (place / "outcome.json").write_text(json.dumps(outcome(arm, seed, confusions, **changes)), encoding="utf-8")
    np.savez_compressed(place / "confusions.npz", confusions=confusions)


def write_plan(folder: Path, arms: Sequence[str], seeds: Sequence[int], **changes: Any) -> None:
    plan = {
        "version": 1, "name": "invented", "arms": list(arms), "baseline": "none", "seeds": list(seeds),
        "classes": list(CLASSES), "data": "toy", "teacher": {"miou": 0.9}, "recipe": {}, "environment": {},
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps({**plan, **changes}), encoding="utf-8")


def write_comparison(folder: Path, qualities: Mapping[str, Sequence[float]], **changes: Any) -> Path:
    """Write a whole comparison: for each arm the quality of each seed, from seed 0."""
    seeds = range(max(map(len, qualities.values())))
    write_plan(folder, list(qualities), list(seeds), **changes)
    for arm, values in qualities.items():
        for seed, quality in enumerate(values):
            write_run(folder, arm, seed, quality)
    return folder
