"""A comparison recorded in three small files, and read as the same comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtailor.config import TrainConfig
from segtailor.errors import SegtailorError
from segtailor.results.leaderboard import summarise
from segtailor.results.model import read_comparison
from segtailor.results.record import find_record, read_record, read_rows, write_record

from .folders import write_plan, write_run

TEACHER = {"role": "teacher", "miou": 0.9, "iou": [0.9, 0.9, 0.9]}
MEASURED = {
    "boundary": {
        "ratio": 0.02, "miou": 0.5, "iou": [0.5, 0.5, 0.5], "trimap": [1], "rule": "x",
        "f1": [{"tolerance": 1, "mean_f1": 0.5, "mean_f1_per_image": 0.4, "f1": [0.5, 0.5, 0.5]}],
    },
    "calibration": {"ece": 0.1, "brier": 0.2, "pixels": 9, "bins": [1, 2]},
}  # fmt: skip


def make(folder: Path, arms: dict[str, dict[int, float]], recipe: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Write a comparison; ``arms`` gives each seed's share of right pixels."""
    given = {
        "data": {"name": "toy", "limit": None}, "student": {"model": "tiny"}, "train": {"steps": 4},
        "arms": {arm: {"method": [{"name": arm, "weight": 1.0}]} for arm in arms}, "seeds": [0, 1],
    }  # fmt: skip
    environment = {"segtailor": "1.0", "torch": "2.0", "device": "NVIDIA H100"}
    seeds = dict.fromkeys(seed for scores in arms.values() for seed in scores)
    plan = {
        "teacher": TEACHER,
        "recipe": given | (recipe or {}),
        "environment": environment,
        "samples": [{"name": "a"}],
    }
    write_plan(folder, list(arms), list(seeds), **plan | changes)
    for arm, scores in arms.items():
        for seed, quality in scores.items():
            write_run(folder, arm, seed, quality, **MEASURED)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make(tmp_path / "run", {"none": {0: 0.5, 1: 0.6}, "kd": {0: 0.7, 1: 0.75}})


