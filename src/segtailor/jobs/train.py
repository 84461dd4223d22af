"""`segtailor train`: data in, a trained model and a report out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segtailor.config import Strict, TrainRecipe
from segtailor.data.base import SegmentationDataset
from segtailor.engine.distiller import Distiller
from segtailor.engine.launch import launch
from segtailor.engine.loop import Task, Trained, fit
from segtailor.engine.preemption import resumable
from segtailor.engine.runs import open_run, write_json
from segtailor.evaluation import inference_settings
from segtailor.jobs.setup import (
    card_with_metrics,
    check_weights_licences,
    environment,
    make_student,
    model_card,
    on_first_process,
    open_data,
    profile_size,
    result_row,
    weights_path,
)  # fmt: skip
from segtailor.jobs.unlabelled import refuse_unlabelled
from segtailor.models import save_model
from segtailor.recipes import load_recipe
from segtailor.report import write_report
from segtailor.report.samples import write_samples
from segtailor.results.model import RunResults, read_results


@dataclass
class RunResult:
    """A finished run: its folder, its report and what stands in ``results.json``."""

    folder: Path
    report: Path
    results: RunResults


def train(recipe: str | Path | Mapping[str, Any] | Strict, overrides: Mapping[str, Any] | None = None) -> RunResult:
    """Train one model as ``recipe`` says (a shipped name, a YAML file, a mapping or a ``TrainRecipe``).

    ``overrides`` maps dotted keys to values. Leaves ``model.safetensors``, ``results.json`` and ``report.html`` in the
    run folder. Raises ``SegtailorError`` for a mistake in recipe or data, ``RunStopped`` after Ctrl-C.
    """
    checked = load_recipe(recipe, TrainRecipe, overrides)
    refuse_unlabelled(checked.data)
    fabric = launch(checked.train)
    data, val = open_data(checked.data, fabric)
    model = make_student(checked.model, data.num_classes, checked.train.seed)
    check_weights_licences(checked.run.license_policy, {"model": model}, fabric.is_global_zero)
    name = checked.run.name or f"{checked.data.name}-{model.name}"
    plain = checked.model_dump(mode="json")
    run = on_first_process(fabric, lambda: open_run(checked.run, name, plain))
    if run.finished:
        return finished(run.path)
    card = model_card(data, plain)
    task = Task("train", run.path, data, val, checked.data, checked.train, checked.evaluate, card)
    with resumable(run.path):
        trained = fit(fabric, Distiller(model, {}, aux_weight=checked.train.aux_weight), None, task)
    if fabric.is_global_zero:
        save_model(trained.student, weights_path(run.path), card_with_metrics(card, trained.last, checked.train.steps))
        size = profile_size(checked.data, val)
        row = result_row(
            "model", "Model", trained.student, trained.last, size, **training_facts(trained, checked.train.steps)
        )
        window = inference_settings(checked.evaluate, checked.data)["window"]
        samples = write_samples(run.path, val, {"model": trained.student}, checked.evaluate, fabric.device, window)
        results = {
            **header(name, "train", checked.data.name, val, size),
            "rows": [row],
            "curves": {"model": "metrics.jsonl"},
            "samples": samples,
            "environment": environment(checked.train, fabric),
        }
        write_json(run.results, results)
        write_report(run.path)
    fabric.barrier()
    return finished(run.path)


def header(name: str, kind: str, data: str, dataset: SegmentationDataset, size: tuple[int, int]) -> dict[str, Any]:
    """Return the head of ``results.json``."""
    return {
        "version": 1,
        "name": name,
        "kind": kind,
        "method": None,
        "variant": None,
        "data": data,
        "classes": list(dataset.classes),
        "palette": [list(color) for color in dataset.palette],
        "size": list(size),
        "gap_closed": None,
    }


def training_facts(trained: Trained, steps: int) -> dict[str, Any]:
    """Return what a row of the results says of a training."""
    return {
        "best_miou": trained.best_miou,
        "best_step": trained.best_step,
        "steps": steps,
        "seconds": trained.seconds,
    }


def finished(folder: Path) -> RunResult:
    """Read back a finished run."""
    results = read_results(folder)
    if not (folder / "report.html").exists():
        write_report(folder)  # the run ended between the two
    return RunResult(folder, folder / "report.html", results)
