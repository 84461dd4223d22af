"""What each of two processes does to test a tap under data parallelism."""

from __future__ import annotations

import os
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

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


def work(rank: int, port: int, taps: dict[str, str], results: Any) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    image = photo(64, 96, 2)[rank : rank + 1]
    found = {name: gradients(name, path, image, world=2) for name, path in taps.items()}
    results.put((rank, {name: {key: grad.numpy() for key, grad in grads.items()} for name, grads in found.items()}))
    dist.barrier()
    dist.destroy_process_group()


def on_two_processes(port: int, taps: dict[str, str]) -> dict[str, dict[str, Tensor]]:
    """Return, by network, what the first of two processes ends with, each with one of two images."""
    context = mp.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=work, args=(rank, port, taps, results), daemon=True) for rank in range(2)]
    for worker in workers:
        worker.start()
    found = dict(results.get(timeout=240) for _ in workers)
    for worker in workers:
        worker.join(20)
    return {name: {key: torch.from_numpy(grad) for key, grad in grads.items()} for name, grads in found[0].items()}
