"""The pages of the methods: `segtailor methods NAME`, and docs/methods/."""

from __future__ import annotations

import inspect
import json
import sys
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from segtailor.errors import unknown
from segtailor.methods import METHODS, create_method, list_methods
from segtailor.methods.base import Method, MethodOptions

HEADING = """# Methods

These pages are written by `python -m segtailor.methods.describe docs/methods`; `segtailor methods NAME` prints one.
Choose a method in a recipe with `method: {name: kt, variant: clean}`, its options beside the name, or list several,
each with a `weight`: `method: [{name: kd}, {name: skd, weight: 0.5}]`. `variant: published` computes what the published
code computes, which golden figures check where there are any; `variant: clean`, the default, mends its known defects
and leaves void out. A weight of 0 drops a term. In formulas `T` is a temperature, `s` the student, `t` the teacher, `x`
a position, `c` a channel. Where the grids differ, the teacher is brought to the student's by bilinear resizing, before
any softmax.
"""
WIDTHS = {"feature": 8, **{f"stages.{index}": 8 for index in range(4)}}


def describe(name: str) -> str:
    """Return what the method computes, needs, costs and takes, as Markdown that also reads well on a terminal.

    Raises :class:`SegtailorError` with the nearest names for an unknown method.

    >>> describe("kd").splitlines()[0]
    '# kd'
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS, "`segtailor methods` lists them")
    method = METHODS[name]
    _, _, details = inspect.cleandoc(method.__doc__ or "").partition("\n\n")
    formula = [f"    {line}" for line in method.formula.splitlines()]
    lines = [f"# {name}", "", f"{method.summary[0].upper()}{method.summary[1:]}.", "", *formula, ""]
    if details:
        lines += [*details.splitlines(), ""]
    lines += [f"- {title}: {text}" for title, text in _facts(name, method).items()]
    if method.Options.model_fields:
        lines += ["", "Options:", "", *_options(method.Options)]
    return "\n".join(lines)


def _facts(name: str, method: type[Method[Any]]) -> dict[str, str]:
    default = create_method(name, 2, student_channels=WIDTHS, teacher_channels=WIDTHS)
    taps = sorted(default.inputs, key=lambda tap: (tap != "logits", tap != "aux_logits", tap))
    needs = [] if default.labels == "unused" else ["labels"]
    if default.pretraining is not None or default.teacher == "own":
        needs.append("a stage of its own before the student's training")
    return {
        "taps": ", ".join(taps) or "none",
        "needs beside them": ", ".join(needs) or "nothing",
        "widths": method.widths,
        "extra modules": method.extra_modules,
        "cost": cost(name),
        "published figures": method.figures,
        "unsuited": method.unsuited,
        "source": method.source,
    }


def cost(name: str) -> str:
    """Return what a training step with the method costs above the two networks, as it was measured."""
    stored = files("segtailor.methods") / "costs.json"
    if not stored.is_file():
        return "not measured"
    costs = json.loads(stored.read_text(encoding="utf-8"))
    found = costs["methods"].get(name)
    if found is None:
        return "nothing" if name == "none" else "not measured"
    text = f"{100 * found['time']:.1f} % of the networks' time and {found['memory'] / 1e6:.0f} MB above their peak"
    extra = f"; {found['note']}" if found.get("note") else ""
    return f"{text} ({costs['setting']}){extra}"


def _options(schema: type[MethodOptions]) -> list[str]:
    published = schema.presets.get("published", {})
    lines = []
    for key, field in schema.model_fields.items():
        default = _shown(field.get_default(call_default_factory=True, validated_data={}))
        if key in published and _shown(published[key]) != default:
            default += f"; published: {_shown(published[key])}"
        kind = _kind(field.annotation)
        text = field.description or "which computation"
        source = f"; from: {schema.sources[key]}" if key in schema.sources else ""
        lines.append(f"- `{key}`: {text} ({kind}; default {default}{source})")
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, BaseModel):
        value = value.model_dump(exclude_unset=True)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_shown(item)}" for key, item in value.items()) + "}"
    return value if isinstance(value, str) else repr(value)


def _kind(annotation: Any) -> str:
    """Return what values an option takes, in a word or as the choices."""
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(str(choice) for choice in get_args(annotation))
    if origin is Annotated:
        return _kind(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return " or ".join(_kind(part) for part in get_args(annotation))
    if origin in (list, tuple):
        return "list"
    if origin is dict or (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return "mapping"
    words = {float: "number", int: "whole number", str: "text", bool: "yes or no", type(None): "none"}
    return words.get(annotation, str(annotation))


def pages() -> dict[str, str]:
    """Return the files of docs/methods by name."""
    index = [f"- [{name}]({name}.md): {summary}" for name, summary in list_methods()]
    made = {f"{name}.md": describe(name) + "\n" for name, _ in list_methods()}
    return {"README.md": "\n".join([HEADING, *index]) + "\n", **made}


def write_pages(folder: Path) -> None:
    """Write :func:`pages` into ``folder``, and remove pages of methods that are no more."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for old in folder.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
