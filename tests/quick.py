"""Settings that turn a shipped recipe into two steps on tiny images."""

from __future__ import annotations

from typing import Any

SIZE = (64, 128)
QUICK: dict[str, Any] = {
    "data.workers": 0, "data.scale": [1.0, 1.0], "train.steps": 2, "train.batch": 2, "train.log_every": 1,
    "train.precision": "fp32", "evaluate.every": 2, "evaluate.samples": 0, "train.threads": 1,
}  # fmt: skip
