"""Code of other packages: ``module:package.file:name`` in a recipe, and entry points."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from segtailor.errors import SegtailorError, reason, unknown

PREFIX = "module:"


def load_object(spec: str) -> Callable[..., Any]:
    """Return the function or class that ``spec``, ``module:package.file:name``, names.

    A file in the working directory is found, too. Raises ``SegtailorError``, in one line, when it cannot be imported.
    """
    module_name, colon, name = spec.removeprefix(PREFIX).partition(":")
    if not colon or not module_name or not name:
        raise SegtailorError(f"{spec}: write module:package.module:factory")
    sys.path.insert(0, "")  # as `python -m` does
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        own = {module_name[:end] for end in range(len(module_name) + 1)}
        where = "is it on PYTHONPATH, or in the folder of the command?"
        hint = where if error.name in own else f"install {error.name}"
        raise SegtailorError(f"{spec}: cannot import {module_name} ({error}); {hint}") from error
    except Exception as error:  # foreign code may fail in any way
        raise SegtailorError(f"{spec}: {module_name} fails when it is imported: {locate(error)}") from error
    finally:
        sys.path.remove("")
    found = getattr(module, name, None)
    if found is None:
        names = [name for name, value in vars(module).items() if name[0] != "_" and callable(value)]
        raise unknown(f"function or class of {module_name}", name, names)
    if not callable(found):
        raise SegtailorError(f"{spec}: {name} is a {type(found).__name__}, no function or class")
    return found  # type: ignore[no-any-return]


def find_entry_point(group: str, name: str) -> EntryPoint | None:
    """Return the entry point ``name`` of ``group``, None when no installed package registers one."""
    return next(iter(entry_points(group=group, name=name)), None)


def entry_point_names(group: str) -> list[str]:
    """Return the names that installed packages register in ``group``, sorted."""
    return sorted({point.name for point in entry_points(group=group)})


def load_entry_point(point: EntryPoint) -> Any:
    """Return what ``point`` names; raises ``SegtailorError``, in one line, when its package cannot be imported."""
    try:
        return point.load()
    except Exception as error:
        package = point.dist.name if point.dist is not None else "a package"
        raise SegtailorError(f"{point.name}, which {package} registers, cannot be imported: {locate(error)}") from error


def accepted_parameters(factory: Callable[..., Any]) -> set[str] | None:
    """Return the names that ``factory`` accepts as keywords, None where it accepts any or is not introspectable."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}


def call_factory(spec: str, factory: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """Return ``factory(**arguments)``; whatever it raises becomes a ``SegtailorError`` that names the line of code."""
    try:
        return factory(**arguments)
    except SegtailorError:
        raise
    except Exception as error:  # foreign code may fail in any way
        shown = ", ".join(f"{name}={value}" for name, value in arguments.items())
        raise SegtailorError(f"{spec} fails when it is called with ({shown}): {locate(error)}") from error


def locate(error: Exception) -> str:
    """Return what went wrong, and the line of code where."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {reason(error)[:160]}"
    return f"{what} ({Path(frame.filename).name}, line {frame.lineno})"
