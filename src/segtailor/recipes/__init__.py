"""Recipes: shipped YAML files, how any recipe is read, and errors that name the nearest key."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from segtailor.config import CompareRecipe, DataConfig, DistillRecipe, Strict, TrainRecipe
from segtailor.errors import SegtailorError, nearest, unknown

FOLDER = Path(__file__).parent
R = TypeVar("R", bound=Strict)


def list_recipes() -> dict[str, str]:
    """Return name -> description of every shipped recipe."""
    return {path.stem: str(_read(path).get("description", "")) for path in sorted(FOLDER.glob("*.yaml"))}


def recipe_path(name: str) -> Path:
    """Return the file of a shipped recipe, or of ``name`` itself when it is a path.

    Raises ``SegtailorError`` with the nearest names when there is neither.
    """
    shipped = FOLDER / f"{name}.yaml"
    if shipped.exists():
        return shipped
    removed = re.fullmatch(r"equal-(\w+)-(cityscapes-deeplabv3-r101-r18)", name)
    if removed and removed[1] in _read(FOLDER / f"equal-{removed[2]}.yaml")["arms"]:
        raise SegtailorError(
            f"the recipe {name} is an arm of equal-{removed[2]} now: "
            f"segtailor distill equal-{removed[2]} --arm {removed[1]}, or `segtailor compare` for all arms"
        )
    path = Path(name)
    if path.is_file():
        return path
    if path.suffix in (".yaml", ".yml") or "/" in name:
        raise SegtailorError(f"no such recipe file: {path}")
    raise unknown("recipe", name, list_recipes(), "See `segtailor recipes ls`")


def load_recipe(
    source: str | Path | Mapping[str, Any] | Strict, kind: type[R], overrides: Mapping[str, Any] | None = None
) -> R:
    """Read a recipe (a shipped name, a file, a mapping or a recipe) and check it once, overrides included.

    ``overrides`` maps dotted keys to values, as the command line gives them. Raises ``SegtailorError`` in one line.
    """
    if isinstance(source, Strict | Mapping):
        where, values = "recipe", _plain(source)
    else:
        path = recipe_path(str(source))
        where, values = path.name, _read(path)
    _check_kind(where, values, kind)
    for key, value in (overrides or {}).items():
        set_value(values, key, value)
    return validate(kind, values, where)


def validate(kind: type[R], values: Mapping[str, Any], where: str) -> R:
    """Check ``values`` against ``kind``; every problem in one ``SegtailorError`` line."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problems = [_explain(kind, item) for item in error.errors()]
        raise SegtailorError(f"{where}: {'; '.join(problems)}") from None


def copy_recipe(name: str, target: Path) -> Path:
    """Copy a shipped recipe to ``target`` (a file or folder); an existing file is left alone."""
    source = recipe_path(name)
    path = target / source.name if target.is_dir() else target
    if path.exists():
        raise SegtailorError(f"{path} exists already; give another file name")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    return path


def list_fields() -> list[str]:
    """Return one line for every field of a recipe: dotted key, default, meaning."""
    lines = _field_lines(DistillRecipe, "")
    lines += [line for line in _field_lines(TrainRecipe, "") if line.startswith("model.")]
    known = {line.partition(" ")[0] for line in lines}
    return lines + [line for line in _field_lines(CompareRecipe, "") if line.partition(" ")[0] not in known]


REMOVED = {
    "executor": "start one process a GPU: torchrun --nproc-per-node N -m segtailor compare RECIPE",
    "memory": "set arms_at_once, how many arms are trained at a time",
    "data.streaming": "leave it out: the data set is downloaded once, then read from disk",
}
"""Keys of older recipes, and what to do instead."""
SHORT = {"license-policy": "run.license_policy"}
"""Settings with a short name on the command line."""


def parse_overrides(arguments: Iterable[str]) -> dict[str, Any]:
    """Read ``--dotted.key VALUE`` and ``--dotted.key=VALUE`` pairs; VALUE is YAML.

    >>> parse_overrides(["--train.steps", "20", "--data.size=[64, 64]"])
    {'train.steps': 20, 'data.size': [64, 64]}
    """
    rest = list(arguments)
    found: dict[str, Any] = {}
    while rest:
        word = rest.pop(0)
        if not word.startswith("--") or len(word) == 2:
            raise SegtailorError(f"unexpected argument '{word}'; settings are given as --section.key VALUE")
        key, equals, text = word[2:].partition("=")
        if not equals:
            if not rest:
                raise SegtailorError(f"--{key} needs a value, as in --{key} VALUE")
            text = rest.pop(0)
        key = SHORT.get(key, key)
        try:
            found[key] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise SegtailorError(f"--{key}: cannot read the value '{text}' as YAML") from error
    return found


class DataSection(Strict):
    """The data section of any recipe."""

    data: DataConfig


