"""``module:package.module:factory``: a user's own network, made by a function of theirs."""

from __future__ import annotations

import importlib
import inspect
import sys
from pathlib import Path

from torch import nn

from segtailor.errors import SegtailorError, unknown
from segtailor.models.adapters import Choices
from segtailor.models.adapters.adapted import Adapted
from segtailor.models.preprocess import Preprocess


def create(rest: str, num_classes: int, pretrained: bool | str | Path, choices: Choices) -> Adapted:
    """Build the network that ``rest`` (``package.module:factory``) makes.

    The factory is called with ``num_classes``, and with ``pretrained`` where it takes one; it returns a module that
    gives logits (B,K,h,w) for preprocessed images (B,3,H,W). What the images must be is the recipe's
    ``preprocess`` (default: ImageNet statistics). Raises SegtailorError where there is no such function, or it fails.
    """
    module_name, colon, factory_name = rest.partition(":")
    if not colon or not module_name or not factory_name:
        raise SegtailorError(f"module:{rest}: write module:package.module:factory")
    sys.path.insert(0, "")  # a file beside the recipe is found as with `python -m`
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise SegtailorError(f"module:{rest}: cannot import {module_name} ({error}); is it on PYTHONPATH?") from error
    finally:
        sys.path.remove("")
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise unknown(f"function of {module_name}", factory_name, [name for name in vars(module) if name[0] != "_"])
    arguments: dict[str, object] = {"num_classes": num_classes}
    if "pretrained" in inspect.signature(factory).parameters:
        arguments["pretrained"] = pretrained
    elif pretrained:
        raise SegtailorError(f"module:{rest} takes no `pretrained`; leave it out, or give `weights`")
    try:
        net = factory(**arguments)
    except TypeError as error:
        raise SegtailorError(f"module:{rest} cannot be called with {', '.join(arguments)} ({error})") from error
    if not isinstance(net, nn.Module):
        raise SegtailorError(f"module:{rest} returns {type(net).__name__}, not a torch.nn.Module")
    return Adapted(
        f"module:{rest}",
        num_classes,
        net,
        Preprocess(**choices.preprocess),
        classifier=choices.classifier,
        taps=choices.taps,
    )


def load(rest: str, choices: Choices) -> Adapted:
    """Raise SegtailorError: a factory has no trained weights."""
    raise SegtailorError(
        f"module:{rest} is a network without weights; name it as `model`, with `weights: FILE` (its state dict)"
    )
