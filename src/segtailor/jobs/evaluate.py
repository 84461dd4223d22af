"""`segtailor evaluate`: a model and labelled images in, its scores out."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtailor.config import DataConfig, EvaluateConfig, Strict
from segtailor.errors import SegtailorError
from segtailor.recipes import set_value, validate

if TYPE_CHECKING:
    from torch import nn

    from segtailor.evaluation import EvaluationResult
    from segtailor.models import Network, Teacher


class Scoring(Strict):
    """The sections that evaluation reads."""

    data: DataConfig
    evaluate: EvaluateConfig


def evaluate(
    model: str | Path | nn.Module,
    data: DataConfig,
    split: str = "val",
    config: EvaluateConfig | None = None,
    json_path: str | Path | None = None,
    *,
    device: str = "auto",
    boundary: bool = False,
    calibration: bool = False,
    class_map: Path | Mapping[Any, Any] | None = None,
    choices: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Score ``model`` (a network, a run folder, a .safetensors file or a URI) on ``split`` of ``data``.

    Prints nothing: see :func:`format_result`. ``json_path`` receives every figure and the confusion matrix;
    ``boundary`` and ``calibration`` add their sections to it and to the result. ``class_map`` (a mapping or a YAML
    file, see `read_class_map`) scores a model of other classes as a teacher with it would be. ``choices`` are fields of
    a recipe's teacher section beside the model: preprocess, classifier, weights and others. Raises SegtailorError
    when the model's class count differs from the data's, when the class map fits neither, when a mask holds a value
    that is no class, or when the JSON file cannot be written.
    """
    from segtailor.data import create_dataset
    from segtailor.evaluation import BoundarySettings, check_classes, evaluate_model, inference_settings
    from segtailor.files import write_atomically
    from segtailor.models.store import choose_device, resolve

    config = config or EvaluateConfig.model_validate({})
    settings = inference_settings(config, data)
    dataset = create_dataset(data, split, training=False)
    network = resolve(model) if not choices else _chosen(model, choices, class_map, dataset.num_classes)
    mapped = None if class_map is None else _mapped(network, class_map, dataset.classes)
    network = mapped or network
    check_classes(network, dataset.num_classes)
    result = evaluate_model(
        network,
        dataset,
        device=choose_device(device),
        batch=config.batch,
        workers=data.workers,
        boundary=BoundarySettings() if boundary else None,
        calibration=calibration,
        **settings,
    )
    if json_path is not None:
        named = str(model) if isinstance(model, str | Path) else getattr(model, "name", type(model).__name__)
        origin: dict[str, Any] = {"model": named, "data": data.name, "split": split, "mode": config.mode}
        if mapped is not None and mapped.class_map is not None:
            origin["class_map"] = mapped.class_map.rows()
        text = json.dumps({**origin, **result.to_dict()}, indent=1) + "\n"
        write_atomically(json_path, lambda file: file.write(text.encode()))
    return result


def data_of(model: str, overrides: Mapping[str, Any]) -> tuple[DataConfig, EvaluateConfig]:
    """Return data and evaluation settings: those of the model's own recipe, changed by ``overrides``.

    When ``overrides`` names another data set, nothing but the input size is kept of the recipe's data. Those that
    begin with ``model.`` say how the model is read (`model_choices`).
    """
    from segtailor.models.store import open_card

    overrides = {key: value for key, value in overrides.items() if not key.startswith("model.")}
    recipe = open_card(model).get("recipe") or {}
    data = dict(recipe.get("data") or {})
    if "data.name" in overrides and overrides["data.name"] != data.get("name"):
        data = {key: data[key] for key in ("size", "crop") if key in data}
    values: dict[str, Any] = {"data": data, "evaluate": dict(recipe.get("evaluate") or {})}
    for key, value in overrides.items():
        set_value(values, key, value)
    if "name" not in values["data"]:
        raise SegtailorError(f"{model} does not say what data it was made for; add --data.name NAME --data.root FOLDER")
    checked = validate(Scoring, values, "command line")
    return checked.data, checked.evaluate


