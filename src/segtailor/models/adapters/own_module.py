"""``module:package.module:factory``: a user's own network, made by a function of theirs."""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from segtailor.errors import SegtailorError, reason, unknown
from segtailor.models.adapters import Choices
from segtailor.models.adapters.adapted import Adapted
from segtailor.models.preprocess import Preprocess


def create(rest: str, num_classes: int, pretrained: bool | str | Path, choices: Choices) -> Adapted:
    """Build the network that ``rest`` (``package.module:factory``) makes.

    The factory, a function or a class, is called with ``num_classes`` and ``pretrained`` as far as it takes them by
    name; it returns a module that gives logits (B,K,h,w) for preprocessed images (B,3,H,W), in one of the forms that
    `read_result` knows. What the images must be is the recipe's ``preprocess`` (default: ImageNet statistics). Raises
    SegtailorError where there is no such function, or it fails.
    """
    factory = _find(rest)
    takes = _parameters(factory)
    if pretrained and takes is not None and "pretrained" not in takes:
        raise SegtailorError(f"module:{rest} takes no `pretrained`; leave it out, or give `weights`")
    given = {"num_classes": num_classes, "pretrained": pretrained}
    if not pretrained and takes is None:
        del given["pretrained"]
    arguments = {name: value for name, value in given.items() if takes is None or name in takes}
    net = _call(rest, factory, arguments)
    if not isinstance(net, nn.Module):
        raise SegtailorError(f"module:{rest} returns {type(net).__name__}, not a torch.nn.Module")
    try:
        preprocess = Preprocess(**choices.preprocess)
    except (TypeError, ValueError) as error:
        raise SegtailorError(f"module:{rest}: {error}") from error
    return Adapted(f"module:{rest}", num_classes, net, preprocess, classifier=choices.classifier, taps=choices.taps)


def load(rest: str, choices: Choices) -> Adapted:
    """Raise SegtailorError: a factory has no trained weights."""
    raise SegtailorError(
        f"module:{rest} is a network without weights; name it as `model`, with `weights: FILE` (its state dict)"
    )


def _find(rest: str) -> Callable[..., Any]:
    module_name, colon, factory_name = rest.partition(":")
    if not colon or not module_name or not factory_name:
        raise SegtailorError(f"module:{rest}: write module:package.module:factory")
    sys.path.insert(0, "")  # a file beside the recipe is found as with `python -m`
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        hint = (
            "is it on PYTHONPATH, or in the folder of the command?"
            if error.name in _parents(module_name)
            else (f"install {error.name}")
        )
        raise SegtailorError(f"module:{rest}: cannot import {module_name} ({error}); {hint}") from error
    except Exception as error:  # the user's own code may fail in any way
        raise SegtailorError(f"module:{rest}: {module_name} fails when it is imported: {_place(error)}") from error
    finally:
        sys.path.remove("")
    factory = getattr(module, factory_name, None)
    if factory is None:
        names = [name for name, value in vars(module).items() if name[0] != "_" and callable(value)]
        raise unknown(f"function of {module_name}", factory_name, names)
    if not callable(factory):
        raise SegtailorError(f"module:{rest}: {factory_name} is a {type(factory).__name__}, no function or class")
    return factory  # type: ignore[no-any-return]


def _parents(module_name: str) -> list[str]:
    parts = module_name.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def _parameters(factory: Callable[..., Any]) -> set[str] | None:
    """Return the names that ``factory`` takes, None where it takes any or does not say."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError:
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters if parameter.kind is not parameter.POSITIONAL_ONLY}


def _call(rest: str, factory: Callable[..., Any], arguments: dict[str, Any]) -> Any:
    try:
        return factory(**arguments)
    except SegtailorError:
        raise
    except Exception as error:  # the user's own code may fail in any way
        shown = ", ".join(f"{name}={value}" for name, value in arguments.items())
        raise SegtailorError(f"module:{rest} fails when it is called with ({shown}): {_place(error)}") from error


def _place(error: Exception) -> str:
    """Return what went wrong, and the line of code where."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {reason(error)[:160]}"
    return f"{what} ({Path(frame.filename).name}, line {frame.lineno})"
