"""benchmarks/study.py and page.py: a tiny study from its YAML to its pages, and the records in benchmarks/results."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml

from segtailor.results.record import read_record, read_rows
from tiny import TINY_DATA, TINY_EVALUATE, TINY_MODEL, TINY_TRAIN

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS, RESULTS = ROOT / "benchmarks", ROOT / "benchmarks" / "results"
NAMES = sorted(path.name.removesuffix(".rows.jsonl") for path in RESULTS.glob("*.rows.jsonl"))


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("page")


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run study.py on ``tiny.yaml`` in a folder of its own, and return what it prints."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module("study")

    def run(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["study.py", "tiny.yaml", "--results", "results", *options])
        module.main()
        return capsys.readouterr().out

    return run


def test_a_tiny_study_is_trained_recorded_extended_and_written(
    tmp_path: Path, study: Callable[..., str], page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {**TINY_TRAIN, "steps": 2}
    teacher = {"data": TINY_DATA, "model": {"model": TINY_MODEL}, "train": train, "evaluate": TINY_EVALUATE}
    comparison: dict[str, Any] = {
        "title": "The rows", "description": "Two arms.", "data": TINY_DATA, "student": {"model": TINY_MODEL},
        "teacher": {"weights": "runs/tiny/teacher-val", "check": False}, "train": train, "boundary": False,
        "evaluate": {**TINY_EVALUATE, "samples": 0}, "seeds": [0], "arms": {"none": "none", "kd": "kd"},
    }  # fmt: skip
    plan = {"teachers": {"val": teacher}, "comparisons": {"final": comparison}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(plan))
    assert "final: 0 of 2 rows are recorded\n" in study()
    row = read_rows("results/final")["kd", 0]
    assert row["status"] == "finished"
    assert row["commit"]
    assert row["alone_seconds"] > 0
    before = Path("results/final.rows.jsonl").read_text().splitlines()

    shutil.rmtree("runs/tiny/final-seed0")  # what is recorded stays, without its run; the new arm alone is trained
    comparison["arms"]["at"] = "at"
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(plan))
    assert study("--list") == "final: 2 of 3 rows are recorded\n"
    assert "final: at, seed 0 is recorded\n" in study()
    assert Path("results/final.rows.jsonl").read_text().splitlines()[:2] == before

    monkeypatch.setattr(page, "VERSUS", {"final": "kd"})
    files = page.pages(page.read_records(Path("results")))
    assert set(files) == {"final.md", "final.svg", "setting.md", "teacher-curves.svg"}
    assert "| `at` | 1 |" in files["final.md"]
    assert "raw: `benchmarks/results/final.*`" in files["final.md"]
    with pytest.raises(SystemExit, match="error: unknown comparison 'finl'; nearest: final"):
        study("--only", "finl")


def test_the_pages_are_those_of_the_records(page: Any) -> None:
    """`python benchmarks/page.py` was run after the last record."""
    files = page.pages(page.read_records(RESULTS))
    folder = ROOT / "docs" / "study"
    assert {path.name for path in folder.iterdir()} == set(files)
    for name, text in files.items():
        assert (folder / name).read_text(encoding="utf-8") == text, f"{name} is not that of the records"
        if name.endswith(".svg"):
            ElementTree.fromstring(text)
    for link in re.findall(r"\]\((study/[\w-]+\.\w+)", (ROOT / "docs" / "study.md").read_text(encoding="utf-8")):
        assert (ROOT / "docs" / link).exists(), link


def test_the_final_comparison_reads_as_the_readme_says(page: Any) -> None:
    record = page.read_records(RESULTS)["final"]
    lines = {line.split("|")[1].strip(): line for line in page.arm_table(record).splitlines()}
    assert lines["`stagewise`"].startswith(
        "| `stagewise` | 5 | 50.83 ± 0.88 | +11.26 (+8.24 to +14.28) | +13.34, +9.39, +7.97"
    )
    assert lines["`stagewise`"].endswith("| 56 % | +10.88 | differs, p 0.003 | 1.47× |")
    assert lines["`none`"].startswith("| `none` | 5 | 39.57 ± 1.96 |")
    versus = page.versus_table(record, "stagewise")
    assert "| `channel-kl` | 5 | +4.91 (+2.58 to +7.24) | +6.02, +3.41, +2.45, +6.82, +5.85 | +4.69 |" in versus
    assert "not trained beside the student alone, and so not timed: `channel-kl` seeds 3, 4" in page.notes(record)


def test_rows_of_another_version_are_named_below_the_table(page: Any) -> None:
    record = page.read_records(RESULTS)["final"]
    record.rows["stagewise", 4] = {**record.rows["stagewise", 4], "torch": "3.0", "commit": "abc1234"}
    assert "made with torch 3.0, commit abc1234: `stagewise` seed 4" in page.notes(record)
    record.rows["stagewise", 3]["changes"] = {"train.steps": 9}
    assert 'another recipe ({"train.steps": 9}): `stagewise` seed 3' in page.notes(record)


@pytest.mark.parametrize("name", NAMES)
def test_every_record_is_whole(name: str) -> None:
    found = read_record(RESULTS / name)
    assert all(run.outcome is not None for run in found.runs.values())
    assert all(row["commit"] and row["torch"] and row["segtailor"] for row in read_rows(RESULTS / name).values())


def test_the_records_stay_small() -> None:
    files = [path for path in RESULTS.iterdir() if path.is_file()]
    assert len(files) < 60
    assert sum(path.stat().st_size for path in files) < 3e6


@pytest.mark.parametrize("path", sorted((BENCHMARKS / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_studies_are_sound_and_their_records_have_a_page(
    path: Path, page: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = importlib.import_module("study")
    plan = yaml.safe_load(path.read_text(encoding="utf-8"))
    listed = [name for _, names in page.PAGES.values() for name in names]
    for name, given in plan["comparisons"].items():
        recipe = reader.read_recipe(name, plan)
        assert given.get("record", name) in listed
        if recipe.teacher is not None:
            assert str(recipe.teacher.weights).removeprefix(f"runs/{path.stem}/teacher-") in plan["teachers"]
