from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from segtailor.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_data(capsys, monkeypatch, tmp_path) -> Run:
    """Run `segtailor data WORDS` in ``tmp_path``; return exit code, output and errors."""

    def call(*words: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["segtailor", "data", *words])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return call