def load_data_section(arguments: Iterable[str]) -> DataConfig:
    """Return the data of ``[RECIPE] [--data.KEY VALUE]...``; the recipe may be of any kind.

    Raises ``SegtailorError`` for an unknown recipe or key, and when nothing names a data set.
    """
    words = list(arguments)
    values: dict[str, Any] = {"data": {}}
    where = "command line"
    if words and not words[0].startswith("--"):
        path = recipe_path(words.pop(0))
        values, where = {"data": _read(path).get("data") or {}}, path.name
    for key, value in parse_overrides(words).items():
        if not key.startswith("data."):
            raise SegtailorError(f"--{key} is no setting of the data; here only --data.KEY VALUE is read")
        set_value(values, key, value)
    data = validate(DataSection, values, where).data
    if "name" not in data.model_fields_set:
        raise SegtailorError("say which data: give a recipe first, or --data.name NAME --data.root FOLDER")
    return data


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise SegtailorError(f"{path}: not valid YAML{line}: {getattr(error, 'problem', None) or error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SegtailorError(f"cannot read the recipe {path}: {error}") from error
    if not isinstance(values, dict):
        raise SegtailorError(f"{path}: a recipe is a mapping of sections (data, student, ...)")
    return values


class UniqueKeyLoader(yaml.SafeLoader):
    """PyYAML's safe loader, but a duplicate key in a mapping is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping; raises for a key that is there already."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key '{key}'", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _check_kind(where: str, values: Mapping[str, Any], kind: type[Strict]) -> None:
    if kind is not CompareRecipe and "arms" in values:
        one = "; add --arm NAME to distill one of them" if kind is DistillRecipe else ""
        raise SegtailorError(f"{where} is a recipe of `segtailor compare`: it has arms{one}")
    if kind is CompareRecipe and "arms" not in values:
        command = "distill" if "student" in values else "train"
        raise SegtailorError(
            f"{where} has no arms: use `segtailor {command}` without --arm, or add `arms: {{NAME: METHOD, ...}}`"
        )
    if kind is TrainRecipe and "student" in values:
        raise SegtailorError(f"{where} is a recipe of `segtailor distill`, not of `segtailor train`")
    if kind is DistillRecipe and "model" in values and "student" not in values:
        raise SegtailorError(f"{where} is a recipe of `segtailor train`, not of `segtailor distill`")


def set_value(values: dict[str, Any], key: str, value: Any) -> None:
    """Set the dotted ``key`` of a recipe's ``values``; a list index is allowed."""
    if key == "method" or key.startswith("method."):
        # One method may be written without a list; `method.variant` then addresses the first.
        method = values.get("method")
        if isinstance(method, str):
            values["method"] = method = {"name": method}
        first, _, rest = key.removeprefix("method").lstrip(".").partition(".")
        if isinstance(method, list) and first and not first.isdigit():
            key = f"method.0.{first}{'.' + rest if rest else ''}"
        elif isinstance(method, dict) and first.isdigit():
            values["method"] = [method]
    *parents, leaf = key.split(".")
    node: Any = values
    for count, part in enumerate(parents):
        slot = _slot(node, part, key, parents[:count])
        if isinstance(node, dict) and node.get(slot) is None:
            node[slot] = {}
        node = node[slot]
    node[_slot(node, leaf, key, parents)] = value


def _slot(node: Any, part: str, key: str, parents: list[str]) -> str | int:
    """Return ``part`` of the dotted ``key`` as a key or an index of ``node``, which is at ``parents``."""
    if isinstance(node, dict):
        return part
    if not isinstance(node, list):
        raise SegtailorError(f"--{key}: '{'.'.join(parents)}' is not a section")
    if not part.isdigit() or int(part) >= len(node):
        raise SegtailorError(f"--{key}: '{part}' is not an index of a list of {len(node)}")
    return int(part)


def _explain(kind: type[BaseModel], item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    dotted = ".".join(location)
    if item["type"] == "extra_forbidden":
        if dotted in REMOVED:
            return f"'{dotted}' was removed; {REMOVED[dotted]}"
        near = nearest(location[-1], _keys(kind, location[:-1]))
        return f"unknown key '{dotted}'; nearest: {', '.join(near)}"
    if item["type"] == "missing":
        return f"'{dotted}' is missing"
    message = item["msg"].removeprefix("Value error, ")
    given = " ".join(repr(item["input"]).split())
    given = given if len(given) <= 120 else f"{given[:120]}..."
    return f"'{dotted}': {message[0].lower()}{message[1:]} (given: {given})"


def _field_lines(kind: type[BaseModel], prefix: str) -> list[str]:
    lines = []
    for name, info in kind.model_fields.items():
        section = _model_in(info.annotation)
        if section is not None and isinstance(info.annotation, type):
            lines += _field_lines(section, f"{prefix}{name}.")
            continue
        default = "required" if info.is_required() else f"{info.get_default(call_default_factory=True)}"
        choices = [f"one of {', '.join(map(str, found))}"] if (found := _choices(info.annotation)) else []
        remark = "; ".join(choices + ([info.description] if info.description else []))
        lines.append(f"{prefix}{name} = {default}{'  # ' + remark if remark else ''}")
        for optional in get_args(info.annotation):
            if isinstance(optional, type) and issubclass(optional, BaseModel):  # a section or None
                lines += _field_lines(optional, f"{prefix}{name}.")
    return lines


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The values of a field that may have no others; none for a field of any text or number."""
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
    if get_origin(annotation) is not Literal and len(kinds) == 1:
        return _choices(kinds[0])
    return get_args(annotation) if get_origin(annotation) is Literal else ()


def _keys(kind: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that the section at ``path`` of a recipe may have."""
    current: type[BaseModel] | None = kind
    for part in path:
        info = current.model_fields.get(part) if current is not None else None
        if info is None:
            continue  # a list index or a mapping's key: the section's type is already found
        current = _model_in(info.annotation)
    return list(current.model_fields) if current is not None else []


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
