"""What the command line's MODEL may be, and the settings that come with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segtailor.config import DataConfig, EvaluateConfig, Strict
from segtailor.errors import SegtailorError
from segtailor.jobs.network import open_card
from segtailor.models import create_model, load_model
from segtailor.models.adapters import TEACHERS_ONLY, family_of
from segtailor.models.network import Network
from segtailor.recipes import set_value, validate


class Scoring(Strict):
    """The sections that evaluation reads."""

    data: DataConfig
    evaluate: EvaluateConfig


def is_stored(model: str) -> bool:
    """Whether MODEL means a file or folder, and not a network's name."""
    if family := family_of(model):
        return family in ("hf", *TEACHERS_ONLY) or Path(model.partition(":")[2]).exists()
    return model.startswith("published:") or Path(model).exists() or model.endswith(".safetensors") or "/" in model


def data_of(model: str, overrides: Mapping[str, Any]) -> tuple[DataConfig, EvaluateConfig]:
    """Return data and evaluation settings: those of the model's own recipe, changed by ``overrides``.

    When ``overrides`` names another data set, nothing but the input size is kept of the recipe's data. Those that
    begin with ``model.`` say how the model is read (`model_choices`).
    """
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


def named_model(model: str, num_classes: int) -> Network:
    """Load a stored model, or build a fresh one by name with ``num_classes``."""
    if is_stored(model):
        return load_model(model)
    return create_model(model, num_classes)
