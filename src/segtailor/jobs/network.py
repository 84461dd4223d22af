"""Opening the network that a job works with, its card, and the device it runs on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from segtailor.errors import SegtailorError

if TYPE_CHECKING:
    import torch
    from torch import nn


def open_model(model: str | Path | nn.Module) -> nn.Module:
    """Return ``model`` itself if it is a network, else load it from a run folder, a .safetensors file or a URI."""
    if not isinstance(model, str | Path):
        return model
    from segtailor.models import load_model

    return load_model(model)


def open_card(model: str | Path | nn.Module) -> dict[str, Any]:
    """Return the card of the weights ``model``; empty for a network or for foreign weights, which carry none."""
    if not isinstance(model, str | Path):
        return {}
    path = Path(model)
    if path.is_dir():
        found = [path / name for name in ("student.safetensors", "model.safetensors") if (path / name).exists()]
        path = found[0] if found else path
    if path.suffix != ".safetensors":
        return {}
    from segtailor.models import read_card

    return read_card(path)


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` takes a GPU when there is one. Raises SegtailorError for no such."""
    import torch

    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SegtailorError(f"device '{name}' cannot be used here; try auto, cpu or cuda") from error
    return device
