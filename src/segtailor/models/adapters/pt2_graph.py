"""The graph of an exported program, run node by node: PyTorch's own tensor operations, and nothing else."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from segtailor.errors import SegtailorError
from segtailor.models.adapters.pt2_values import PLACE, Environment, argument, filled, flat, names_of, references

TENSOR_OPERATION = re.compile(r"torch\.ops\.(aten|prims|torchvision)\.(\w+)\.(\w+)")
NUMBERS: dict[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in (
        "add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "pos", "abs", "lt", "le", "eq", "ne", "ge",
        "gt", "and_", "or_", "xor", "not_", "getitem", "lshift", "rshift",
    )},
    **{f"math.{name}": getattr(math, name) for name in ("ceil", "floor", "trunc", "sqrt", "log2")},
    "torch.sym_max": max, "torch.sym_min": min, "torch.sym_int": int, "torch.sym_float": float,
    "torch.sym_not": operator.not_, "torch._sym_sqrt": math.sqrt, "torch.sym_sum": sum,
    "torch.sym_ite": lambda condition, one, other: one if condition else other,
}  # fmt: skip
"""What a graph computes with sizes."""


@dataclass
class Node:
    """One call: its arguments, the names of what it gives, and which values nobody reads after it."""

    call: Callable[..., Any]
    args: list[Any]
    kwargs: dict[str, Any]
    results: list[str | None]
    modules: tuple[str, ...]
    done: list[str] = field(default_factory=list)


class Graph:
    """A graph as its JSON describes it; ``name`` is told in errors.

    Raises SegtailorError for an operation that is none of PyTorch's own on tensors, for one that reads or writes files,
    and for a graph that was exported in training mode.
    """

    def __init__(self, content: dict[str, Any], name: str, kept: set[str] | None = None) -> None:
        self.name = name
        self.inputs = [names_of(entry)[0] or "" for entry in content["inputs"]]
        self.outputs = [argument(entry, self._inner) for entry in content["outputs"]]
        self.nodes = [self._node(entry, kept or set()) for entry in content["nodes"]]
        self._release()

    def __call__(self, *values: Any, device: torch.device, watched: dict[str, str] | None = None) -> list[Any]:
        """Return the outputs for ``values``; ``watched`` (result -> name) is filled into the list's end, in order."""
        known: Environment = dict(zip(self.inputs, values, strict=True))
        seen: Environment = {}
        for node in self.nodes:
            given = node.call(*filled(node.args, known, device), **filled(node.kwargs, known, device))
            for result, value in zip(node.results, flat(given) if node.results else (), strict=True):
                if result is not None:
                    known[result] = value
                    if watched is not None and result in watched:
                        seen[result] = value
            for name in node.done:
                known.pop(name, None)
        return [*filled(self.outputs, known, device), *(seen[result] for result in watched or {})]

    def result_of(self, module: str) -> str | None:
        """Return the name of the last value made inside the module of that path; None where there is no such module."""
        inside = [node for node in self.nodes if module in node.modules and node.results and node.results[-1]]
        return inside[-1].results[-1] if inside else None

    @property
    def modules(self) -> list[str]:
        """Paths of the modules in which something is computed."""
        return list(dict.fromkeys(path for node in self.nodes for path in node.modules if path))

    def _inner(self, content: dict[str, Any]) -> Graph:
        return Graph(content, self.name)

    def _node(self, entry: dict[str, Any], kept: set[str]) -> Node:
        call = self._operation(entry["target"])
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for given in entry["inputs"]:
            value = argument(given["arg"], self._inner)
            if given.get("kind") == 1 or not isinstance(call, torch._ops.OpOverload):
                args.append(value)
            else:
                kwargs[given["name"]] = value
        if isinstance(call, torch._ops.OpOverload):
            self._check(call, entry, kept)
        elif call is _wrapped:
            call, args, kwargs = Wrapped(entry["target"], args), _behind_graph(args), {"device": PLACE}
        stack = str((entry.get("metadata") or {}).get("nn_module_stack") or "")
        # each entry is "key,path,type"; names that begin with an underscore stand for no module
        modules = tuple(item.split(",")[1] for item in stack.split(";") if item.count(",") >= 2 and item[0] != "_")
        results = [name for given in entry["outputs"] for name in names_of(given)]
        return Node(call, args, kwargs, results, modules)

    def _operation(self, target: str) -> Callable[..., Any]:
        found = TENSOR_OPERATION.fullmatch(target)
        if found is not None:
            library, name, overload = found.groups()
            if library == "torchvision":
                import torchvision  # noqa: F401  (registers its operations)
            operation = getattr(getattr(getattr(torch.ops, library), name, None), overload, None)
            if not isinstance(operation, torch._ops.OpOverload):
                raise SegtailorError(f"{self.name} uses {target}, which this PyTorch does not have; export it again")
            return operation
        if target in NUMBERS:
            return NUMBERS[target]
        if target in (GRAD_MODE, AUTOCAST):
            return _wrapped
        raise SegtailorError(
            f"{self.name} uses {target}, which is not run here: only PyTorch's own tensor operations are; export it "
            "without, or to ONNX"
        )

    def _check(self, call: torch._ops.OpOverload, entry: dict[str, Any], kept: set[str]) -> None:
        schema = call._schema
        if any("file" in argument.name for argument in schema.arguments):
            raise SegtailorError(f"{self.name} uses {entry['target']}, which opens files and is not run here")
        given = {item["name"]: item["arg"] for item in entry["inputs"]}
        training = any(given.get(key, {}).get("as_bool") for key in ("training", "train"))
        written = {
            name
            for argument in schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write and argument.name in given
            for name in names_of(given[argument.name])
        }
        if training or written & kept:
            raise SegtailorError(f"{self.name} was exported in training mode; call eval() on it and export it again")

    def _release(self) -> None:
        """Note after which node each value is no longer read, so that its memory is free."""
        read = set(references(self.outputs))
        for node in reversed(self.nodes):
            here = set(references([node.args, node.kwargs])) | {name for name in node.results if name}
            node.done = sorted(here - read)
            read |= here


GRAD_MODE = "torch.ops.higher_order.wrap_with_set_grad_enabled"
AUTOCAST = "torch.ops.higher_order.wrap_with_autocast"


def _wrapped(*_: Any) -> None:
    """Stands for the two wrappers until their graph is read."""


class Wrapped:
    """A part of a graph that runs with another gradient mode, which is nothing here, or under autocast."""

    def __init__(self, target: str, args: list[Any]) -> None:
        self.graph = next(argument for argument in args if isinstance(argument, Graph))
        self.autocast = args[:3] if target == AUTOCAST else None

    def __call__(self, *values: Any, device: torch.device) -> list[Any]:
        """Return the part's outputs."""
        if self.autocast is None:
            return self.graph(*values, device=device)
        _, dtype, enabled = self.autocast
        with torch.autocast(device.type, dtype=dtype, enabled=enabled) if enabled else nullcontext():
            return self.graph(*values, device=device)


def _behind_graph(args: list[Any]) -> list[Any]:
    place = next(index for index, argument in enumerate(args) if isinstance(argument, Graph))
    return args[place + 1 :]
