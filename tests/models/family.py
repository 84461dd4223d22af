"""The published family's golden figures, and checkpoints drawn by the rule of their README."""

from __future__ import annotations

import json
import math
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

GOLDEN = Path(__file__).parent.parent / "golden"
LAYOUTS: dict[str, dict[str, Any]] = json.loads((GOLDEN / "published_layouts.json").read_text())


@cache
def outputs() -> dict[str, Tensor]:
    return load_file(GOLDEN / "published_outputs.safetensors")


def layout(model: str) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of each tensor, in file order."""
    entries = LAYOUTS[model]["state_dict"]
    pairs = entries.items() if isinstance(entries, dict) else entries
    return [(name, tuple(shape)) for name, shape in pairs]


def draw(name: str, shape: tuple[int, ...]) -> Tensor:
    """The tensor that the golden figures were computed with."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    if name.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.long)
    if name.endswith("running_var"):
        return torch.rand(shape, generator=generator) + 0.5
    noise = torch.randn(shape, generator=generator)
    if name.endswith("running_mean"):
        return 0.1 * noise
    if len(shape) >= 2:
        return noise * math.sqrt(0.5 / math.prod(shape[1:]))
    return 1 + 0.1 * noise if name.endswith(".weight") else 0.1 * noise


def checkpoint(model: str) -> dict[str, Tensor]:
    return {name: draw(name, shape) for name, shape in layout(model)}


def blank_checkpoint(model: str) -> dict[str, Tensor]:
    """The same names and shapes, all zeros: for tests that never run the network."""
    return {
        name: torch.zeros(shape, dtype=torch.long if name.endswith("_tracked") else torch.float32)
        for name, shape in layout(model)
    }
