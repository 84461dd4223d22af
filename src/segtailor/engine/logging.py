"""A run's records: metrics.jsonl, TensorBoard, and a live bar or plain lines on the terminal."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from segtailor.errors import SegtailorError, reason
from segtailor.evaluation import EvaluationResult
from segtailor.files import write_atomically


@dataclass
class RunState:
    """The progress of a training, which a checkpoint holds beside tensors.

    ``seconds`` is the training time: the arm's own, and its share of reading data and of the common teacher's passes.
    ``teacher_seconds`` is that last share, ``teacher_seconds_alone`` the whole of these passes. ``peak_bytes`` is the
    GPU memory that the arm took at most, with all it keeps between steps and without the teacher and other arms; 0 on
    a CPU.
    """

    step: int = 0
    saved: int = 0
    seconds: float = 0.0
    best_miou: float = -1.0
    best_step: int = 0
    teacher_seconds: float = 0.0
    teacher_seconds_alone: float = 0.0
    peak_bytes: int = 0


class LossBuffer:
    """Collects each step's terms without waiting for the device."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._names: list[str] = []
        self._values: list[Tensor] = []

    def add(self, step: int, terms: dict[str, Tensor]) -> None:
        """Note the ``terms`` (scalars) of ``step``."""
        self._names = list(terms)
        self._steps.append(step)
        self._values.append(torch.stack([value.detach().float() for value in terms.values()]))

    def means(self, fabric: Any, last_good: int) -> dict[str, float]:
        """Return the mean of each term over the collected steps and all processes, and empty the buffer.

        Raises ``SegtailorError`` naming the first step and term that is not finite, and the last good checkpoint.
        """
        if not self._values:
            return {}
        table = torch.stack(self._values)
        if fabric.world_size > 1:
            table = fabric.all_reduce(table, reduce_op="mean")
        table = table.cpu()
        bad = (~torch.isfinite(table)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            value = float(table[row, column])
            raise _not_finite(self._steps[row], f"the term '{self._names[column]}'", value, last_good)
        means = dict(zip(self._names, table.mean(0).tolist(), strict=True))
        self._steps, self._values = [], []
        return means


def check_weights(module: nn.Module, step: int, last_good: int) -> None:
    """Raise ``SegtailorError`` when a weight is not finite, so that such a checkpoint is never written."""
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter.detach()).all()):
            raise _not_finite(step, f"the weight '{name}'", float("nan"), last_good)


def _not_finite(step: int, what: str, value: float, last_good: int) -> SegtailorError:
    state = f"the last good checkpoint is of step {last_good}" if last_good else "no checkpoint was written yet"
    advice = "lower train.optimizer.lr or set train.clip"
    return SegtailorError(f"step {step}: {what} became {value}; {state}; {advice}")


