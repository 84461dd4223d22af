"""How long a training step waits for data: the recipe camvid-cpu-kt with two workers, on the real frames.

    SEGTAILOR_CAMVID=... python benchmarks/speed/data_wait.py

Prints the share of the steps' time that is spent waiting, after a first window in which the workers start, and writes
it to ``benchmarks/speed/results/data_wait.json``. The teacher's weights are random: what it computes costs the same.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

import segtailor
from bench import RESULTS, save
from segtailor.config import DistillRecipe
from segtailor.engine.logging import read_metrics
from segtailor.models import create_model, save_model
from segtailor.recipes import load_recipe

STEPS, WINDOW = 60, 10


def main() -> None:
    recipe = load_recipe("camvid-cpu-kt", DistillRecipe)
    assert recipe.teacher is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_model(create_model(recipe.teacher.model, 11), folder / "teacher.safetensors")
        settings = {
            "teacher.weights": str(folder / "teacher.safetensors"), "teacher.check": False, "baseline": "none",
            "data.workers": 2, "train.steps": STEPS, "train.log_every": WINDOW, "evaluate.every": STEPS,
            "evaluate.samples": 0, "run.folder": name, "run.name": "wait",
        }  # fmt: skip
        run = segtailor.distill(recipe, settings).folder
        lines = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "train"]
    later = lines[1:]
    record = {
        "recipe": "camvid-cpu-kt",
        "workers": 2,
        "threads": torch.get_num_threads(),
        "steps": STEPS - WINDOW,
        "images_per_second": sum(line["images_per_second"] for line in later) / len(later),
        "waiting": sum(line["data_wait"] for line in later) / len(later),
        "waiting_first_window": lines[0]["data_wait"],
    }
    save(RESULTS / "data_wait.json", record)
    print(f"waiting for data: {100 * record['waiting']:.2f} % of the time, {record['images_per_second']:.1f} images/s")


if __name__ == "__main__":
    main()
