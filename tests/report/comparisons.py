"""A comparison's folder of invented runs: scores, curves, boundaries and pictures that agree with each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from results.folders import iou_of
from segtailor.data.toy import Toy, draw_scene
from segtailor.evaluation.render import colorize

CLASSES, PALETTE = list(Toy.classes), [list(color) for color in Toy.palette]
SEEDS = (0, 1, 2)
# each arm's quality, and what its training costs relative to the student alone
ARMS = {
    "none": (0.780, 1.0), "kd": (0.786, 1.3), "at": (0.779, 1.4), "fitnet": (0.782, 1.7), "skd": (0.788, 2.6),
    "ifvd": (0.784, 1.9), "cwd": (0.797, 1.5), "cirkd": (0.792, 2.2), "dist": (0.794, 1.35), "maskd": (0.795, 2.9),
    "kt-clean": (0.806, 1.9), "kt-published": (0.801, 2.1),
}  # fmt: skip
METHODS = {
    "kt-clean": {"name": "kt", "variant": "clean"},
    "kt-published": {"name": "kt", "variant": "published"},
}
FAILED, RUNNING = ("skd", 2), ("maskd", 2)
REASON = "loss is not finite at step 412 (term skd.opponent); lower train.optimizer.lr, or set train.clip"
KT_TERMS = {"kd": 1.1, "lt_all": 0.8, "lt_class": 0.3, "ft": 0.5}
WIDTHS = (1, 2, 4, 8, 16, 32)
STEPS, IMAGES = 2000, 24
SIZE = (120, 160)


def write_comparison(folder: Path, seeds: tuple[int, ...] = SEEDS, samples: int = 4, **changes: Any) -> Path:
    """Write 12 arms with ``seeds``; the run FAILED has failed, RUNNING still runs. ``changes`` are of the plan."""
    for place, (arm, (quality, cost)) in enumerate(ARMS.items()):
        for seed in seeds:
            _write_run(folder, arm, seed, quality + _chance(place, seed), cost)
    plan = {
        "version": 1, "name": "toy-methods", "arms": list(ARMS), "baseline": "none", "seeds": list(seeds),
        "classes": CLASSES, "palette": PALETTE, "data": "toy", "size": list(SIZE), "teacher": _teacher(),
        "recipe": _recipe(seeds), "environment": {"torch": "2.8.0", "device": "NVIDIA H100", "precision": "bf16"},
        "samples": _samples(folder, samples), "tailoring": _tailoring(folder), **changes,
    }  # fmt: skip
    write_json(folder / "comparison.json", plan)
    return folder


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def _chance(place: int, seed: int) -> float:
    """Return the seed's luck, which all arms share, and the run's own."""
    return 0.006 * np.sin(7 * seed) + 0.004 * np.sin(13 * place + 5 * seed)


def _write_run(folder: Path, arm: str, seed: int, quality: float, cost: float) -> None:
    place = folder / "arms" / arm / f"seed{seed}"
    place.mkdir(parents=True, exist_ok=True)
    head = {"version": 1, "arm": arm, "seed": seed}
    confusions = _confusions(quality, seed + 1000 * list(ARMS).index(arm))
    iou = iou_of(confusions)
    miou = float(np.mean(iou))
    if (arm, seed) == FAILED:
        _write_metrics(place, arm, seed, miou, 400)
        write_json(place / "outcome.json", {**head, "status": "failed", "reason": REASON})
        return
    if (arm, seed) == RUNNING:
        _write_metrics(place, arm, seed, miou, 1200)
        write_json(place / "outcome.json", {**head, "status": "running"})
        return
    best = _write_metrics(place, arm, seed, miou, STEPS)
    np.savez_compressed(place / "confusions.npz", confusions=confusions)
    alone = arm == "none"
    write_json(place / "outcome.json", {
        **head, "status": "finished", "reason": None, "miou": miou, "miou_all": miou, "best_miou": best[1],
        "best_step": best[0], "iou": iou, "steps": STEPS, "seconds": 600 * cost + seed,
        "teacher_seconds": 0.0 if alone else 21.0, "teacher_seconds_alone": 0.0 if alone else 210.0,
        "stage_seconds": 240.0 if arm == "maskd" else 0.0, "peak_bytes": int((1.5 + 0.8 * cost) * 2**30),
        "boundary": _boundary(quality), "calibration": None, "parameters": 1_180_000, "multiply_adds": 2_340_000_000,
        "method": arm,
    })  # fmt: skip


def _confusions(quality: float, number: int) -> NDArray[np.int32]:
    """Return int32 (N,K,K) with the same targets whatever ``quality``; later classes are harder."""
    count = len(CLASSES)
    pixels = np.random.default_rng(7).integers(400, 4000, (IMAGES, count)) // np.arange(1, count + 1)
    generator = np.random.default_rng(number)
    confusions = np.zeros((IMAGES, count, count), np.int32)
    for target in range(count):
        right = np.clip(quality + 0.14 - 0.045 * target + generator.normal(0, 0.006), 0.05, 0.99)
        shares = np.full(count, (1 - right) / (count - 1))
        shares[target] = right
        for image in range(IMAGES):
            confusions[image, target] = generator.multinomial(pixels[image, target], shares)
    return confusions


def _write_metrics(place: Path, arm: str, seed: int, last: float, steps: int) -> tuple[int, float]:
    """Write curves that end at ``last`` when they reach STEPS; returns step and score of the best evaluation."""
    generator = np.random.default_rng(seed + sum(map(ord, arm)))
    lines: list[dict[str, Any]] = []
    best = (0, 0.0)
    for step in range(20, steps + 1, 20):
        progress = step / STEPS
        terms = {"task": 0.4 + 2 * np.exp(-6 * progress) + 0.03 * generator.normal()}
        if arm.startswith("kt"):
            for name, size in KT_TERMS.items():
                terms[f"kt.{name}"] = size * (0.2 + np.exp(-4 * progress)) + 0.02 * generator.normal()
        elif arm != "none":
            terms[f"{arm}.{arm}"] = 0.1 + np.exp(-3 * progress) + 0.02 * generator.normal()
        terms = {name: float(value) for name, value in terms.items()}
        lines.append({"kind": "train", "step": step, "loss": sum(terms.values()), "terms": terms, "seconds": step / 4})
        if step % 100 == 0:
            score = last if step == STEPS else last * (1 - np.exp(-5 * progress)) + 0.01 * generator.normal()
            best = max(best, (step, float(score)), key=lambda pair: pair[1])
            lines.append({"kind": "evaluate", "step": step, "miou": float(score), "weights": "student"})
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return best


def _boundary(quality: float) -> dict[str, Any]:
    limits = zip((0, *WIDTHS), (*WIDTHS, None), strict=True)
    rows = []
    for place, (above, up_to) in enumerate(limits):
        score = quality - 0.4 * np.exp(-place) * (1.6 - quality)
        rows.append({"above": above, "up_to": up_to, "pixels": 1000 * (place + 1), "miou": float(score), "iou": []})
    return {"ratio": 0.02, "miou": quality - 0.2, "distance": rows}


def _teacher() -> dict[str, Any]:
    return {
        "model": "deeplabv3plus-tf_efficientnet_lite2", "miou": 0.74, "iou": [0.74] * len(CLASSES),
        "parameters": 9_800_000, "multiply_adds": 14_200_000_000, "boundary": _boundary(0.86),
    }  # fmt: skip


def _recipe(seeds: tuple[int, ...]) -> dict[str, Any]:
    arms = {arm: {"method": [METHODS.get(arm, {"name": arm})]} for arm in ARMS}
    return {"description": "twelve <arms> under one recipe", "student": {"model": "deeplabv3plus-lcnet_050"},
            "arms": arms, "seeds": list(seeds), "train": {"steps": STEPS, "batch": 8}}  # fmt: skip


def _samples(folder: Path, count: int) -> list[dict[str, Any]]:
    entries = []
    for number in range(count):
        image, target = draw_scene((2, number), SIZE)
        image = np.moveaxis(image, 0, 2) if image.shape[0] == 3 else image
        pictures = {"image": image, "target": colorize(target, PALETTE), "teacher": _drawn(target, 1.0)}
        wrong = {"teacher": 0.03}
        for arm, (quality, _) in ARMS.items():
            pictures[f"arm:{arm}"] = _drawn(target, 100 * (0.83 - quality))
            wrong[f"arm:{arm}"] = 1 - quality - 0.1
        entries.append({"name": f"val-{number:04d}", "pictures": _saved(folder, "samples", number, pictures),
                        "wrong": wrong})  # fmt: skip
    return entries


def _drawn(target: NDArray[np.uint8], shift: float) -> NDArray[np.uint8]:
    """Return a prediction: the target, its boundaries displaced in waves of ``shift`` pixels."""
    rows, columns = np.indices(target.shape)
    rows = rows + np.round(shift * np.sin(columns / 9)).astype(int)
    columns = columns + np.round(shift * np.sin(rows / 7)).astype(int)
    shifted = target[rows.clip(0, target.shape[0] - 1), columns.clip(0, target.shape[1] - 1)]
    return colorize(np.where(shifted == 255, 0, shifted), PALETTE)


def _tailoring(folder: Path) -> list[dict[str, Any]]:
    entries = []
    for number in range(2):
        image, _ = draw_scene((2, number), SIZE)
        image = np.moveaxis(image, 0, 2) if image.shape[0] == 3 else image
        waves = np.sin(np.indices(SIZE).sum(0) / (20 + 5 * number))
        pictures = {"image": image}
        for what, values in (("before", 0.6 * waves), ("after", 0.9 * waves), ("difference", 0.3 * waves)):
            low, high = np.clip(-values, 0, 1), np.clip(values, 0, 1)
            parts = (255 * (1 - low), 255 * (1 - low - high), 255 * (1 - high))
            pictures[what] = np.stack(parts, -1).round().astype(np.uint8)
        entries.append({"name": f"val-{number:04d}", "class": "car",
                        "pictures": _saved(folder, "tailoring", number, pictures)})  # fmt: skip
    return entries


def _saved(folder: Path, where: str, number: int, pictures: dict[str, NDArray[np.uint8]]) -> dict[str, str]:
    (folder / where).mkdir(parents=True, exist_ok=True)
    paths = {}
    for what, picture in pictures.items():
        paths[what] = f"{where}/{number:02d}-{what.replace(':', '-')}.png"
        Image.fromarray(picture).save(folder / paths[what])
    return paths
