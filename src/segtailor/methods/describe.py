"""The pages of the methods: `segtailor methods NAME`, and docs/methods/."""

from __future__ import annotations

import inspect
import json
import re
import sys
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from segtailor.errors import SegtailorError
from segtailor.methods import METHODS, create_method, find_method
from segtailor.methods.base import Method, MethodOptions

HEADING = """# Methods

These pages are written by `make docs`; `segtailor methods NAME` prints one. Choose a method in a recipe with
`method: {name: kt, variant: clean}`, its options beside the name, or list several, each with a `weight`:
`method: [{name: kd}, {name: skd, weight: 0.5}]`. `variant: published` computes what the published code computes, which
golden figures check where there are any; `variant: clean`, the default, fixes its known defects and leaves void out.
A weight of 0 drops a term. In formulas `T` is a temperature, `s` the student, `t` the teacher, `x` a position, `c` a
channel. Where the grids differ, the teacher is brought to the student's by bilinear resizing, before any softmax.

What surrounds a method differs from the published code in four small ways, in the `published-*` recipes, too. The
cross-entropy is the mean over the valid pixels of the whole batch, not the mean of the devices' means. A scaled mask
takes the nearest pixel by its center, not by its corner as OpenCV does. Images are shuffled anew in each epoch, not as
one list of all epochs. Padding has the mean color rounded to whole gray levels.

Your own method needs no fork: `method: {name: "module:package.file:Class"}` in a recipe takes any subclass of
`segtailor.Method` with `name`, `summary` and `terms`; an installed package registers it in the entry point group
`segtailor.methods`. In your own training loop, see [your own loop](../your-own-loop.md).
"""
WIDTHS = {"feature": 8, **{f"stages.{index}": 8 for index in range(4)}}
USES = {"unused": "unused", "ignore_mask": "only to leave void pixels out", "classes": "their classes"}
MARKED = re.compile(r"(<!-- methods: (\w+) -->).*?(<!-- /methods -->)", re.DOTALL)
"""Where a page lists methods; see :func:`with_lists`."""


def describe(name: str) -> str:
    """Return what the method computes, reads, costs and takes, as Markdown that also reads well on a terminal.

    That is its class's docstring after the first line, and what the class declares. Raises :class:`SegtailorError` with
    the nearest names for an unknown method.

    >>> describe("kd").splitlines()[0]
    '# kd'
    """
    method = find_method(name)
    _, _, details = inspect.cleandoc(method.__doc__ or "").partition("\n\n")
    lines = [f"# {method.name}", ""]
    if method.summary:
        lines += [f"{method.summary[0].upper()}{method.summary[1:]}.", ""]
    if details:
        lines += [*details.splitlines(), *([] if details.splitlines()[-1].startswith(("- ", "  ")) else [""])]
    lines += [f"- {title}: {text}" for title, text in _facts(name, method).items()]
    if method.Options.model_fields:
        lines += ["", "Options:", "", *_options(method.Options)]
    return "\n".join(lines)


def _facts(name: str, method: type[Method[Any]]) -> dict[str, str]:
    default: Method[Any] | type[Method[Any]] = method
    with suppress(SegtailorError):  # one with required options, or with taps of certain networks, cannot be built here
        default = create_method(name, 2, student_channels=WIDTHS, teacher_channels=WIDTHS)
    inputs = sorted(default.inputs, key=lambda tap: (tap != "logits", tap != "aux_logits", tap))
    required = {"recipe": "a teacher", "none": "nothing", "own": "no teacher: it trains one first"}[default.teacher]
    if default.pretraining is not None:
        required += f"; {default.pretraining.about} are trained first"
    if default.adversary is not None:
        required += "; a discriminator is trained beside the student"
    return {
        "Inputs": ", ".join(inputs) or "none",
        "Labels": USES[default.labels],
        "Requires": required,
        "Channel alignment": method.channel_alignment,
        "Cost": cost(name),
    }


def with_lists(text: str) -> str:
    """Return a page with its lists of methods up to date: what is between ``<!-- methods: GROUP -->`` and its end.

    GROUP is ``all``, ``masked`` (the recipe's teacher, no classes), ``classes``, or ``own`` (other teachers).

    >>> with_lists("<!-- methods: own --><!-- /methods -->")
    '<!-- methods: own -->`none`, `lad`<!-- /methods -->'
    """
    groups: dict[str, list[str]] = {"all": [], "masked": [], "classes": [], "own": []}
    for name in METHODS:
        default = create_method(name, 2, student_channels=WIDTHS, teacher_channels=WIDTHS)
        group = "classes" if default.labels == "classes" else "masked"
        groups[group if default.teacher == "recipe" else "own"].append(name)
        groups["all"].append(name)
    lists = {group: ", ".join(f"`{name}`" for name in names) for group, names in groups.items()}
    return MARKED.sub(lambda found: f"{found[1]}{lists[found[2]]}{found[3]}", text)


def cost(name: str) -> str:
    """Return what a training step with the method costs above the two networks, as it was measured."""
    costs = json.loads((files("segtailor.methods") / "costs.json").read_text(encoding="utf-8"))
    found = costs["methods"].get(name)
    if found is None:
        return "nothing" if find_method(name).teacher == "none" else "not measured"
    text = f"{100 * found['time']:.1f} % of the networks' time and {found['memory'] / 1e6:.0f} MB above their peak"
    return f"{text} ({costs['setting']})" + (f"; {found['note']}" if found.get("note") else "")


def _options(schema: type[MethodOptions]) -> list[str]:
    lines = []
    for key, field in schema.model_fields.items():
        extra = schema.extra(key)
        default = _shown(field.get_default(call_default_factory=True, validated_data={}))
        default = "required" if field.is_required() else f"default {default}"
        if "published" in extra and f"default {_shown(extra['published'])}" != default:
            default += f"; published: {_shown(extra['published'])}"
        kind = _kind(field.annotation)
        text = field.description or "which computation"
        source = f"; from: {extra['source']}" if "source" in extra else ""
        lines.append(f"- `{key}`: {text} ({kind}; {default}{source})")
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
    index = [f"- [{name}]({name}.md): {method.summary}" for name, method in METHODS.items()]
    made = {f"{name}.md": describe(name) + "\n" for name in METHODS}
    return {"README.md": "\n".join([HEADING, *index]) + "\n", **made}


def write_pages(root: Path) -> None:
    """Write :func:`pages` into docs/methods below ``root``, and the lists of methods in README and docs."""
    folder = root / "docs" / "methods"
    folder.mkdir(parents=True, exist_ok=True)
    made = pages()
    for old in folder.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")
    for page in listing_pages(root):
        page.write_text(with_lists(page.read_text(encoding="utf-8")), encoding="utf-8")


def listing_pages(root: Path) -> list[Path]:
    """Return README and the pages of docs below ``root`` that list methods."""
    found = [root / "README.md", *(root / "docs").glob("*.md")]
    return [path for path in found if MARKED.search(path.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
