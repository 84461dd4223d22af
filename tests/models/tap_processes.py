"""Gradients of a tap under data parallelism: this process and a second one, each with one of two images."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from processes import SERVER
from segtailor import create_model

from .foreign import photo


class Tapped(nn.Module):
    """A loss that comes from the named tap alone."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = create_model(name, 3, taps={"mine": path}).eval()

    def forward(self, images: Tensor) -> Tensor:
        output = self.student(images)
        return output.taps["mine"].square().mean() + 0 * output.logits.sum()


def gradients(name: str, path: str, images: Tensor, world: int = 1) -> dict[str, Tensor]:
    """Return the gradients of `Tapped` for ``images``."""
    module = Tapped(name, path)
    runner: Any = module
    if world > 1:
        runner = nn.parallel.DistributedDataParallel(module, broadcast_buffers=False, find_unused_parameters=True)
    runner(images).backward()
    return {key: value.grad for key, value in module.named_parameters() if value.grad is not None}


def work(rank: int, port: int, taps: dict[str, str]) -> dict[str, dict[str, Tensor]]:
    """Return, by network, the gradients that process ``rank`` of two ends with."""
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, rank=rank, world_size=2, timeout=timedelta(seconds=240))
    try:
        image = photo(64, 96, 2)[rank : rank + 1]
        return {name: gradients(name, path, image, world=2) for name, path in taps.items()}
    finally:
        dist.destroy_process_group()


def on_two_processes(port: int, taps: dict[str, str]) -> dict[str, dict[str, Tensor]]:
    """Return, by network, the gradients that the first of two processes ends with."""
    second = SERVER.Process(target=work, args=(1, port, taps), daemon=True)
    second.start()
    found = work(0, port, taps)
    second.join(60)
    assert second.exitcode == 0
    return found
