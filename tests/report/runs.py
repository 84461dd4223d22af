"""A small run folder, as the jobs leave it."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

CLASSES = ["road", "pole", "<sky>"]
IOU = {"teacher": [0.9, 0.5, 0.7], "alone": [0.8, 0.1, None], "distilled": [0.85, 0.3, None], "model": [0.8, 0.1, None]}
LABELS = {"teacher": "Teacher", "alone": "Student alone", "distilled": "Student with kt", "model": "Model"}


def row(role, **changed):
    known = [value for value in IOU[role] if value is not None]
    return {
        "role": role,
        "label": LABELS[role],
        "model": "pspnet-resnet18",
        "parameters": 9_000_000 if role == "teacher" else 1_500_000,
        "multiply_adds": 8_000_000_000 if role == "teacher" else 1_000_000_000,
        "miou": sum(known) / len(known),
        "miou_all": sum(known) / 3,
        "pixel_accuracy": 0.9,
        "mean_accuracy": 0.8,
        "mean_dice": 0.7,
        "iou": IOU[role],
        "best_miou": None if role == "teacher" else 0.61,
        "best_step": None if role == "teacher" else 80,
        "steps": None if role == "teacher" else 100,
        "seconds": None if role == "teacher" else 125.0,
        **changed,
    }


def metrics(path, terms=("task",), last=0.5):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for step in range(10, 101, 10):
        values = dict.fromkeys(terms, 1.0 / step)
        lines.append({"kind": "train", "step": step, "loss": sum(values.values()), "terms": values, "seconds": step})
        if step % 20 == 0:
            lines.append({"kind": "evaluate", "step": step, "miou": last * step / 100, "weights": "student"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def samples(folder, roles, count=1, size=(12, 16)):
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    pictures = ["image", "target", *roles, *(f"{role}-wrong" for role in roles)]
    entries = []
    for number in range(count):
        generator = np.random.default_rng(number)
        for what in pictures:
            noise = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / f"samples/{number:02d}-{what}.png")
        paths = {what: f"samples/{number:02d}-{what}.png" for what in pictures}
        entries.append({"name": f"scene {number}", "pictures": paths, "wrong": dict.fromkeys(roles, 0.25)})
    return entries


def write_run(folder, roles=("teacher", "alone", "distilled"), with_samples=True, **changed):
    folder.mkdir(parents=True, exist_ok=True)
    distill = "distilled" in roles
    metrics(folder / "metrics.jsonl", ("task", "kt.kd") if distill else ("task",))
    if "alone" in roles:
        metrics(folder / "baseline/metrics.jsonl")
    curves = (
        {"distilled": "metrics.jsonl", "alone": "baseline/metrics.jsonl"} if distill else {"model": "metrics.jsonl"}
    )
    section = "student: {model: pspnet-resnet18}\nmethod: [{name: kt}]\n" if distill else "model: {model: x}\n"
    (folder / "recipe.yaml").write_text("description: a <small> run\n" + section + "train: {steps: 100}\n")
    results = {
        "version": 1,
        "name": "camvid-kt",
        "kind": "distill" if distill else "train",
        "method": "kt" if distill else None,
        "variant": "clean" if distill else None,
        "data": "camvid",
        "classes": CLASSES,
        "palette": [[128, 64, 128], [190, 190, 190], [70, 130, 180]],
        "size": [180, 240],
        "rows": [row(role) for role in roles],
        "gap_closed": 0.5 if {"alone", "teacher"} <= set(roles) else None,
        "curves": curves,
        "samples": samples(folder, roles) if with_samples else [],
        "environment": {"torch": "2.8", "device": "x86_64 CPU", "seed": "3"},
        **changed,
    }
    (folder / "results.json").write_text(json.dumps(results))
    return folder
