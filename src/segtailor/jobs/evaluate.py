"""`segtailor evaluate`: a model and labelled images in, its scores out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from segtailor.config import DataConfig, EvaluateConfig, Strict, TeacherConfig
from segtailor.data import create_dataset
from segtailor.data.base import SegmentationDataset
from segtailor.errors import SegtailorError
from segtailor.evaluation import BoundarySettings, EvaluationResult, check_classes, evaluate_model, inference_settings
from segtailor.files import write_atomically
from segtailor.jobs.objects import Objects
from segtailor.models import Network, Teacher
from segtailor.models.adapters import family_of
from segtailor.models.adapters.python_module import OBJECT
from segtailor.models.class_map import read_class_map
from segtailor.models.store import (
    PUBLISHED,
    choose_device,
    find_weights,
    is_stored,
    load_teacher,
    open_card,
    resolve,
    trained_size,
)
from segtailor.recipes import set_value, validate


class Scoring(Strict):
    """The sections that evaluation reads."""

    data: DataConfig
    evaluate: EvaluateConfig


def evaluate(
    model: str | Path | nn.Module,
    data: DataConfig | Mapping[str, Any] | Any = None,
    split: str | None = None,
    config: EvaluateConfig | None = None,
    json_path: str | Path | None = None,
    *,
    classes: Any = None,
    device: str = "auto",
    boundary: bool = False,
    calibration: bool = False,
    class_map: Path | Mapping[Any, Any] | None = None,
    choices: Mapping[str, Any] | None = None,
) -> EvaluationResult:
    """Score ``model`` (a network, a run folder, a .safetensors file or a URI); the result prints itself as a table.

    ``data`` is the ``data`` section of a recipe (a mapping or a ``DataConfig``) or a `torch.utils.data.Dataset` of
    image and mask, whose class names are ``classes``; by default it is what the model's own recipe names, as ``config``
    is. ``split`` is one of a named data set's (default: its validation split). ``json_path`` receives every figure and
    the confusion matrix; ``boundary`` and ``calibration`` add their sections to it and to the result. ``class_map`` (a
    mapping or a YAML file, see `read_class_map`) scores a model of other classes as a teacher with it would be.
    ``choices`` are fields of a recipe's teacher section beside the model: preprocess, classifier, weights and others;
    an ``nn.Module`` of any library is adapted as they say, and without them gets raw pixels.

    Raises SegtailorError when no data to score on is given, when the model's classes differ in number or order from the
    data's, when the class map fits neither, when a mask holds a value that is no class, or when the JSON file cannot be
    written.
    """
    found, dataset, recorded = _open_data(model, data, split, classes)
    config = config or recorded
    settings = inference_settings(config, found)
    network = resolve(model) if not choices else _chosen(model, choices, class_map, dataset.num_classes)
    mapping = None
    if class_map is not None:
        if not isinstance(network, Network):
            raise SegtailorError(f"a class map needs a network of segtailor's, not {type(network).__name__}")
        mapping = read_class_map(class_map, network, dataset.classes)
        network = Teacher(network, mapping)
    check_classes(network, dataset.classes)
    result = evaluate_model(
        network, dataset, device=choose_device(device), batch=config.batch, workers=found.workers,
        boundary=BoundarySettings() if boundary else None, calibration=calibration, **settings,
    )  # fmt: skip
    if json_path is not None:
        named = str(model) if isinstance(model, str | Path) else getattr(model, "name", type(model).__name__)
        origin: dict[str, Any] = {"model": named, "data": found.name, "split": dataset.split, "mode": config.mode}
        if mapping is not None:
            origin["class_map"] = mapping.rows()
        text = json.dumps({**origin, **result.to_dict()}, indent=1) + "\n"
        write_atomically(json_path, lambda file: file.write(text.encode()))
    return result


def _open_data(
    model: str | Path | nn.Module, data: Any, split: str | None, classes: Any
) -> tuple[DataConfig, SegmentationDataset, EvaluateConfig]:
    """Return the data section, the opened split, and how the model's own recipe evaluates."""
    stored = str(model) if isinstance(model, str | Path) else None
    own = EvaluateConfig.model_validate({})
    if data is None and stored is None:
        raise SegtailorError("say on what data to score: a recipe's data section, or a data set")
    if stored is not None and (data is None or isinstance(data, Mapping)):
        data, own = data_of(stored, {f"data.{key}": value for key, value in (data or {}).items()})
    elif isinstance(data, Mapping):
        data = validate(DataConfig, data, "data")
    if isinstance(data, DataConfig):
        if data.name.startswith(OBJECT):
            name = data.name.removeprefix(OBJECT)
            raise SegtailorError(f"{stored} was made on {name}, a Python object; give the data to score on")
        return data, create_dataset(data, split or data.val_split, training=False), own
    size = None if stored is None else trained_size(open_card(stored))
    config = DataConfig(name="object", size=size, workers=0)
    dataset = Objects(train_data=data, val_data=data, classes=classes).dataset(data, split or "val", config)
    return config, dataset, own


def data_of(model: str, overrides: Mapping[str, Any]) -> tuple[DataConfig, EvaluateConfig]:
    """Return data and evaluation settings: those of the model's own recipe, changed by ``overrides``.

    When ``overrides`` names another data set, nothing but the input size is kept of the recipe's data. Those that
    begin with ``model.`` say how the model is read (`model_choices`).
    """
    chosen = model_choices(overrides)
    overrides = {key: value for key, value in overrides.items() if not key.startswith("model.")}
    recipe = open_card(model).get("recipe") or {}
    data = dict(recipe.get("data") or {})
    if "data.name" in overrides and overrides["data.name"] != data.get("name"):
        data = {key: data[key] for key in ("size", "crop") if key in data}
    values: dict[str, Any] = {"data": data, "evaluate": dict(recipe.get("evaluate") or {})}
    for key, value in overrides.items():
        set_value(values, key, value)
    if "name" not in values["data"]:
        if family_of(model) is None and not model.startswith(PUBLISHED) and not chosen:
            find_weights(model)  # raises where there is no such file
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
    """Return the network ``model`` as a teacher section with ``choices`` describes it."""
    if not isinstance(model, str | Path):
        config = validate(TeacherConfig, dict(choices), "choices")
        network = Objects(teacher=model).teacher_for(config, None if class_map else classes)
        assert network is not None
        return network
    key = "weights" if is_stored(str(model)) else "model"
    values = {key: str(model), **choices, **({} if class_map is None else {"class_map": class_map})}
    return load_teacher(validate(TeacherConfig, values, "--model"), classes)
