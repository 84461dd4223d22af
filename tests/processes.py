"""Tests on several processes: forked from a server that has imported everything, so that none pays for imports."""

from __future__ import annotations

import multiprocessing
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from torch.distributed.launcher.api import LaunchConfig, elastic_launch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([
    "segtailor.jobs.compare", "segtailor.jobs.distill", "lightning_fabric", "lightning_fabric.strategies.ddp",
    "torch.utils.tensorboard.writer", "torch._dynamo", "pytest", "typer",
])  # fmt: skip


def under_torchrun(function: Callable[..., Any], *arguments: Any) -> None:
    """Run ``function(rank, *arguments)`` on two processes that torchrun's agent starts and watches."""
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=0, run_id="test", rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0", start_method="forkserver",
    )  # fmt: skip
    elastic_launch(config, _work)(dict(os.environ), function, arguments)


def _work(environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    from segtailor.data.toy import LENGTHS

    LENGTHS["val"] = 12  # as in the tests
    os.environ.update({name: value for name, value in environment.items() if name not in os.environ})
    try:
        function(int(os.environ["RANK"]), *arguments)
    except Exception:
        traceback.print_exc()
        raise


def command_under_torchrun(words: list[str], output: Path) -> str:
    """Run ``segtailor`` with ``words`` on two processes; returns what the first one prints, by way of ``output``."""
    under_torchrun(_command, words, output)
    return output.read_text()


def _command(rank: int, words: list[str], output: Path) -> None:
    from segtailor.cli import main

    sys.argv = ["segtailor", *words]
    with output.with_name(f"{output.name}{rank or ''}").open("w") as file, redirect_stdout(file):
        main()
