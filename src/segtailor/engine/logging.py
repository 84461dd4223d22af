"""What a run says while it goes: metrics.jsonl, TensorBoard, and a line or bar on the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from segtailor.engine.ticker import Ticker
from segtailor.engine.window import LossWindow
from segtailor.evaluation import EvaluationResult
from segtailor.files import write_atomically


class MetricsLog:
    """``metrics.jsonl`` and TensorBoard events of one run; after a resume, later lines than ``step`` are dropped."""

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        kept = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_atomically(self.path, lambda file: file.write(text.encode("utf-8")))
        self._file = self.path.open("a", encoding="utf-8")
        from torch.utils.tensorboard.writer import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, record: dict[str, Any]) -> None:
        """Append one record; every number in it becomes a TensorBoard scalar too."""
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        kind, step = record["kind"], record["step"]
        flat = {key: value for key, value in record.items() if key not in ("kind", "step", "terms")}
        flat.update({f"terms/{key}": value for key, value in record.get("terms", {}).items()})
        for key, value in flat.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                self._board.add_scalar(f"{kind}/{key}", value, step)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        self._board.close()


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


class Recorder:
    """Keeps the losses and times since the last line, and writes them to all three places.

    Only the first process writes. Time is what it is told of: evaluation and saving are no training. ``seconds`` is the
    time that was trained before; ``quiet`` says nothing on the terminal.
    """

    def __init__(
        self, label: str, folder: Path, steps: int, start: int, fabric: Any, seconds: float = 0.0, quiet: bool = False
    ) -> None:
        self._fabric = fabric
        self._log = MetricsLog(folder, start) if fabric.is_global_zero else None
        self._ticker = Ticker(label, steps, start, enabled=fabric.is_global_zero and not quiet)
        self._losses, self._confident = LossWindow(), LossWindow()
        self._shares: dict[str, float] = {}
        self.seconds = seconds
        self.teacher_seconds = self.teacher_seconds_alone = 0.0
        self._window()

    def _window(self) -> None:
        self._began, self._waited, self._images = self.seconds, 0.0, 0

    def spend(self, seconds: float) -> None:
        """Count ``seconds`` of the learner's own work."""
        self.seconds += seconds

    def wait(self, seconds: float, share: float) -> None:
        """Count a ``share`` of waiting for data."""
        self.seconds += seconds * share
        self._waited += seconds * share

    def teach(self, seconds: float, share: float) -> None:
        """Count a ``share`` of the common teacher's pass."""
        self.seconds += seconds * share
        self.teacher_seconds += seconds * share
        self.teacher_seconds_alone += seconds

    def step(self, step: int, terms: dict[str, Tensor], images: int, confident: Tensor | None = None) -> None:
        """Note the terms of a step on ``images`` images, without waiting for the device.

        ``confident`` (2,) counts the unlabelled pixels that the teacher was sure of, and all that it labelled.
        """
        self._losses.add(step, terms)
        if confident is not None:
            self._confident.add(step, {"sure": confident[0], "labelled": confident[1]})
        self._images += images

    def losses(self, last_good: int) -> dict[str, float]:
        """Return the window's mean of each term; waits for the device. Raises when one is not finite."""
        means = self._losses.means(self._fabric, last_good)
        counts = self._confident.means(self._fabric, last_good)
        self._shares = {"confident": counts["sure"] / max(counts["labelled"], 1e-9)} if counts else {}
        return means

    def flush(self, step: int, means: dict[str, float], lr: float) -> float:
        """Write the window; returns the seconds of training so far."""
        spent = max(self.seconds - self._began, 1e-9)
        # An opponent's loss is its own, no part of the student's.
        loss = sum(value for name, value in means.items() if not name.endswith(".opponent"))
        rate = self._images / spent
        if self._log is not None:
            self._log.write({
                "kind": "train", "step": step, "loss": loss, "terms": means, "lr": lr, "images_per_second": rate,
                "data_wait": self._waited / spent, "seconds": self.seconds, **self._shares,
            })  # fmt: skip
        self._ticker.train(step, loss, means, rate)
        self._window()
        return self.seconds

    def evaluated(self, step: int, result: EvaluationResult, weights: str) -> None:
        """Write the scores of ``weights`` (``student`` or ``ema``) after ``step``."""
        if self._log is not None:
            self._log.write({
                "kind": "evaluate", "step": step, "miou": result.miou, "miou_all": result.miou_all,
                "pixel_accuracy": result.pixel_accuracy, "iou": result.iou, "seconds": self.seconds,
                "weights": weights,
            })  # fmt: skip
        self._ticker.evaluated(step, result.miou)

    def close(self) -> None:
        """Close what is open."""
        self._ticker.close()
        if self._log is not None:
            self._log.close()
