"""What a learner takes of the memory, measured by one step of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segtailor.data.loader import train_batches
from segtailor.engine.loop import ArmTrainer, RunSpec, seed_step, split_batch
from segtailor.engine.module import Objective
from segtailor.engine.pseudo_labels import PseudoLabels
from segtailor.losses import Step
from segtailor.models.teacher import Teacher

SHARE = 0.8
"""How much of the free memory a group may plan with."""


@dataclass(frozen=True)
class Demand:
    """Bytes that a learner keeps between steps, and the most that a step of it adds to them."""

    kept: int
    peak: int


def available(device: torch.device) -> int:
    """Return the bytes that a group may plan with: most of what is free on the device, or in the machine."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(SHARE * free)
    for line in Path("/proc/meminfo").read_text().splitlines() if Path("/proc/meminfo").exists() else []:
        if line.startswith("MemAvailable:"):
            return int(SHARE * 1024 * int(line.split()[1]))
    return 2**62  # a system that does not say; no cut is made


def measure_demand(fabric: Any, learner: Objective, task: RunSpec, teacher: Teacher | None) -> Demand:
    """Train ``learner`` for one step, writing nothing that stays, and return what that took.

    What is kept is the sum of its tensors. The peak is the device's own count on a GPU; on a CPU it is the growth of
    the resident set, where the system tells it.
    """
    device = fabric.device
    with tempfile.TemporaryDirectory() as folder:
        arm = ArmTrainer(fabric, learner, replace(task, folder=Path(folder)), quiet=True)
        micro, count = split_batch(task.train.batch, task.train.micro_batch, fabric.world_size)
        batches = train_batches(
            task.train_data, task.data.model_copy(update={"workers": 0}), seed=task.train.seed,
            global_batch=task.train.batch, micro_batch=micro, rank=fabric.global_rank, world=fabric.world_size,
            start_step=0, steps=1, unlabelled=task.unlabelled,
        )  # fmt: skip
        parts = [next(batches).to(device) for _ in range(count)]
        if teacher is not None:
            teacher.to(device)
        before = _begin(device)
        seed_step(task.train.seed, 1, fabric.global_rank)
        arm.begin(1)
        step = Step(1 / task.train.steps, [part.target for part in parts])
        targets = None
        if task.unlabelled is not None and task.data.unlabelled is not None:
            targets = PseudoLabels(parts, task.data.unlabelled.threshold, step.progress)
            if teacher is not None:
                targets.label_ahead(teacher, fabric.autocast)
        for index, part in enumerate(parts):
            shared = None if teacher is None else teacher(part.images, part.target)
            arm.accumulate(part, shared, step, index, count, targets)
        arm.finish(1)
        grown = _peak(device) - before
        kept = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(arm))
        arm.recorder.close()
    return Demand(kept, max(grown, 0))


def _tensors(arm: ArmTrainer) -> Iterable[Tensor]:
    parameters = list(arm.objective.parameters())
    yield from parameters
    yield from (parameter.grad for parameter in parameters if parameter.grad is not None)
    yield from arm.objective.buffers()
    for state in arm.optimizer.state.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))
    if arm.average is not None:
        yield from arm.average.model.state_dict().values()
    for own in (*arm.objective.own_teachers.values(), *arm.objective.adversaries.values()):
        yield from own.state_dict().values()


def _begin(device: torch.device) -> int:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    reset = Path("/proc/self/clear_refs")
    try:
        reset.write_text("5")  # the high-water mark of the resident set begins anew
    except OSError:
        return 2**62
    return _status("VmRSS:")


def _peak(device: torch.device) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _status("VmHWM:")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return 1024 * int(line.split()[1])
    return 0
