"""Processes and precision, by Lightning Fabric."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from segtailor.config import TrainConfig
from segtailor.errors import SegtailorError, reason

T = TypeVar("T")
PRECISION: dict[str, Literal["32-true", "bf16-mixed", "16-mixed"]] = {
    "fp32": "32-true",
    "bf16": "bf16-mixed",
    "fp16": "16-mixed",
}


def launch(config: TrainConfig, find_unused_parameters: bool = False) -> Any:
    """Return a launched ``Fabric`` for ``config``: one process by default on a CPU, every GPU where there are some.

    Under ``torchrun`` or SLURM it uses the processes already there. Raises ``SegtailorError`` when the devices are not
    there or do not support the precision.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    accelerator = config.accelerator
    if accelerator == "auto":
        accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    if config.precision == "fp16" and accelerator == "cpu":
        raise SegtailorError("train.precision fp16 needs a GPU; on a CPU use bf16 or fp32")
    devices: Any = config.devices
    if devices == "auto":
        started = int(os.environ.get("LOCAL_WORLD_SIZE") or 0)  # by torchrun, on this node
        devices = started or ("auto" if accelerator == "cuda" else 1)
    strategy: Any = "auto"
    if config.nodes > 1 or (devices not in (1, "auto")) or (devices == "auto" and torch.cuda.device_count() > 1):
        backend = "gloo" if accelerator == "cpu" else "nccl"
        strategy = DDPStrategy(
            process_group_backend=backend,
            broadcast_buffers=False,
            find_unused_parameters=find_unused_parameters,
        )
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=config.nodes,
            strategy=strategy,
            precision=PRECISION[config.precision],
        )
    except (RuntimeError, ValueError) as error:
        raise SegtailorError(
            f"cannot use train.accelerator {accelerator} with {devices} devices: {reason(error)}"
        ) from error
    fabric.launch()
    return fabric


def on_first_process(fabric: Any, action: Callable[[], T]) -> T:
    """Run ``action`` on the first process and hand its result, or its error, to all."""
    outcome: tuple[Any, str | None] = (None, None)
    if fabric.is_global_zero:
        try:
            outcome = (action(), None)
        except SegtailorError as error:
            outcome = (None, str(error))
    value, problem = fabric.broadcast(outcome) if fabric.world_size > 1 else outcome
    if problem is not None:
        raise SegtailorError(problem)
    return value  # type: ignore[no-any-return]


def prints() -> bool:
    """Whether this process, of those that work on one command, is the one that prints.

    A launcher that is not torchrun is asked once the processes are a group; ``RANK`` alone may be any cluster's.
    """
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return "TORCHELASTIC_RESTART_COUNT" not in os.environ or os.environ.get("RANK", "0") == "0"


def any_process(fabric: Any, flag: bool, device: torch.device) -> bool:
    """Return whether ``flag`` is true in any process."""
    if fabric.world_size == 1:
        return flag
    total = fabric.all_reduce(torch.tensor(float(flag), device=device), reduce_op="sum")
    return bool(total.item() > 0)


def running_statistics(module: nn.Module) -> list[Tensor]:
    """Return the running means and variances that each process updates by its own images alone."""
    norms = [
        part for part in module.modules() if isinstance(part, _BatchNorm) and not isinstance(part, nn.SyncBatchNorm)
    ]
    return [value for norm in norms for value in (norm.running_mean, norm.running_var) if value is not None]


@torch.no_grad()
def average_over_processes(fabric: Any, tensors: Sequence[Tensor]) -> None:
    """Set each of ``tensors`` to its mean over the processes, with one collective for all.

    Running statistics, averaged after each step, are those of the whole batch's images, and not only of the first
    process's: they are linear in what each step sees, so the mean over processes is what one set of statistics would
    hold. So every process scores the model that the first one saves, and a resumed run begins where it stopped.
    """
    if fabric.world_size == 1 or not tensors:
        return
    mean = fabric.all_reduce(torch.cat([tensor.flatten() for tensor in tensors]), reduce_op="mean")
    for tensor, value in zip(tensors, mean.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(value.view_as(tensor))