def test_a_record_is_the_comparison_that_it_was_made_of(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "results" / "tiny"
    assert write_record(run, out, "abc1234", title="Tiny") == [("none", 0), ("none", 1), ("kd", 0), ("kd", 1)]
    assert sorted(path.name for path in out.parent.iterdir()) == ["tiny.images.npz", "tiny.json", "tiny.rows.jsonl"]
    board, recorded = summarise(read_comparison(run)), summarise(read_record(out))
    assert recorded.arms == board.arms
    assert recorded.arms[0].over_images is not None
    for key, first in read_comparison(run).runs.items():
        second = read_record(out.with_suffix(".json")).runs[key].outcome
        assert first.outcome is not None
        assert second is not None
        assert second.images is not None
        assert np.array_equal(first.outcome.images.hits, second.images.hits)  # type: ignore[union-attr]
        assert np.array_equal(first.outcome.images.unions, second.images.unions)  # type: ignore[union-attr]
    plan = json.loads(out.with_suffix(".json").read_text())
    assert plan["title"] == "Tiny"
    assert plan["recipe"]["data"] == {"name": "toy"}  # a setting that is null is left out
    assert "samples" not in plan


def test_a_row_says_what_made_it_and_leaves_out_what_no_table_shows(run: Path, tmp_path: Path) -> None:
    write_record(run, tmp_path / "tiny", "abc1234")
    row = read_rows(tmp_path / "tiny.rows.jsonl")["kd", 0]
    assert (row["commit"], row["segtailor"], row["torch"], row["alone_seconds"]) == ("abc1234", "1.0", "2.0", 66.0)
    assert row["boundary"]["f1"] == [{"tolerance": 1, "mean_f1": 0.5, "mean_f1_per_image": 0.4}]
    assert set(row["boundary"]) == {"ratio", "miou", "iou", "f1"}
    assert set(row["calibration"]) == {"ece", "brier", "pixels"}
    assert "changes" not in row


def test_rows_are_added_and_none_is_replaced(run: Path, tmp_path: Path) -> None:
    write_record(run, tmp_path / "tiny", "first")
    before = (tmp_path / "tiny.rows.jsonl").read_bytes()
    assert write_record(run, tmp_path / "tiny", "second") == []
    assert (tmp_path / "tiny.rows.jsonl").read_bytes() == before
    more = make(tmp_path / "more", {"none": {0: 0.1}, "kt": {0: 0.8}}, recipe={"train": {"steps": 8}})
    assert write_record(more, tmp_path / "tiny", "second") == [("kt", 0)]
    rows = read_rows(tmp_path / "tiny")
    assert rows["kt", 0]["commit"] == "second"
    assert rows["kt", 0]["changes"] == {"train.steps": 8}
    assert rows["kt", 0]["alone_seconds"] == 66.0
    found = read_record(tmp_path / "tiny")
    assert found.arms == ("none", "kd", "kt")
    assert found.recipe["arms"]["kt"] == {"method": [{"name": "kt", "weight": 1.0}]}
    assert found.runs["kt", 1].status == "missing"
    assert found.runs["none", 0].outcome.miou > 0.3  # type: ignore[union-attr]


def test_an_arm_with_other_options_than_the_recorded_ones_carries_them(run: Path, tmp_path: Path) -> None:
    write_record(run, tmp_path / "tiny")
    heavy = {"method": [{"name": "kd", "weight": 3.0}]}
    arms = {"none": {"method": [{"name": "none", "weight": 1.0}]}, "kd": heavy}
    more = make(tmp_path / "more", {"none": {2: 0.5}, "kd": {2: 0.8}}, recipe={"arms": arms})
    write_record(more, tmp_path / "tiny")
    rows = read_rows(tmp_path / "tiny")
    assert rows["kd", 2]["changes"] == {"method": heavy["method"]}
    assert "changes" not in rows["none", 2]
    assert read_record(tmp_path / "tiny").seeds == (0, 1, 2)


def test_a_setting_that_the_record_does_not_know_is_no_change(run: Path, tmp_path: Path) -> None:
    """A later version's recipe has more settings, and the teacher may be in another place."""
    write_record(run, tmp_path / "tiny")
    given = {
        "train": {"steps": 4, "ema": None, "nodes": 1, "batch": TrainConfig().batch},
        "teacher": {"weights": "elsewhere"},
    }
    more = make(tmp_path / "more", {"none": {2: 0.5}}, recipe=given)
    plan = json.loads((tmp_path / "tiny.json").read_text())
    plan["recipe"]["teacher"] = {"weights": "here"}
    (tmp_path / "tiny.json").write_text(json.dumps(plan))
    write_record(more, tmp_path / "tiny")
    assert "changes" not in read_rows(tmp_path / "tiny")["none", 2]


def test_failed_rows_are_recorded_and_tried_again(run: Path, tmp_path: Path) -> None:
    place = run / "arms" / "kd" / "seed1" / "outcome.json"
    whole = place.read_text()
    place.write_text(json.dumps({"version": 1, "arm": "kd", "seed": 1, "status": "failed", "reason": "out of memory"}))
    write_record(run, tmp_path / "tiny")
    found = read_record(tmp_path / "tiny").runs["kd", 1]
    assert (found.status, found.reason) == ("failed", "out of memory")
    place.write_text(whole)
    assert write_record(run, tmp_path / "tiny") == [("kd", 1)]
    assert read_record(tmp_path / "tiny").runs["kd", 1].status == "finished"


@pytest.mark.parametrize(
    "changes", [{"classes": ["road", "sea"]}, {"teacher": {**TEACHER, "miou": 0.8}}, {"teacher": None}]
)
def test_rows_of_other_classes_or_another_teacher_are_refused(
    run: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    write_record(run, tmp_path / "tiny")
    other = make(tmp_path / "other", {"none": {2: 0.5}}, **changes)
    with pytest.raises(SegtailorError, match="other classes or another teacher"):
        write_record(other, tmp_path / "tiny")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("tiny.json", b"{", r"tiny\.json is damaged"),
        ("tiny.json", b"[]", r"tiny\.json has version None"),
        ("tiny.json", b"{}", r"tiny\.json has version None"),
        ("tiny.rows.jsonl", b'{"arm": "kd"}\n', r"tiny\.rows\.jsonl, line 1 is damaged"),
        ("tiny.rows.jsonl", b'{"version": 1, "arm": "kd", "seed": 0, "status": "finished"}\n', "kd, seed 0 is damaged"),
        ("tiny.images.npz", b"PK", r"tiny\.images\.npz is damaged"),
        ("tiny.images.npz", None, r"tiny\.images\.npz is damaged"),
    ],
)
def test_a_damaged_file_is_one_line(run: Path, tmp_path: Path, name: str, damage: bytes | None, message: str) -> None:
    write_record(run, tmp_path / "tiny")
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:-50] if damage is None else damage)
    with pytest.raises(SegtailorError, match=message):
        read_record(tmp_path / "tiny")


def test_a_row_that_its_images_contradict_is_refused(run: Path, tmp_path: Path) -> None:
    write_record(run, tmp_path / "tiny")
    rows = tmp_path / "tiny.rows.jsonl"
    first, *others = map(json.loads, rows.read_text().splitlines())
    first["miou"] += 0.01
    rows.write_text("".join(json.dumps(row) + "\n" for row in (first, *others)))
    with pytest.raises(SegtailorError, match=r"none, seed 0 is damaged .*mIoU .*images.npz gives .*; restore it"):
        read_record(tmp_path / "tiny")


def test_a_record_is_found_by_its_name_or_by_any_of_its_files(run: Path, tmp_path: Path) -> None:
    write_record(run, tmp_path / "tiny")
    for name in ("tiny", "tiny.json", tmp_path / "tiny", tmp_path / "tiny.rows.jsonl"):
        assert find_record(name, tmp_path) == tmp_path / "tiny.json"
    with pytest.raises(SegtailorError, match="unknown record 'tinny'; nearest: tiny"):
        find_record("tinny", tmp_path)
