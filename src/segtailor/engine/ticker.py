"""Progress on the terminal: a live bar, or plain lines where there is no terminal."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


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
