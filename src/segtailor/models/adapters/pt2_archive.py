"""The contents of a ``.pt2`` file, read as data: its graph from JSON, its tensors from raw bytes.

`torch.export.load` is not used: it unpickles sample inputs, custom objects and tensor subclasses, and evaluates the
expressions and names of the graph as Python.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segtailor.errors import SegtailorError, reason

SCHEMA = 8
"""The major version of the graph's format that is read."""
DTYPES = {
    1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 6: torch.float16, 7: torch.float32,
    8: torch.float64, 9: torch.complex32, 10: torch.complex64, 11: torch.complex128, 12: torch.bool, 13: torch.bfloat16,
}  # fmt: skip
"""Scalar types by their numbers in the format."""
AGAIN = "export it again by torch.export.save with PyTorch 2.8 or later"


@dataclass
class Archive:
    """A program: its graph and signature as JSON, its tensors by name, and the ranges of its free sizes."""

    graph: dict[str, Any]
    signature: dict[str, Any]
    outputs: list[str]
    tensors: dict[str, Tensor]
    parameters: set[str]
    ranges: dict[str, dict[str, int | None]]


def read_archive(path: Path) -> Archive:
    """Read a file that `torch.export.save` wrote; nothing in it is executed.

    Raises SegtailorError for a file that is missing, damaged, compiled, of an older format, or that holds pickled
    objects.
    """
    if not path.is_file():
        raise SegtailorError(f"no such file: {path}; give the path of a .pt2 file")
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive, path)
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, StopIteration, RuntimeError, OSError) as error:
        raise SegtailorError(
            f"{path} is damaged or no exported program ({type(error).__name__}: {reason(error)[:100]}); {AGAIN}"
        ) from error


def _read(archive: zipfile.ZipFile, path: Path) -> Archive:
    names = archive.namelist()
    if "serialized_exported_program.json" in names:
        raise SegtailorError(f"{path} has the format of an older PyTorch, which pickles its tensors; {AGAIN}")
    root = next((name.removesuffix("archive_format") for name in names if name.endswith("/archive_format")), None)
    if root is None:
        raise SegtailorError(f"{path} is no exported program (a zip file without archive_format); {AGAIN}")
    models = [name.removeprefix(f"{root}models/") for name in names if name.startswith(f"{root}models/")]
    if not models:
        compiled = any(name.startswith(f"{root}data/aotinductor/") for name in names)
        what = "a program compiled to native code, which is not run" if compiled else "no program"
        raise SegtailorError(f"{path} holds {what}; {AGAIN}")
    if len(models) > 1 and "model.json" not in models:
        raise SegtailorError(f"{path} holds {len(models)} programs ({', '.join(sorted(models)[:5])}); save one alone")
    model = "model" if "model.json" in models else models[0].removesuffix(".json")
    content = json.loads(archive.read(f"{root}models/{model}.json"))
    major = content["schema_version"]["major"]
    if major != SCHEMA:
        raise SegtailorError(f"{path} has the format {major} of exported programs where {SCHEMA} is read; {AGAIN}")
    weights, parameters = _tensors(archive, path, f"{root}data/weights/", model, "weights")
    constants, _ = _tensors(archive, path, f"{root}data/constants/", model, "constants")
    module = content["graph_module"]
    spec = next((entry["signature"]["out_spec"] for entry in module["module_call_graph"] if not entry["fqn"]), None)
    return Archive(
        graph=module["graph"],
        signature=module["signature"],
        outputs=_output_names(json.loads(spec)[1] if spec else None),
        tensors={**constants, **weights},
        parameters=parameters,
        ranges=content.get("range_constraints", {}),
    )


def _tensors(
    archive: zipfile.ZipFile, path: Path, folder: str, model: str, kind: str
) -> tuple[dict[str, Tensor], set[str]]:
    """Return the tensors of one folder, and which of them are parameters."""
    if f"{folder}{model}.pt" in archive.namelist():  # PyTorch 2.8 pickles them; its unpickler of tensors reads that
        return _unpickled(archive.read(f"{folder}{model}.pt"), path, kind)
    config = json.loads(archive.read(f"{folder}{model}_{kind}_config.json"))["config"]
    stored: dict[str, Tensor] = {}
    tensors: dict[str, Tensor] = {}
    parameters = set()
    for name, entry in config.items():
        file, meta = entry["path_name"], entry["tensor_meta"]
        if entry["use_pickle"] or meta is None or not file.startswith(("weight_", "tensor_")):
            raise SegtailorError(
                f"{path} holds a pickled object ({name}), which is not read; export a network of plain tensors"
            )
        dtype = DTYPES[meta["dtype"]]
        if file not in stored:  # several tensors may share one storage
            data = bytearray(archive.read(f"{folder}{file}"))
            stored[file] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        sizes, strides = ([side["as_int"] for side in meta[key]] for key in ("sizes", "strides"))
        tensors[name] = stored[file].as_strided(sizes, strides, meta["storage_offset"]["as_int"]).contiguous()
        if entry["is_param"]:
            parameters.add(name)
    return tensors, parameters


def _unpickled(data: bytes, path: Path, kind: str) -> tuple[dict[str, Tensor], set[str]]:
    try:
        found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:
        raise SegtailorError(
            f"{path}: its {kind} hold more than tensors, which is not read ({reason(error)[:100]}); {AGAIN}"
        ) from error
    tensors = {name: value.detach() for name, value in found.items() if isinstance(value, Tensor)}
    if len(tensors) != len(found):
        raise SegtailorError(f"{path}: its {kind} hold more than tensors, which is not read; {AGAIN}")
    return tensors, {name for name, value in found.items() if isinstance(value, torch.nn.Parameter)}


def _output_names(spec: dict[str, Any] | None, before: str = "") -> list[str]:
    """Return the outputs' names: keys of mappings and numbers of sequences, joined by dots.

    >>> leaf = {"type": None, "context": None, "children_spec": []}
    >>> _output_names({"type": "builtins.dict", "context": '["out", "aux"]', "children_spec": [leaf, leaf]})
    ['out', 'aux']
    """
    if spec is None or spec["type"] is None:
        return [before or "output"]
    children = spec["children_spec"]
    try:
        keys = json.loads(spec["context"] or "null")
    except (TypeError, ValueError):
        keys = None
    if not isinstance(keys, list) or len(keys) != len(children):
        keys = list(range(len(children)))
    return [
        name
        for key, child in zip(keys, children, strict=True)
        for name in _output_names(child, f"{before}.{key}" if before else str(key))
    ]