class MetricsLog:
    """``metrics.jsonl`` and TensorBoard events of one run; records of steps after ``step`` are dropped.

    Raises ``SegtailorError`` when a file cannot be written.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.path, board = folder / "metrics.jsonl", folder / "tensorboard"
        kept = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.path, lambda file: file.write(text.encode("utf-8")))
        if step == 0:
            shutil.rmtree(board, ignore_errors=True)
        from torch.utils.tensorboard.writer import SummaryWriter

        with _written(self.path):
            self._file = self.path.open("a", encoding="utf-8")
        with _written(board):
            self._board = SummaryWriter(str(board), purge_step=step + 1 if step else None)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; every number in it becomes a TensorBoard scalar too."""
        with _written(self.path):
            self._file.write(json.dumps(record) + "\n")
            self._file.flush()
        kind, step = record["kind"], record["step"]
        flat = {key: value for key, value in record.items() if key not in ("kind", "step", "terms")}
        flat.update({f"terms/{key}": value for key, value in record.get("terms", {}).items()})
        with _written(self.path.parent / "tensorboard"):
            for key, value in flat.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    self._board.add_scalar(f"{kind}/{key}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        with _written(self.path):
            self._file.close()
            self._board.close()


@contextmanager
def _written(path: Path) -> Iterator[None]:
    """Turn a failure of the disk into one line."""
    try:
        yield
    except OSError as error:
        raise SegtailorError(f"cannot write {path}: {reason(error)}") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl``; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class Recorder:
    """Collects losses and times of a training, and writes them to all three places; only the first process writes.

    Times are counted in ``state``. Evaluation and saving do not count. ``quiet`` leaves the terminal out.
    """

    def __init__(self, label: str, folder: Path, steps: int, state: RunState, fabric: Any, quiet: bool = False) -> None:
        self._fabric, self.state = fabric, state
        self._log = MetricsLog(folder, state.step) if fabric.is_global_zero else None
        self._progress = ConsoleProgress(label, steps, state.step, enabled=fabric.is_global_zero and not quiet)
        self._losses, self._confident = LossBuffer(), LossBuffer()
        self._shares: dict[str, float] = {}
        self._since_flush()

    def _since_flush(self) -> None:
        self._began, self._waited, self._images = self.state.seconds, 0.0, 0

    def wait(self, seconds: float, share: float) -> None:
        """Count a ``share`` of waiting for data."""
        self.state.seconds += seconds * share
        self._waited += seconds * share

    def teach(self, seconds: float, share: float) -> None:
        """Count a ``share`` of the common teacher's pass."""
        self.state.seconds += seconds * share
        self.state.teacher_seconds += seconds * share
        self.state.teacher_seconds_alone += seconds

    def step(self, step: int, terms: dict[str, Tensor], images: int, confident: Tensor | None = None) -> None:
        """Note the terms of a step on ``images`` images, without waiting for the device.

        ``confident`` (2,) counts the unlabelled pixels that the teacher was sure of, and all that it labelled.
        """
        self._losses.add(step, terms)
        if confident is not None:
            self._confident.add(step, {"sure": confident[0], "labelled": confident[1]})
        self._images += images

    def losses(self) -> dict[str, float]:
        """Return the mean of each term since the last flush; waits for the device. Raises when one is not finite."""
        means = self._losses.means(self._fabric, self.state.saved)
        counts = self._confident.means(self._fabric, self.state.saved)
        self._shares = {"confident": counts["sure"] / max(counts["labelled"], 1e-9)} if counts else {}
        return means

    def flush(self, step: int, means: dict[str, float], lr: float) -> None:
        """Write the ``means`` and everything else collected since the last flush."""
        spent = max(self.state.seconds - self._began, 1e-9)
        # An adversary's loss is not part of the student's.
        loss = sum(value for name, value in means.items() if not name.endswith(".opponent"))
        rate = self._images / spent
        if self._log is not None:
            self._log.write({
                "kind": "train", "step": step, "loss": loss, "terms": means, "lr": lr, "images_per_second": rate,
                "data_wait": self._waited / spent, "seconds": self.state.seconds, **self._shares,
            })  # fmt: skip
        self._progress.train(step, loss, means, rate)
        self._since_flush()

    def evaluated(self, step: int, result: EvaluationResult, weights: str) -> None:
        """Write the scores of ``weights`` (``student`` or ``ema``) after ``step``."""
        if self._log is not None:
            self._log.write({
                "kind": "evaluate", "step": step, "miou": result.miou, "miou_all": result.miou_all,
                "pixel_accuracy": result.pixel_accuracy, "iou": result.iou, "seconds": self.state.seconds,
                "weights": weights,
            })  # fmt: skip
        self._progress.evaluated(step, result.miou)

    def close(self) -> None:
        """Close files and progress bar."""
        self._progress.close()
        if self._log is not None:
            self._log.close()


class ConsoleProgress:
    """Progress on the terminal: a live bar, or where there is none, one plain line every ``interval`` seconds.

    On a bar, the single terms are shown as far as the terminal is wide.
    """

    def __init__(self, label: str, steps: int, start: int, enabled: bool = True, interval: float = 5.0) -> None:
        self.label, self.steps, self.start, self.enabled = label, steps, start, enabled
        self.interval = interval
        self._miou = ""
        self._began = self._printed = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._console = Console(stderr=True)
        if enabled and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(BAR),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[status]}"),
                console=self._console,
            )
            self._bar.start()
            self._task = self._bar.add_task(label, total=steps, completed=start, status="")

    def train(self, step: int, loss: float, terms: dict[str, float], images_per_second: float) -> None:
        """Show the state after ``step``."""
        parts = [f"loss {loss:.3f}", *([self._miou] if self._miou else []), f"{images_per_second:.1f} images/s"]
        shown = [f"{name} {value:.3f}" for name, value in terms.items()] if len(terms) > 1 else []
        if self._bar is not None and self._task is not None:
            room = self._console.width - len(self.label) - BAR - 2 * len(str(self.steps)) - len(" / 0:00:00    ")
            status = fitting([*parts, *shown], room)
            self._bar.update(self._task, completed=step, status=status)
            return
        now = time.monotonic()
        if now - self._printed < self.interval and step != self.steps:
            return
        left = timedelta(seconds=round((now - self._began) / max(step - self.start, 1) * (self.steps - step)))
        status = "  ".join([parts[0], *shown, *parts[1:]])
        self._print(f"{self.label} {step}/{self.steps}  {status}  {left} left")

    def evaluated(self, step: int, miou: float) -> None:
        """Show the score at ``step``."""
        self._miou = f"mIoU {100 * miou:.2f}"
        self._print(f"{self.label} {step}/{self.steps}  {self._miou}")

    def _print(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)  # above the bar
        elif self.enabled:
            print(line, file=sys.stderr, flush=True)
        self._printed = time.monotonic()

    def close(self) -> None:
        """Stop the live bar."""
        if self._bar is not None:
            self._bar.stop()


BAR = 16
"""Width of the live bar."""


def fitting(parts: list[str], room: int) -> str:
    """Return ``parts`` on one line, from the first on, as far as ``room`` characters hold them.

    >>> fitting(["loss 1.250", "mIoU 40.10", "task 1.000"], 24)
    'loss 1.250  mIoU 40.10'
    """
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if len(longer) > room:
            break
        line = longer
    return line
