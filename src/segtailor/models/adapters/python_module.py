"""Networks written by users: ``module:package.module:factory``, made by a function, and Python objects (`adapt`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from segtailor.errors import SegtailorError
from segtailor.models.adapters import Choices
from segtailor.models.adapters.wrapper import Adapted, make_preprocess
from segtailor.models.network import Network
from segtailor.plugins import accepted_parameters, call_factory, load_object

OBJECT = "object:"
"""Prefix of the name of a network that was passed as a Python object."""


def adapt(
    module: nn.Module,
    num_classes: int,
    name: str | None = None,
    *,
    preprocess: dict[str, Any] | None = None,
    classifier: str | None = None,
    taps: dict[str, str] | None = None,
) -> Network:
    """Return ``module``, which gives logits (B,K,h,w) for preprocessed images (B,3,H,W), as a `Network`.

    A `Network` is returned as it is. ``name`` defaults to the class's; ``preprocess`` (default: ImageNet statistics),
    ``classifier`` and ``taps`` as in `create_model`. Raises SegtailorError where the module does not run or has
    another number of classes.
    """
    if isinstance(module, Network):
        if module.num_classes != num_classes:
            raise SegtailorError(f"{module.name} has {module.num_classes} classes where {num_classes} are asked for")
        return module
    if not isinstance(module, nn.Module):
        raise SegtailorError(f"a network is a torch.nn.Module, not {type(module).__name__}")
    full = OBJECT + (name or type(module).__name__).removeprefix(OBJECT)
    return Adapted(full, num_classes, module, make_preprocess(full, preprocess or {}), classifier=classifier, taps=taps)


def create(rest: str, num_classes: int, pretrained: bool | str | Path, choices: Choices) -> Adapted:
    """Build the network that ``rest`` (``package.module:factory``) makes.

    The factory, a function or a class, is called with ``num_classes`` and ``pretrained`` as far as it takes them by
    name; it returns a module that gives logits (B,K,h,w) for preprocessed images (B,3,H,W), in one of the forms that
    `read_result` knows. What the images must be is the recipe's ``preprocess`` (default: ImageNet statistics). Raises
    SegtailorError where there is no such function, or it fails.
    """
    factory = load_object(f"module:{rest}")
    takes = accepted_parameters(factory)
    if pretrained and takes is not None and "pretrained" not in takes:
        raise SegtailorError(f"module:{rest} takes no `pretrained`; leave it out, or give `weights`")
    given = {"num_classes": num_classes, "pretrained": pretrained}
    if not pretrained and takes is None:
        del given["pretrained"]
    arguments = {name: value for name, value in given.items() if takes is None or name in takes}
    net = call_factory(f"module:{rest}", factory, arguments)
    if not isinstance(net, nn.Module):
        raise SegtailorError(f"module:{rest} returns {type(net).__name__}, not a torch.nn.Module")
    preprocess = make_preprocess(f"module:{rest}", choices.preprocess)
    return Adapted(f"module:{rest}", num_classes, net, preprocess, classifier=choices.classifier, taps=choices.taps)


def load(rest: str, choices: Choices) -> Adapted:
    """Raise SegtailorError: a factory has no trained weights."""
    raise SegtailorError(
        f"module:{rest} is a network without weights; name it as `model`, with `weights: FILE` (its state dict)"
    )
