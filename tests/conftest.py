"""What several tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tiny import tiny_train

os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the folders of long tests first: processes get files in this order, and end together with short ones."""
    items.sort(key=lambda item: item.path.parent.name not in ("jobs", "engine", "tests"))


@pytest.fixture(autouse=True)
def few_toy_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the toy data set have 12 validation scenes instead of 60: most of a tiny run is their evaluation."""
    from segtailor.data.toy import LENGTHS

    monkeypatch.setitem(LENGTHS, "val", 12)


@pytest.fixture(scope="session")
def teacher_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished tiny `train` run."""
    from segtailor import train
    from segtailor.data.toy import LENGTHS

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(LENGTHS, "val", 12)  # as in the tests
        return train(tiny_train(tmp_path_factory.mktemp("teacher"))).folder
