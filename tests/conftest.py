"""What several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tiny import tiny_train

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny `train` run."""
    from segtailor import train

    return train(tiny_train(tmp_path_factory.mktemp("teacher"))).folder
