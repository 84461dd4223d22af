"""Records of a run: a loss or weight that is not finite is found and named, and the terminal shows what fits."""

import io
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from segtailor.engine import logging
from segtailor.engine.logging import ConsoleProgress, LossBuffer, MetricsLog, check_weights, read_metrics
from segtailor.errors import SegtailorError

FABRIC = SimpleNamespace(world_size=1)


def test_means_since_the_last_line() -> None:
    buffer = LossBuffer()
    buffer.add(1, {"task": torch.tensor(1.0), "kt.lt": torch.tensor(4.0)})
    buffer.add(2, {"task": torch.tensor(3.0), "kt.lt": torch.tensor(0.0)})
    assert buffer.means(FABRIC, 0) == {"task": 2.0, "kt.lt": 2.0}
    assert buffer.means(FABRIC, 0) == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_step_term_and_last_good_checkpoint_are_named(value: float) -> None:
    buffer = LossBuffer()
    buffer.add(8, {"task": torch.tensor(1.0), "kt.lt": torch.tensor(1.0)})
    buffer.add(9, {"task": torch.tensor(1.0), "kt.lt": torch.tensor(value)})
    buffer.add(10, {"task": torch.tensor(value), "kt.lt": torch.tensor(value)})
    with pytest.raises(SegtailorError, match=r"step 9: the term 'kt.lt' became (nan|inf); .* of step 5"):
        buffer.means(FABRIC, 5)


def test_weights_that_are_not_finite_are_never_saved() -> None:
    net = nn.Linear(2, 2)
    check_weights(net, 3, 0)
    with torch.no_grad():
        net.bias[1] = float("inf")
    with pytest.raises(SegtailorError, match=r"step 3: the weight 'bias'.*no checkpoint was written yet"):
        check_weights(net, 3, 0)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_a_terminal_of_any_width_shows_step_loss_and_score(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(logging, "Console", lambda **_: console)
    progress = ConsoleProgress("kt", 2000, 0)
    progress.evaluated(200, 0.4512)
    terms = {f"kt.ft.stages.{index}": float(index) for index in range(8)}
    progress.train(210, 46.29, terms, 12.5)
    progress.close()
    shown = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", stream.getvalue()).splitlines()
    assert "kt 200/2000  mIoU 45.12" in shown  # a score stays as a line
    bar = next(line for line in shown if " 210/2000" in line)
    assert "kt" in bar
    assert "loss 46.290" in bar
    assert ("mIoU 45.12" in bar) == (width > 60)
    assert ("kt.ft.stages.3 3.000" in bar) == (width == 200)
    assert all(len(line) <= width for line in shown)


def test_a_training_that_begins_drops_the_records_of_one_that_saved_nothing(tmp_path: Path) -> None:
    for _ in range(2):
        log = MetricsLog(tmp_path)
        log.write({"kind": "train", "step": 1, "loss": 1.0})
        log.close()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
    assert len(list((tmp_path / "tensorboard").iterdir())) == 1


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = MetricsLog(tmp_path)

    class Full(io.StringIO):
        def write(self, text: str, /) -> int:
            raise OSError(28, os.strerror(28))

    full: Any = Full()
    monkeypatch.setattr(log, "_file", full)
    with pytest.raises(SegtailorError, match=r"cannot write .*metrics.jsonl: .*No space left on device") as caught:
        log.write({"kind": "train", "step": 1, "loss": 1.0})
    assert "\n" not in str(caught.value)
