"""`segtailor train`: data in, a trained model and a report out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from segtailor.config import Strict, TrainRecipe
from segtailor.engine.launch import launch, on_first_process
from segtailor.engine.loop import Trained
from segtailor.engine.runs import open_run, resumable
from segtailor.evaluation import inference_settings
from segtailor.jobs.build import Arm, Context, build_arm, card_with_metrics, open_context, run_name, train_arms
from segtailor.jobs.objects import Objects
from segtailor.models import save_model
from segtailor.models.network import Network
from segtailor.recipes import load_recipe
from segtailor.report import write_report
from segtailor.report.samples import write_samples
from segtailor.report.summary import format_results, html_results
from segtailor.results.model import Row, RunResults, read_results

ROLES = {"model": "Model", "alone": "Student alone"}


@dataclass(repr=False)
class RunResult:
    """A finished run: its folder, its report, and what is in ``results.json``. Shows itself as a table."""

    folder: Path
    report: Path
    results: RunResults

    def __repr__(self) -> str:
        """Return the table that the command prints."""
        return f"{format_results(self.results)}\nreport: {self.report}"

    def _repr_html_(self) -> str:
        return html_results(self.results, self.report)


def train(
    recipe: str | Path | Mapping[str, Any] | Strict,
    overrides: Mapping[str, Any] | None = None,
    *,
    model: nn.Module | None = None,
    train_data: Any = None,
    val_data: Any = None,
    classes: Any = None,
) -> RunResult:
    """Train one model as ``recipe`` says (a shipped name, a YAML file, a mapping or a ``TrainRecipe``).

    ``overrides`` maps dotted keys to values. ``model`` (any ``nn.Module``, which gets the trained weights) and
    ``train_data`` with ``val_data`` (`torch.utils.data.Dataset` of image and mask; ``classes`` are their names)
    replace those that the recipe names. Leaves ``model.safetensors``, ``results.json`` and ``report.html`` in the run
    folder. Raises ``SegtailorError`` for a mistake in recipe or data, ``RunStopped`` after Ctrl-C.
    """
    objects = Objects(None, model, train_data, val_data, classes)
    checked = load_recipe(recipe, TrainRecipe, objects.overrides(overrides, "model"))
    fabric = launch(checked.train)
    context = open_context(fabric, checked, objects)
    arm = build_arm(context, checked, "train")
    name = checked.run.name or run_name(context.data_name, arm.distiller.student.name)
    run = on_first_process(fabric, lambda: open_run(checked.run, name, arm.card["recipe"]))
    if not run.finished:
        arm.folder = run.path
        with resumable(run.path):
            train_alone(context, arm, name, "model")
    objects.receive(run.path)
    return finished(run.path)


def train_alone(context: Context, arm: Arm, name: str, role: Literal["model", "alone"]) -> tuple[Network, Row]:
    """Train ``arm``, which has no methods, and write model and results into its folder; a report of a ``model``."""
    (trained,) = train_arms(context, [arm])
    row = context.row(role, ROLES[role], trained.student, trained.last, **training_facts(trained, arm))
    if context.first:
        shown: dict[str, nn.Module] = {role: trained.student} if role == "model" else {}
        write_run(context, arm, trained, [row], shown, name=name, kind="train", curves={role: "metrics.jsonl"})
        if role == "model":
            write_report(arm.folder)
    context.fabric.barrier()
    return trained.student, row


def write_run(
    context: Context, arm: Arm, trained: Trained, rows: list[Row], shown: Mapping[str, nn.Module], **facts: Any
) -> None:
    """Write the trained weights, ``results.json`` with ``rows`` and ``facts``, and pictures of ``shown`` networks."""
    file = "model.safetensors" if facts["kind"] == "train" else "student.safetensors"
    save_model(trained.student, arm.folder / file, card_with_metrics(arm.card, trained.last, arm.train.steps))
    val = context.val_data
    RunResults(
        data=context.data_name, classes=val.classes, palette=val.palette, size=context.size, rows=rows,
        samples=draw_samples(context, arm.folder, shown), environment=context.environment(arm.train), **facts,
    ).write(arm.folder / "results.json")  # fmt: skip


def training_facts(trained: Trained, arm: Arm) -> dict[str, Any]:
    """Return the entries of a results row about training."""
    state = trained.state
    return {
        "best_miou": state.best_miou, "best_step": state.best_step, "steps": arm.train.steps, "seconds": state.seconds,
    }  # fmt: skip


def draw_samples(context: Context, folder: Path, models: Mapping[str, nn.Module]) -> list[dict[str, Any]]:
    """Draw the validation images of the report into ``folder``, each as ``models`` segment it."""
    if not models:
        return []
    window = inference_settings(context.evaluate, context.data)["window"]
    return write_samples(folder, context.val_data, models, context.evaluate, context.fabric.device, window)


def finished(folder: Path) -> RunResult:
    """Read back a finished run."""
    results = read_results(folder)
    if not (folder / "report.html").exists():
        write_report(folder)  # the run ended between the two
    return RunResult(folder, folder / "report.html", results)
