"""The text of `segtailor methods`, and of docs/methods.md."""

from __future__ import annotations

import inspect
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from segtailor.errors import unknown
from segtailor.methods import METHODS, create_method, list_methods
from segtailor.methods.base import MethodOptions

HEADING = """# Methods

This page is written by `python -m segtailor.methods.describe > docs/methods.md`. Choose a method in a recipe with
`method: {name: kt, variant: clean}`, its options beside the name. `variant: published` computes what the published code
computes, which the golden figures check; `variant: clean`, the default, mends its known defects. A weight of 0 drops a
term. `T` is the temperature, `s` the student, `t` the teacher, `x` a position, `c` a channel. Where the grids differ,
the teacher is brought to the student's by bilinear resizing, before any softmax.
"""


def describe(name: str) -> str:
    """Return what the method computes, needs and takes, as Markdown that also reads well on a terminal.

    Raises :class:`SegtailorError` with the nearest names for an unknown method.

    >>> describe("kd").splitlines()[0]
    '## kd'
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS, "`segtailor methods` lists them")
    method = METHODS[name]
    _, _, details = inspect.cleandoc(method.__doc__ or "").partition("\n\n")
    default = create_method(name, 2, student_channels=2, teacher_channels=2)
    lines = [f"## {name}", "", f"{method.summary[0].upper()}{method.summary[1:]}.", "", f"    {method.formula}", ""]
    if details:
        lines += [*details.splitlines(), ""]
    lines += [
        f"- needs, beside the logits: {', '.join(sorted(default.needs)) or 'nothing'}",
        f"- source: {method.source}",
    ]
    if method.Options.model_fields:
        lines += ["", "Options:", "", *_options(method.Options)]
    return "\n".join(lines)


def _options(schema: type[MethodOptions]) -> list[str]:
    published = schema.presets.get("published", {})
    lines = []
    for key, field in schema.model_fields.items():
        default = f"{field.default!r}" if not isinstance(field.default, str) else field.default
        if key in published and published[key] != field.default:
            default += f"; published: {published[key]}"
        kind = _kind(field.annotation)
        text = field.description or "which computation"
        lines.append(f"- `{key}`: {text} ({kind}; default {default})")
    return lines


def _kind(annotation: Any) -> str:
    """Return what values an option takes, in a word or as the choices."""
    origin = get_origin(annotation)
    if origin is Literal:
        return " or ".join(str(choice) for choice in get_args(annotation))
    if origin is Annotated:
        return _kind(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return " or ".join(_kind(part) for part in get_args(annotation))
    if origin is list:
        return "list"
    return {float: "number", int: "whole number", str: "text", bool: "yes or no"}.get(annotation, str(annotation))


def page() -> str:
    """Return docs/methods.md."""
    return "\n".join([HEADING, *(describe(name) + "\n" for name, _ in list_methods())])


if __name__ == "__main__":
    print(page(), end="")
