"""A recorded row, trained again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import segtailor
from segtailor.cli import app
from segtailor.errors import SegtailorError
from segtailor.jobs.repro import Reproduction, repro
from segtailor.methods import check_options
from segtailor.results.record import write_record
from tiny import tiny_distill


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory, teacher_run: Path) -> Path:
    folder = tmp_path_factory.mktemp("repro")
    made = tiny_distill(folder, teacher_run, "recorded")
    del made["method"]
    return segtailor.compare({**made, "arms": {"kt": "kt"}, "seeds": [0, 1]}).folder


def test_a_row_is_found_again_exactly(comparison: Path, tmp_path: Path) -> None:
    row = comparison / "arms" / "kt" / "seed1"
    found = repro(row, {"run.folder": str(tmp_path)})
    recorded = json.loads((row / "outcome.json").read_text())["miou"]
    assert found.recorded == recorded
    assert found.found == recorded
    assert found.within
    assert "kt, seed 1" in found.text()
    assert repro(row / "outcome.json", {"run.folder": str(tmp_path)}).found == recorded


def test_a_row_of_a_record_is_found_again_exactly(
    comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "benchmarks" / "results" / "tiny"
    write_record(comparison, record, "abc1234")
    recorded = json.loads((comparison / "arms" / "kt" / "seed1" / "outcome.json").read_text())["miou"]
    monkeypatch.chdir(tmp_path)
    for source in ("tiny", f"{record}.rows.jsonl", comparison):
        found = repro(source, {"run.folder": str(tmp_path / "runs")}, arm="kt", seed=1)
        assert found.found == found.recorded == recorded


def test_a_record_names_what_it_has(comparison: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_record(comparison, tmp_path / "benchmarks" / "results" / "tiny", "abc1234")
    monkeypatch.chdir(tmp_path)
    for name, arm, seed, message in (
        (
            "tinny",
            "kt",
            0,
            f"unknown record 'tinny'; nearest: tiny. Names are of {tmp_path / 'benchmarks'}",
        ),
        ("tiny", "kd", 0, "unknown arm 'kd'; nearest: kt"),
        ("tiny", "kt", 7, "no seed 7 in tiny; there are 0, 1"),
    ):
        with pytest.raises(SegtailorError, match=message):
            repro(name, arm=arm, seed=seed)


@pytest.mark.parametrize("words", [["kt"], ["kt", "first"], ["kt", "0", "1"]])
def test_the_command_takes_a_record_an_arm_and_a_seed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SegtailorError, match="as in: segtailor repro final kt 0"):
        app(["repro", "final", *words, "--run.name", "x"], standalone_mode=False)


def test_the_command_trains_a_row_of_a_record(
    comparison: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_record(comparison, tmp_path / "tiny", "abc1234")
    app(["repro", str(tmp_path / "tiny"), "kt", "0", "--run.folder", str(tmp_path)], standalone_mode=False)
    assert "kt, seed 0: mIoU" in capsys.readouterr().out


def test_a_row_is_trained_with_what_it_changed_of_the_recipe(comparison: Path, tmp_path: Path) -> None:
    write_record(comparison, tmp_path / "tiny", "abc1234")
    rows = tmp_path / "tiny.rows.jsonl"
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    rows.write_text("".join(json.dumps({**line, "changes": {"train.steps": 2}}) + "\n" for line in lines))
    found = repro(tmp_path / "tiny", {"run.folder": str(tmp_path)}, arm="kt", seed=0)
    recipe = (tmp_path / "repro-tiny-kt-seed0" / "recipe.yaml").read_text()
    assert "steps: 2\n" in recipe
    assert found.found != found.recorded


def test_a_row_whose_options_are_gone_names_its_commit(comparison: Path, tmp_path: Path) -> None:
    write_record(comparison, tmp_path / "tiny", "abc1234")
    plan = json.loads((tmp_path / "tiny.json").read_text())
    plan["recipe"]["arms"]["kt"]["method"][0]["balance"] = "gradient"
    (tmp_path / "tiny.json").write_text(json.dumps(plan))
    with pytest.raises(SegtailorError, match=r"'balance'.*\(recorded at commit abc1234; check it out"):
        repro(tmp_path / "tiny", arm="kt", seed=0)


def test_a_comparison_records_every_option_that_its_methods_had(comparison: Path) -> None:
    """So that a row stays what it was when a default changes."""
    recipe = json.loads((comparison / "comparison.json").read_text())["recipe"]
    (method,) = recipe["arms"]["kt"]["method"]
    assert method == {"name": "kt", "weight": 1.0, **check_options("kt", {}).model_dump()}


def test_the_spread_stays_between_nothing_and_all(comparison: Path, tmp_path: Path) -> None:
    folder = tmp_path / "wide"
    shutil.copytree(comparison, folder)
    for seed, miou in ((0, 0.0), (1, 1.0)):
        path = folder / "arms" / "kt" / f"seed{seed}" / "outcome.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"miou": miou}))
        (path.parent / "confusions.npz").unlink()
    found = repro(folder, {"run.folder": str(tmp_path)}, arm="kt", seed=0)
    assert (found.low, found.high) == (0.0, 1.0)


def test_within_the_spread() -> None:
    row = Reproduction("kt, seed 0", recorded=0.50, found=0.53, low=0.46, high=0.54)
    assert row.within
    assert "mIoU 53.00, recorded 50.00 (+3.00)" in row.text()
    assert not Reproduction("kt, seed 0", 0.50, 0.55, 0.46, 0.54).within
    alone = Reproduction("kt, seed 0", 0.50, 0.51, None, None)
    assert not alone.within
    assert "only an equal score counts" in alone.text()


def test_a_row_without_its_teacher_says_what_to_do(comparison: Path, tmp_path: Path) -> None:
    gone = {"run.folder": str(tmp_path), "teacher.weights": str(tmp_path / "gone")}
    with pytest.raises(SegtailorError, match=r"kt, seed 1: its teacher was at .*gone.*--teacher\.weights"):
        repro(comparison / "arms" / "kt" / "seed1", gone)
    assert not list(tmp_path.iterdir())


def test_what_is_no_row_is_refused_in_one_line(comparison: Path, tmp_path: Path) -> None:
    with pytest.raises(SegtailorError, match="give COMPARISON/arms/ARM/seedN"):
        repro(comparison)
    other = tmp_path / "arms" / "kt" / "seed0"
    other.mkdir(parents=True)
    (other / "outcome.json").write_text("{}")
    with pytest.raises(SegtailorError, match=r"holds no comparison\.json"):
        repro(other)
