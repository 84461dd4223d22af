"""The `data:` section alone, of a recipe or from the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from segtailor.config import DataConfig, Strict
from segtailor.errors import SegtailorError
from segtailor.recipes import _read, parse_overrides, recipe_path, set_value, validate


class DataSection(Strict):
    """A recipe of which nothing but the data matters."""

    data: DataConfig


def data_of(arguments: Sequence[str]) -> DataConfig:
    """Return the data that ``[RECIPE] [--data.KEY VALUE]...`` means: a recipe's, a whole comparison's too, or none's.

    Raises ``SegtailorError`` for an unknown recipe or key, and when nothing names a data set.
    """
    words = list(arguments)
    data: dict[str, Any] = {}
    where = "command line"
    if words and not words[0].startswith("--"):
        path = recipe_path(words.pop(0))
        data, where = _read(path).get("data") or {}, path.name
    values: dict[str, Any] = {"data": data}
    for key, value in parse_overrides(words).items():
        if not key.startswith("data."):
            raise SegtailorError(f"--{key} is no setting of the data; here only --data.KEY VALUE is read")
        set_value(values, key, value)
    checked = validate(DataSection, values, where).data
    if "name" not in checked.model_fields_set:
        raise SegtailorError("say which data: give a recipe first, or --data.name NAME --data.root FOLDER")
    return checked
