"""What a run says while it goes: metrics.jsonl, TensorBoard, and a line or bar on the terminal."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


class MetricsLog:
    """``metrics.jsonl`` and TensorBoard events of one run; after a resume, later lines than ``step`` are dropped."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
        part = self.path.with_name("metrics.jsonl.part")
        part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        part.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")
        from torch.utils.tensorboard.writer import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)  # type: ignore[no-untyped-call]

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; every number in it becomes a TensorBoard scalar too."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        kind, step = record["kind"], record["step"]
        flat = {key: value for key, value in record.items() if key not in ("kind", "step", "terms")}
        flat.update({f"terms/{key}": value for key, value in record.get("terms", {}).items()})
        for key, value in flat.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._board.add_scalar(f"{kind}/{key}", value, step)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._board.close()  # type: ignore[no-untyped-call]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read ``metrics.jsonl``; a last line cut off by a kill is passed over."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class Ticker:
    """Progress on the terminal: a live bar on a terminal, else one plain line every ``interval`` seconds."""

    def __init__(self, label: str, steps: int, start: int, enabled: bool = True, interval: float = 5.0) -> None:
        self.label, self.steps, self.start, self.enabled = label, steps, start, enabled
        self.interval = interval
        self._miou = ""
        self._said = time.monotonic()
        self._began = time.monotonic()
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        console = Console(stderr=True)
        if enabled and console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._bar.start()
            self._task = self._bar.add_task(label, total=steps, completed=start, status="")

    def train(self, step: int, loss: float, terms: dict[str, float], images_per_second: float) -> None:
        """Show the state after ``step``."""
        parts = [f"loss {loss:.3f}"]
        if len(terms) > 1:
            parts += [f"{name} {value:.3f}" for name, value in terms.items()]
        parts += [self._miou] if self._miou else []
        parts.append(f"{images_per_second:.1f} images/s")
        self._show(step, "  ".join(parts))

    def evaluated(self, step: int, miou: float) -> None:
        """Remember and say the score at ``step``."""
        self._miou = f"mIoU {100 * miou:.2f}"
        if self._bar is None:
            self._say(f"{self.label} {step}/{self.steps}  {self._miou}")

    def _show(self, step: int, status: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, status=status)
            return
        now = time.monotonic()
        if now - self._said < self.interval and step != self.steps:
            return
        left = (now - self._began) / max(step - self.start, 1) * (self.steps - step)
        self._say(f"{self.label} {step}/{self.steps}  {status}  {_clock(left)} left")

    def _say(self, line: str) -> None:
        if self.enabled:
            print(line, file=sys.stderr, flush=True)
        self._said = time.monotonic()

    def close(self) -> None:
        """Stop the live bar."""
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
