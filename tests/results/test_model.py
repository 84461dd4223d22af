"""Records of runs and comparisons: what one class writes it reads, and what segtailor 0.1 wrote is read as well."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from segtailor.errors import SegtailorError
from segtailor.report import write_report
from segtailor.results.model import Outcome, Plan, Row, RunResults, State, read_comparison, read_results

OLD = Path(__file__).parent / "runs-0.1"


def test_what_is_written_is_read(tmp_path: Path) -> None:
    results = RunResults(
        name="run", kind="distill", classes=("a", "b"), palette=((1, 2, 3), (4, 5, 6)), size=(3, 4),
        rows=[Row(role="distilled", miou=1 / 3, iou=[0.1, None])], environment={"seed": "0"},
    )  # fmt: skip
    results.write(tmp_path / "results.json")
    assert read_results(tmp_path) == results
    assert json.loads((tmp_path / "results.json").read_text())["version"] == 1
    assert results["rows"][0]["miou"] == results.row("distilled").miou == 1 / 3


def test_an_unknown_key_is_a_key_error() -> None:
    row = Row(miou=0.5)
    with pytest.raises(KeyError):
        row["mIoU"]
    assert (row.get("mIoU", 3), row.get("seconds", 2.0)) == (3, 2.0)
    with pytest.raises(KeyError):
        RunResults(rows=[row]).row("teacher")


def test_an_outcome_and_a_plan_are_read_as_written(tmp_path: Path) -> None:
    Plan(name="c", arms=("none", "kd"), baseline="none", seeds=(0,), classes=("a", "b")).write(
        tmp_path / "comparison.json"
    )
    folder = tmp_path / "arms" / "kd" / "seed0"
    Outcome(arm="kd", seed=0, miou=0.5, miou_all=0.5, best_miou=0.6, iou=[0.5, None]).write(folder / "outcome.json")
    State(arm="none", seed=0, status="failed", reason="no memory").write(
        tmp_path / "arms" / "none" / "seed0" / "outcome.json"
    )
    comparison = read_comparison(tmp_path)
    assert comparison.finished("kd")[0].best_miou == 0.6
    assert comparison.runs["none", 0].reason == "no memory"
    assert "images" not in json.loads((folder / "outcome.json").read_text())


def test_a_run_of_0_1_is_read(tmp_path: Path) -> None:
    results = read_results(OLD / "student")
    assert [row.role for row in results.rows] == ["teacher", "alone", "distilled"]
    assert results.method == "kt"
    assert read_results(OLD / "student" / "baseline").rows[0].role == "alone"
    folder = shutil.copytree(OLD / "student", tmp_path / "run")
    assert "Student with kt" in write_report(folder).read_text()


def test_a_comparison_of_0_1_is_read() -> None:
    comparison = read_comparison(OLD / "comparison")
    assert comparison.arms == ("none", "bad", "kd")
    assert comparison.teacher is not None
    assert comparison.teacher.boundary is not None
    outcome = comparison.finished("kd")[0]
    assert outcome.calibration is not None
    assert outcome.peak_bytes is None  # of a CPU it was the order of the arms
    assert comparison.runs["bad", 0].status == "failed"
    assert "stages.9" in comparison.runs["bad", 0].reason


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ('{"version": 2}', "has version 2, this segtailor reads version 1; run the recipe again"),
        ('{"version": 1, "rows": [{"role": "model", "miou": 71.0}]}', "'rows' holds a value that is wrong: 71.0"),
        ('{"version": 1, "palette": [["red", 0, 0]]}', "'palette' holds a value that is wrong: 'red'"),
    ],
)
def test_a_damaged_file_is_an_error_of_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(SegtailorError, match=message) as error:
        read_results(tmp_path)
    assert "\n" not in str(error.value)
    assert "run the recipe again" in str(error.value)
