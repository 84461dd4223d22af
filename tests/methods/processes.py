"""Two processes that wait for jobs, so that the tests pay for starting them once; and the training step they run."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from processes import SERVER
from segtailor.losses import Step, cross_entropy
from segtailor.methods import Method, create_method
from segtailor.models.network import SegOutput

from .cases import CLASSES, STUDENT, TEACHER

Gradients = dict[str, Tensor]
Prepare = Callable[[Method], object]
"""Does to a method what its stage would; a function at module level, so that it can be sent to a process."""


class TinyNet(nn.Module):
    """A segmentation network of four convolutions without batch norm; it must be as wide as ``channels`` say."""

    def __init__(self, channels: dict[str, int], seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Conv2d(3, channels["stages.0"], 3, 4, 1)
        self.second = nn.Conv2d(channels["stages.0"], channels["stages.1"], 3, 2, 1)
        self.decoder = nn.Conv2d(channels["stages.1"], channels["feature"], 3, 1, 1)
        self.classifier = nn.Conv2d(channels["feature"], CLASSES, 1)
        self.auxiliary = nn.Conv2d(channels["stages.1"], CLASSES, 1)

    def forward(self, images: Tensor) -> SegOutput:
        first = self.first(images)
        second = self.second(first.relu())
        feature = self.decoder(second).relu()
        return SegOutput(4 * self.classifier(feature), self.auxiliary(second), feature, feature, (first, second))


class Distilling(nn.Module):
    """Student and method together, as data parallelism needs them."""

    def __init__(self, name: str, options: dict[str, Any], prepare: Prepare | None) -> None:
        super().__init__()
        self.student = TinyNet(STUDENT, 1)
        torch.manual_seed(2)
        self.method = create_method(name, CLASSES, STUDENT, TEACHER, **options)
        if prepare is not None:
            prepare(self.method)

    def forward(self, images: Tensor, teacher: SegOutput, target: Tensor, step: Step) -> Tensor:
        student = self.student(images)
        enlarged = [
            nn.functional.interpolate(logits, size=target.shape[-2:], mode="bilinear")
            for logits in (student.logits, student.aux_logits)
        ]
        terms = self.method(student, teacher, target, step)
        return sum(terms.values(), cross_entropy(enlarged[0], target, step) + cross_entropy(enlarged[1], target, step))


def step_gradients(
    name: str,
    options: dict[str, Any],
    progress: float,
    target: Tensor,
    micro_batches: int,
    prepare: Prepare | None = None,
    rank: int = 0,
    world: int = 1,
) -> Gradients:
    """Return the gradients of one step over ``target`` (B,H,W), this rank's share of it in ``micro_batches`` parts."""
    images = torch.randn(len(target), 3, *target.shape[1:], generator=torch.Generator().manual_seed(3))
    module, teacher = Distilling(name, options, prepare), TinyNet(TEACHER, 4)
    runner: nn.Module = module
    if world > 1:
        runner = nn.parallel.DistributedDataParallel(
            module, broadcast_buffers=False, find_unused_parameters=module.method.sparse_gradients
        )
    share = slice(rank * len(target) // world, (rank + 1) * len(target) // world)
    parts = list(zip(images[share].chunk(micro_batches), target[share].chunk(micro_batches), strict=True))
    step = Step(progress, [part for _, part in parts])
    for image, part in parts:
        (runner(image, teacher(image).detach(), part, step) / micro_batches).backward()
    return {key: value.grad for key, value in module.named_parameters() if value.grad is not None}


def _work(rank: int, port: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=2)
    while (job := pipe.recv()) is not None:
        try:
            pipe.send({key: value.numpy() for key, value in step_gradients(*job, rank=rank, world=2).items()})
        except Exception:
            pipe.send(traceback.format_exc())
    dist.destroy_process_group()


class Pair:
    """Two worker processes; :meth:`step` runs :func:`step_gradients` on both and returns the first one's result."""

    def __init__(self, port: int) -> None:
        context = SERVER
        self.pipes, self.workers = [], []
        for rank in range(2):
            here, there = context.Pipe()
            worker = context.Process(target=_work, args=(rank, port, there), daemon=True)
            worker.start()
            self.pipes.append(here)
            self.workers.append(worker)

    def step(self, *job: Any) -> Gradients:
        for pipe in self.pipes:
            pipe.send(job)
        results = []
        for pipe in self.pipes:
            if not pipe.poll(120):
                raise TimeoutError("a worker process does not answer")
            results.append(pipe.recv())
        for result in results:
            assert isinstance(result, dict), result
        return {key: torch.from_numpy(value) for key, value in results[0].items()}

    def close(self) -> None:
        for pipe, worker in zip(self.pipes, self.workers, strict=True):
            pipe.send(None)
            worker.join(20)
