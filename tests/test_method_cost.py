"""benchmarks/method_cost.py at a tiny size, and the figures that the package carries of it."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
COSTS = ROOT / "src" / "segtailor" / "methods" / "costs.json"
STORED = ROOT / "benchmarks" / "speed" / "results" / "method_cost.json"
MODEL = "deeplabv3plus-lcnet_050"


def command(out: Path, *options: str) -> list[str]:
    script = str(ROOT / "benchmarks" / "speed" / "method_cost.py")
    return [script, "--teacher", MODEL, "--student", MODEL, "--threads", "1", "--out", str(out), *options]


def read(out: Path) -> Any:
    return json.loads(out.read_text())["cpu"]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of kd and maskd, measured once; tests must not change them."""
    out = tmp_path_factory.mktemp("cost") / "cost.json"
    before = COSTS.read_bytes() if COSTS.exists() else None
    arguments = [sys.executable, *command(out, "--size", "64", "128", "--only", "kd", "maskd")]
    done = subprocess.run(arguments, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert (COSTS.read_bytes() if COSTS.exists() else None) == before  # only the default --out writes it
    return out


@pytest.fixture
def copied(measured: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(measured, tmp_path / "cost.json"))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "speed")
    return importlib.import_module("method_cost")


def test_every_figure_is_relative_to_the_networks_of_its_own_run(measured: Path) -> None:
    section = read(measured)
    assert section["setting"]["size"] == [64, 128]
    assert set(section["methods"]) == {"kd", "maskd"}
    for variants in section["methods"].values():
        row = variants["clean"]
        networks = row["networks"]
        step = statistics.median(networks["teacher"]) + statistics.median(networks["student"])
        assert len(row["seconds"]) == len(networks["student"]) == 2
        assert row["time"] == pytest.approx(statistics.median(row["seconds"]) / step)
        assert row["memory"] == row["peak"] - networks["peak"]
        assert networks["peak"] > 1e8


def test_a_stage_is_stated_with_its_steps_and_the_teacher_it_runs(measured: Path) -> None:
    row = read(measured)["methods"]["maskd"]["clean"]
    stage, networks = row["stage"], row["networks"]
    teacher = statistics.median(networks["teacher"])
    step = teacher + statistics.median(networks["student"])
    assert stage["steps"] == 1000
    assert stage["time"] == pytest.approx((statistics.median(stage["seconds"]) + teacher) / step)
    assert stage["memory"] == stage["peak"] - networks["peak"]
    assert "stage" not in read(measured)["methods"]["kd"]["clean"]


def test_the_table_says_what_was_not_measured(measured: Path) -> None:
    lines = measured.with_suffix(".md").read_text().splitlines()
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    assert rows["kd"].endswith("| not measured | not measured |")
    assert "1000 steps" in rows["maskd"]


def test_only_keeps_the_other_rows_and_measures_the_networks_again(
    copied: Path, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read(copied)
    options = ("--size", "64", "128", "--only", "adversarial", "--no-memory", "--repeats", "1")
    monkeypatch.setattr(sys, "argv", command(copied, *options))
    module.main()
    after = read(copied)
    assert after["methods"]["kd"] == before["methods"]["kd"]
    row = after["methods"]["adversarial"]["clean"]
    assert row["discriminator"]["time"] > 0
    assert row["memory"] is None
    assert row["networks"]["student"] == after["runs"][1]["start"]["student"] != after["runs"][0]["start"]["student"]


def test_rows_of_another_setting_are_refused(copied: Path, module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = copied.read_bytes()
    monkeypatch.setattr(sys, "argv", command(copied, "--size", "64", "64", "--only", "kd"))
    with pytest.raises(SystemExit, match="give another --out"):
        module.main()
    assert copied.read_bytes() == before


def test_a_method_that_fails_does_not_lose_the_others(
    tmp_path: Path, module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = module.measure_seconds

    def broken(bench: Any, name: str, *others: Any) -> Any:
        if name == "kd":
            raise ValueError("no such grid")
        return measure(bench, name, *others)

    monkeypatch.setattr(module, "measure_seconds", broken)
    options = ("--size", "32", "32", "--no-memory", "--repeats", "1", "--only", "kd", "cwd")
    monkeypatch.setattr(sys, "argv", command(tmp_path / "cost.json", *options))
    with pytest.raises(SystemExit, match="not all"):
        module.main()
    methods = read(tmp_path / "cost.json")["methods"]
    assert methods["kd"]["clean"] == {"error": "ValueError: no such grid"}
    assert methods["cwd"]["clean"]["time"] > 0


@pytest.mark.skipif(not (COSTS.exists() and STORED.exists()), reason="the benchmark was not run at full size yet")
def test_the_package_carries_the_stored_figures(module: Any) -> None:
    assert json.loads(COSTS.read_text()) == module.derive_costs(json.loads(STORED.read_text()))
