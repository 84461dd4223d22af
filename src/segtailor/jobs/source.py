"""What the command line's MODEL may be, and the settings that come with it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from segtailor.config import DataConfig, EvaluateConfig, Strict
from segtailor.errors import SegtailorError
from segtailor.models import create_model, list_models, load_model, read_card
from segtailor.models.segmenter import Segmenter
from segtailor.recipes import set_value, validate


class Scoring(Strict):
    """The sections that evaluation and prediction read."""

    data: DataConfig
    evaluate: EvaluateConfig


def is_stored(model: str) -> bool:
    """Whether MODEL means a file or folder, and not a network's name."""
    return model.startswith("published:") or Path(model).exists() or model.endswith(".safetensors") or "/" in model


def open_model(model: str, num_classes: int) -> Segmenter:
    """Load a stored model, or build a fresh one by name with ``num_classes``."""
    if is_stored(model):
        return load_model(model)
    try:
        return create_model(model, num_classes)
    except SegtailorError as error:
        if model in list_models():
            raise
        raise SegtailorError(f"{error}; nor is there a run folder or file of that name") from error


def sections_of(model: str, overrides: Mapping[str, Any]) -> tuple[DataConfig, EvaluateConfig]:
    """Return data and evaluation settings: those of the model's own recipe, changed by ``overrides``.

    When ``overrides`` names another data set, nothing but the input size is kept of the recipe's data.
    """
    recipe = _own_recipe(model)
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


def _own_recipe(model: str) -> dict[str, Any]:
    path = Path(model)
    if path.is_dir() and (path / "recipe.yaml").exists():
        values = yaml.safe_load((path / "recipe.yaml").read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}
    if path.is_file() and path.suffix == ".safetensors":
        return dict(read_card(path).get("recipe") or {})
    return {}
