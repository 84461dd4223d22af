"""What the cost benchmarks share: two networks and one batch, outputs cut off from them, timing, peaks of memory.

Networks: teacher forward, student forward and backward, from given gradients of its logits and without a task loss, so
that nothing but the networks is in the yardstick. Each peak is taken in a separate process that does one training
step: on a CPU of the resident set, on a GPU of what PyTorch has allocated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segtailor.files import write_atomically
from segtailor.models import SegOutput, Teacher, create_model

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).resolve().parent / "results"
CLASSES = 19


def setting_parser(description: str | None, repeats: int, out: str) -> argparse.ArgumentParser:
    """Return a parser of what the networks and the batch are, of ``--repeats`` and of ``--out``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--teacher", default="deeplabv3-resnet101")
    parser.add_argument("--student", default="deeplabv3-resnet18")
    parser.add_argument("--size", type=int, nargs=2, default=[512, 1024], help="crop, height and width")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=repeats, help="timed repeats; the median is reported")
    parser.add_argument("--no-memory", action="store_true", help="skip the peaks")
    parser.add_argument("--out", type=Path, default=RESULTS / out)
    return parser


def setting(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "teacher": arguments.teacher,
        "student": arguments.student,
        "batch": arguments.batch,
        "size": arguments.size,
        "threads": arguments.threads,
        "torch": torch.__version__,
        "machine": platform.machine(),
    }


def save(path: Path, result: Any) -> None:
    """Write a result as JSON; ``/dev/null`` writes nothing."""
    if str(path) != os.devnull:
        write_atomically(path, lambda file: file.write((json.dumps(result, indent=1) + "\n").encode()))


def scene(batch: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return random images and blocky labels with void, as uint8."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, *size), generator=generator, dtype=torch.uint8)
    blocks = torch.randint(0, CLASSES + 1, (batch, 9, 13), generator=generator)
    blocks[blocks == CLASSES] = 255
    target = torch.nn.functional.interpolate(blocks.unsqueeze(1).float(), size=size, mode="nearest")
    return images, target.squeeze(1).to(torch.uint8)


class Bench:
    """The two networks and one batch; on a GPU the networks run in bfloat16 autocast."""

    def __init__(self, arguments: argparse.Namespace, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.device = device
        self.teacher = Teacher(create_model(arguments.teacher, CLASSES)).to(device)
        self.student = create_model(arguments.student, CLASSES).train().to(device)
        images, target = scene(arguments.batch, (arguments.size[0], arguments.size[1]))
        self.images, self.target = images.to(device), target.to(device)

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext() if self.device == "cpu" else torch.autocast(self.device, torch.bfloat16)

    def teach(self) -> SegOutput:
        """Run the teacher."""
        with self.autocast():
            output: SegOutput = self.teacher(self.images, self.target)
        return output

    def learn(self) -> SegOutput:
        """Run the student forward."""
        with self.autocast():
            output: SegOutput = self.student(self.images)
        return output

    def backward(self, output: SegOutput, extra: Tensor | None = None) -> None:
        """Run the student's backward from unit-size gradients of its logits, and from ``extra``."""
        heads = [head for head in (output.logits, output.aux_logits) if head is not None]
        gradients: list[Tensor | None] = [torch.full_like(head, 1e-3) for head in heads]
        if extra is not None:
            heads.append(extra)
            gradients.append(None)
        torch.autograd.backward(heads, gradients)


def leaves(output: SegOutput) -> SegOutput:
    """Return the output cut off from its network, each tensor asking for a gradient."""

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_()

    def maybe(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else leaf(tensor)

    return SegOutput(
        leaf(output.logits),
        maybe(output.aux_logits),
        maybe(output.feature),
        maybe(output.classifier_input),
        tuple(leaf(stage) for stage in output.stages),
        {name: leaf(tensor) for name, tensor in output.taps.items()},
    )


def networks_seconds(bench: Bench, repeats: int) -> dict[str, list[float]]:
    """Time the teacher's forward, and the student's forward and backward, each after a first run that is not timed."""

    def run_teacher() -> None:
        bench.teach()

    def run_student() -> None:
        bench.student.zero_grad(set_to_none=True)
        bench.backward(bench.learn())

    runs = {"teacher": run_teacher, "student": run_student}
    return {role: seconds_of(run, repeats + 1)[1:] for role, run in runs.items()}


def seconds_of(action: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        wait_for_device()
        start = time.perf_counter()
        action()
        wait_for_device()
        times.append(time.perf_counter() - start)
    return times


def wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_bytes(device: str = "cpu") -> int:
    """Return the largest resident set, or the most that was allocated on the GPU, since `forget_peak`."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def forget_peak(device: str = "cpu") -> None:
    """Let the peak start from what is alive now, so that what was built before it does not count."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):  # some containers do not allow it
            Path("/proc/self/clear_refs").write_text("5")


def peak_in_child(script: str, arguments: argparse.Namespace, options: Sequence[str]) -> int:
    """Run ``script`` with the same setting and ``options`` in a fresh process, and return the number it prints last."""
    # Every tensor gets its own pages, given back when it is freed, so that the resident set holds live tensors only.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, script, "--teacher", arguments.teacher, "--student", arguments.student]
    command += ["--batch", str(arguments.batch), "--size", *map(str, arguments.size)]
    command += ["--threads", str(arguments.threads), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        message = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"the process that measures the peak ended with {done.returncode}: {message[0]}")
    return int(done.stdout.splitlines()[-1])
