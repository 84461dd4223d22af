"""Arguments and results in the graph of an exported program, as its JSON writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch

from segtailor.errors import SegtailorError
from segtailor.models.adapters.pt2_archive import DTYPES

FORMATS = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format}
"""Memory formats by their numbers."""
Environment = dict[str, Any]
"""Values by name."""


class Ref(NamedTuple):
    """The value that an earlier node gave."""

    name: str


class Place:
    """Stands for the device on which the graph is run."""


PLACE = Place()


def argument(given: dict[str, Any], graph: Callable[[dict[str, Any]], Any]) -> Any:
    """Return an argument: plain values as they are, `Ref` for what an earlier node gave; ``graph`` makes inner graphs.

    Raises SegtailorError for a kind that is not known, custom objects among them.
    """
    ((kind, value),) = given.items()
    if kind in ("as_int", "as_bool", "as_string", "as_ints", "as_bools", "as_strings", "as_int_lists"):
        return value
    if kind == "as_none":
        return None
    if kind == "as_float":
        return float(value)
    if kind == "as_floats":
        return [float(item) for item in value]
    if kind == "as_tensor":
        return Ref(value["name"])
    if kind == "as_name":
        return Ref(value)
    if kind == "as_tensors":
        return [Ref(item["name"]) for item in value]
    if kind in ("as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
        return argument(value, graph)
    if kind in ("as_sym_ints", "as_sym_floats", "as_sym_bools", "as_optional_tensors"):
        return [argument(item, graph) for item in value]
    if kind == "as_nested_tensors":
        return [[Ref(item["name"]) for item in row] for row in value]
    if kind == "as_scalar_type":
        return DTYPES[value]
    if kind == "as_memory_format":
        return FORMATS[value]
    if kind == "as_layout" and value == 7:
        return torch.strided
    if kind == "as_device":
        return PLACE
    if kind == "as_complex":
        return complex(value["real"], value["imag"])
    if kind == "as_graph":
        return graph(value["graph"])
    raise SegtailorError(f"its graph has an argument of kind {kind}, which is not read; export it to ONNX instead")


def names_of(given: dict[str, Any]) -> list[str | None]:
    """Return the names of what a node takes or gives: one, several, or None for what has no name."""
    value = argument(given, lambda _: None)
    found = value if isinstance(value, list) else [value]
    return [item.name if isinstance(item, Ref) else None for item in found]


def filled(value: Any, known: Environment, device: torch.device) -> Any:
    """Return ``value`` with what is ``known`` in the place of references."""
    if isinstance(value, Ref):
        return known[value.name]
    if isinstance(value, list):
        return [filled(item, known, device) for item in value]
    if isinstance(value, dict):
        return {key: filled(item, known, device) for key, item in value.items()}
    return device if value is PLACE else value


def references(value: Any) -> Iterator[str]:
    """Yield the names that ``value`` refers to."""
    if isinstance(value, Ref):
        yield value.name
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from references(item)


def flat(value: Any) -> Iterator[Any]:
    """Yield a call's results one by one."""
    if isinstance(value, tuple | list) and not isinstance(value, torch.Size):
        for item in value:
            yield from flat(item)
    else:
        yield value