def model_choices(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``overrides`` say of the model itself, nested.

    >>> model_choices({"model.preprocess.scale": 1.0, "data.name": "camvid"})
    {'preprocess': {'scale': 1.0}}
    """
    values: dict[str, Any] = {}
    for key, value in overrides.items():
        if key.startswith("model."):
            set_value(values, key.removeprefix("model."), value)
    return values


def _chosen(
    model: str | Path | nn.Module, choices: Mapping[str, Any], class_map: Path | Mapping[Any, Any] | None, classes: int
) -> Network:
    """Return the network ``model`` (a name, file or URI) as a teacher section with ``choices`` describes it."""
    from segtailor.config import TeacherConfig
    from segtailor.models.store import is_stored, load_teacher

    if not isinstance(model, str | Path):
        raise SegtailorError("choices describe a model by name, file or URI, not a network that is there already")
    key = "weights" if is_stored(str(model)) else "model"
    values = {key: str(model), **choices, **({} if class_map is None else {"class_map": class_map})}
    return load_teacher(validate(TeacherConfig, values, "--model"), classes)


def _mapped(network: nn.Module, class_map: Path | Mapping[Any, Any], classes: Sequence[str]) -> Teacher:
    """Return ``network`` as a teacher whose logits are those of ``classes``."""
    from segtailor.models import Network, Teacher
    from segtailor.models.class_map import read_class_map

    if not isinstance(network, Network):
        raise SegtailorError(f"a class map needs a network of segtailor's, not {type(network).__name__}")
    return Teacher(network, read_class_map(class_map, network, classes))


def format_result(result: EvaluationResult) -> str:
    """Return the scores as short plain tables for the terminal; percentages, ``-`` for a class that is absent."""
    parts = [_format_scores(result)]
    if result.boundary is not None:
        parts.append(_format_boundary(result.boundary, result.classes))
    if result.calibration is not None:
        bins, brier = len(result.calibration["bins"]), result.calibration["brier"]
        brier = "-" if brier is None else f"{brier:.4f}"
        parts.append(f"calibration error {_percent(result.calibration['ece'])} % ({bins} bins)   Brier score {brier}")
    return "\n\n".join(parts)


def _format_scores(result: EvaluationResult) -> str:
    width = _name_width(result.classes)
    lines = [
        f"mIoU {_percent(result.miou)} %   all classes {_percent(result.miou_all)} %   "
        f"pixel accuracy {_percent(result.pixel_accuracy)} %",
        f"mean accuracy {_percent(result.mean_accuracy)} %   mean Dice {_percent(result.mean_dice)} %",
        "",
        f"{'class':{width}}  {'IoU %':>7}  {'Dice %':>7}  {'accuracy %':>10}",
    ]
    for name, iou, dice, accuracy in zip(result.classes, result.iou, result.dice, result.accuracy, strict=True):
        lines.append(f"{name:{width}}  {_percent(iou):>7}  {_percent(dice):>7}  {_percent(accuracy):>10}")
    speed = result.images / result.seconds if result.seconds > 0 else 0.0
    lines += ["", f"{result.images} images in {result.seconds:.1f} s ({speed:.1f} images/s), void pixels not counted"]
    absent = sum(value is None for value in result.iou)
    if absent:
        lines.append(f"mIoU leaves out {absent} absent from prediction and target (-); all classes counts them as 0")
    return "\n".join(lines)


def _format_boundary(boundary: dict[str, Any], classes: tuple[str, ...]) -> str:
    width = _name_width(classes)
    titles = ["Boundary IoU %", *(f"F1 at {row['tolerance']} px %" for row in boundary["f1"])]
    columns = [[boundary["miou"], *boundary["iou"]], *([row["mean_f1"], *row["f1"]] for row in boundary["f1"])]
    lines = [f"{'class':{width}}  " + "  ".join(titles)]
    for name, *values in zip(("mean", *classes), *columns, strict=True):
        cells = [f"{_percent(value):>{len(title)}}" for value, title in zip(values, titles, strict=True)]
        lines.append(f"{name:{width}}  " + "  ".join(cells))
    lines += ["", "pixels from a boundary of the target: mIoU %, share of pixels %"]
    scored = max(1, sum(row["pixels"] for row in boundary["distance"]))
    for row in boundary["distance"]:
        first, last = row["above"] + 1, row["up_to"]
        reach = f"from {first}" if last is None else f"{first} to {last}" if last > first else str(last)
        lines.append(f"{reach:{width}}  {_percent(row['miou']):>7}  {_percent(row['pixels'] / scored):>7}")
    return "\n".join(lines)


def _name_width(classes: tuple[str, ...]) -> int:
    return max(12, *(len(name) for name in classes))


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"
