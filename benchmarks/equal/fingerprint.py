"""What a row of the study was made by: code, recipe, teacher and PyTorch. Rows that differ are never put together."""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from segtailor.config import CompareRecipe
from segtailor.engine.runs import computing_settings
from segtailor.errors import SegtailorError
from segtailor.jobs.build import arm_recipe
from segtailor.methods import METHODS

PACKAGE = "segtailor"
TEACHER_ROOTS = ("engine.loop", "engine.learner", "jobs.setup", "data.camvid", "models.segmenter")
ROOTS = (*TEACHER_ROOTS, "engine.distiller", "jobs.stages")
PASSED_OVER = (
    *("report", "comparison", "recipes", "cli", "config", "errors"),
    *("jobs.unlabelled", "jobs.networks", "engine.logging", "engine.launch", "engine.ticker", "engine.preemption"),
    *("engine.runs", "engine.memory", "data.download", "data.pack", "data.check", "data.known", "data.unpaired"),
    *("models.adapters", "models.hub", "models.licences", "models.inspect", "models.published", "models.layout"),
    *("models.hf_segformer", "models.mit", "models.plain_transformer", "models.profile", "models.atomic"),
    *("models.create", "models.store", "models.class_map"),
    *("models.heads.fcn", "models.heads.pspnet", "models.heads.segformer"),
)
"""What no row's figures depend on: reports, launching, data, and the networks that a row names when it uses them."""
HEADS = {name: f"models.heads.{name}" for name in ("fcn", "pspnet", "segformer")}
BACKBONES = {"mit_": "models.mit", "vit_": "models.plain_transformer"}
"""The code of networks that is passed over, by the first part of a model's name and by how the second begins."""
SHELVES = ("methods", "data")
"""Packages whose ``__init__`` lists everything there is; a row depends on what it takes from there."""
ELSEWHERE = {"filename", "teacher.weights", "teacher.check"}
DESCRIBING = {"summary", "formula", "source", "sources", "widths", "extra_modules", "figures", "unsuited"}
"""Class attributes that only describe a method or its options."""


def fingerprint(recipe: CompareRecipe, arm: str, seed: int, teacher: str | None) -> dict[str, str]:
    """Return what the row of ``arm`` and ``seed`` is made by; ``teacher`` is the hash of its weights.

    ``code`` covers what all rows share, ``method`` the arm's own methods, ``network`` what only some networks use; none
    changes with comments, layout or descriptions.
    """
    single = arm_recipe(recipe, arm, seed)
    settings = computing_settings(single.model_dump(mode="json"))
    plain = {key: value for key, value in settings.items() if key not in ELSEWHERE}
    networks = [single.student.model, *([single.teacher.model] if single.teacher is not None else [])]
    own = sorted({METHODS[method.name].__module__ for method in single.method})
    return {
        "code": shared_code(),
        "method": code_hash(own),
        **network_code(*networks),
        "recipe": _digest(json.dumps(plain, sort_keys=True)),
        "teacher": teacher or "none",
        "torch": torch.__version__,
    }


def teacher_fingerprint(recipe: dict[str, Any]) -> dict[str, str]:
    """Return what a teacher is made by; ``recipe`` is that of `segtailor train`, resolved and plain."""
    plain = json.dumps(computing_settings(recipe), sort_keys=True)
    network = network_code(recipe["model"]["model"])
    return {"code": shared_code(TEACHER_ROOTS), **network, "recipe": _digest(plain), "torch": torch.__version__}


def network_code(*models: str) -> dict[str, str]:
    """Return the hash of what the networks use beside the code that all rows share, as ``network``; empty without any.

    >>> network_code("deeplabv3plus-lcnet_050")
    {}
    """
    modules: set[str] = set()
    for model in models:
        head, _, backbone = model.partition("-")
        modules |= {HEADS[head]} if head in HEADS else set()
        modules |= {module for start, module in BACKBONES.items() if backbone.startswith(start)}
    plain = {module: _plain(_tree(f"{PACKAGE}.{module}")) for module in modules}
    return {"network": _digest(json.dumps(plain, sort_keys=True))} if plain else {}


@cache
def shared_code(roots: tuple[str, ...] = ROOTS) -> str:
    """Return the hash of the code that every row depends on, or every teacher."""
    return code_hash([f"{PACKAGE}.{root}" for root in roots])


def code_hash(modules: Iterable[str]) -> str:
    """Return the hash of the syntax trees of ``modules`` and of all they import from the package."""
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in found or _passed_over(name):
            continue
        tree = _tree(name)
        if tree is None:
            continue
        if name.removeprefix(f"{PACKAGE}.") in SHELVES or name == PACKAGE:
            continue
        found[name] = _digest(_plain(tree))
        waiting += _imports(tree)
    return _digest(json.dumps(found, sort_keys=True))


def weights_hash(path: Path) -> str:
    """Return the hash of a ``.safetensors`` file's tensors: names, types, shapes and values.

    Its card does not matter: the same weights are the same teacher, in whatever run folder they were trained. Raises
    SegtailorError for a damaged file.
    """
    content, digest = path.read_bytes(), hashlib.sha256()
    try:
        start = 8 + int.from_bytes(content[:8], "little")
        header = json.loads(content[8:start])
        header.pop("__metadata__", None)
        for name, entry in sorted(header.items()):
            first, end = (start + offset for offset in entry["data_offsets"])
            digest.update(json.dumps([name, entry["dtype"], entry["shape"]]).encode())
            digest.update(content[first:end])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SegtailorError(f"{path} is damaged; remove {path.parent} and run it again") from error
    return digest.hexdigest()[:16]


def differences(found: dict[str, Any], expected: dict[str, str]) -> list[str]:
    """Return what ``found`` and ``expected`` do not agree in."""
    return [key for key in expected if found.get(key) != expected[key]]


def _passed_over(name: str) -> bool:
    inner = name.removeprefix(f"{PACKAGE}.")
    return any(inner == room or inner.startswith(f"{room}.") for room in PASSED_OVER)


def _tree(name: str) -> ast.Module | None:
    """Return the module's syntax tree without descriptions; None where ``name`` is no module (a function, a class)."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    if spec is None or spec.origin is None:
        return None
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
        if isinstance(node, ast.ClassDef):
            node.body = [item for item in node.body if not _describes(item)]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Field":
            node.keywords = [keyword for keyword in node.keywords if keyword.arg != "description"]
    return tree


def _describes(item: ast.stmt) -> bool:
    if isinstance(item, ast.Expr):
        return isinstance(item.value, ast.Constant)
    target = item.target if isinstance(item, ast.AnnAssign) else None
    return isinstance(target, ast.Name) and target.id in DESCRIBING


def _plain(node: object) -> str:
    """Return a syntax tree as text that is the same for every version of Python: what is empty is left out."""
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={_plain(value)}" for name, value in ast.iter_fields(node) if value is not None and value != []
        ]
        return f"{type(node).__name__}({','.join(fields)})"
    return f"[{','.join(map(_plain, node))}]" if isinstance(node, list) else repr(node)


def _imports(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == PACKAGE]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
