"""benchmarks/speed/method_cost.py: its figures at a tiny size, its table, and the figures that the package carries."""

from __future__ import annotations

import importlib
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
COSTS = ROOT / "src" / "segtailor" / "methods" / "costs.json"
STORED = ROOT / "benchmarks" / "speed" / "results" / "method_cost.json"
MODEL = "deeplabv3plus-lcnet_035"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "speed")
    return importlib.import_module("method_cost")


def run(module: Any, monkeypatch: pytest.MonkeyPatch, out: Path, *options: str) -> Any:
    common = ("--teacher", MODEL, "--student", MODEL, "--threads", "1", "--repeats", "1", "--no-memory")
    monkeypatch.setattr(sys, "argv", ["method_cost.py", *common, "--out", str(out), *options])
    module.main()
    return json.loads(out.read_text())["cpu"]


def test_figures_are_relative_to_the_networks_of_their_own_run(
    tmp_path: Path, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried, out = COSTS.read_bytes(), tmp_path / "cost.json"
    first = run(module, monkeypatch, out, "--size", "32", "64", "--only", "maskd", "adversarial")
    assert COSTS.read_bytes() == carried  # only the default --out writes it
    row = first["methods"]["maskd"]["clean"]
    teacher = statistics.median(row["networks"]["teacher"])
    step = teacher + statistics.median(row["networks"]["student"])
    assert row["time"] == pytest.approx(statistics.median(row["seconds"]) / step)
    assert row["stage"]["steps"] == 1000
    assert row["stage"]["time"] == pytest.approx((statistics.median(row["stage"]["seconds"]) + teacher) / step)
    assert first["methods"]["adversarial"]["clean"]["discriminator"]["time"] > 0

    measure = module.measure_seconds

    def broken(bench: Any, name: str, *others: Any) -> Any:
        if name == "cwd":
            raise ValueError("no such grid")
        return measure(bench, name, *others)

    monkeypatch.setattr(module, "measure_seconds", broken)
    with pytest.raises(SystemExit, match="not all"):
        run(module, monkeypatch, out, "--size", "32", "64", "--only", "cwd", "kd")
    after = json.loads(out.read_text())["cpu"]
    assert after["methods"]["cwd"]["clean"] == {"error": "ValueError: no such grid"}
    assert after["methods"]["kd"]["clean"]["time"] > 0
    assert after["methods"]["maskd"] == first["methods"]["maskd"]
    assert len(after["runs"]) == 2

    before = out.read_bytes()
    with pytest.raises(SystemExit, match="give another --out"):
        run(module, monkeypatch, out, "--size", "64", "64", "--only", "kd")
    assert out.read_bytes() == before


def test_the_peak_is_measured_in_a_process_of_its_own(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def child(script: str, arguments: Any, options: list[str]) -> int:
        asked.append(options)
        return 5

    monkeypatch.setattr(module, "peak_in_child", child)
    monkeypatch.setattr(sys, "argv", ["method_cost.py"])
    arguments = module.parse()
    assert module.peak(arguments, "kd", "clean", "0.9") == 5
    assert asked == [["--device", "cpu", "--peak", "kd", "clean", "0.9"]]
    arguments.no_memory = True
    assert module.peak(arguments, "kd", "clean", "0.9") is None


def test_the_table_and_the_package_carry_the_stored_figures(module: Any) -> None:
    stored = json.loads(STORED.read_text())
    assert json.loads(COSTS.read_text()) == module.derive_costs(stored)
    assert STORED.with_suffix(".md").read_text() == module.table(stored)
    rows = {line.split("|")[1].strip(): line for line in module.table(stored).splitlines() if line.startswith("| ")}
    assert rows["kd"].endswith("| not measured | not measured |")
    assert "1000 steps" in rows["maskd"]
