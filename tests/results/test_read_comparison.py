from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segtailor.errors import SegtailorError
from segtailor.results.model import Comparison, read_comparison

from .folders import CLASSES, IMAGES, invented_confusions, iou_of, write_comparison, write_plan, write_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_comparison(tmp_path, {"none": [0.7, 0.71], "kd": [0.75, 0.76], "cwd": [0.74, 0.75]})


def only_problem(folder: Path) -> str:
    problems = read_comparison(folder).problems
    assert len(problems) == 1, problems
    assert "\n" not in problems[0]
    return problems[0]


def kd0(folder: Path) -> Path:
    return folder / "arms" / "kd" / "seed0"


def change(folder: Path, **fields: Any) -> None:
    path = kd0(folder) / "outcome.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def rest_is_there(comparison: Comparison) -> bool:
    whole = (list(comparison.finished(arm)) == [0, 1] for arm in ("none", "cwd"))
    return all(whole) and 1 in comparison.finished("kd")


def test_a_whole_comparison(folder: Path) -> None:
    comparison = read_comparison(folder)
    assert comparison.problems == []
    assert (comparison.name, comparison.arms, comparison.baseline) == ("invented", ("none", "kd", "cwd"), "none")
    assert (comparison.seeds, comparison.classes, comparison.teacher_miou) == ((0, 1), CLASSES, 0.9)
    outcome = comparison.finished("kd")[1]
    confusions = np.load(folder / "arms/kd/seed1/confusions.npz")["confusions"]
    assert outcome.miou == pytest.approx(np.mean(iou_of(confusions)))
    assert outcome.confusion is not None
    assert (outcome.confusion == confusions.sum(0)).all()
    assert outcome.images is not None
    assert outcome.images.images == IMAGES
    assert (outcome.seconds_shared, outcome.seconds_alone) == (66.0, 81.0)


def test_no_comparison_in_the_folder(tmp_path: Path) -> None:
    with pytest.raises(SegtailorError, match=r"no comparison in .*comparison.json"):
        read_comparison(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[1]", "has version None, this segtailor reads version 1"),
        ('{"version": 2}', "has version 2"),
        ('{"version": 1, "arms": ["a", "a"], "seeds": [0], "classes": ["c"]}', "'arms'"),
        ('{"version": 1, "arms": ["a"], "seeds": [], "classes": ["c"]}', "'seeds'"),
        ('{"version": 1, "arms": ["a"], "seeds": [0], "classes": 3}', "'classes'"),
    ],
)
def test_a_damaged_plan_is_an_error_of_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "comparison.json").write_text(text)
    with pytest.raises(SegtailorError, match=message) as error:
        read_comparison(tmp_path)
    assert "\n" not in str(error.value)


def test_an_unreadable_outcome_is_named_and_left_out(folder: Path) -> None:
    (kd0(folder) / "outcome.json").write_text('{"version": 1, "arm"')
    assert only_problem(folder).startswith("arms/kd/seed0: outcome.json is damaged (")
    comparison = read_comparison(folder)
    assert comparison.runs["kd", 0].status == "damaged"
    assert rest_is_there(comparison)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"version": 9}, "no outcome of version 1"),
        ({"seed": 1}, "it is of arm kd, seed 1"),
        ({"arm": "cwd"}, "it is of arm cwd, seed 0"),
        ({"status": "done"}, "status is 'done'"),
        ({"miou": None}, "'miou' is None"),
        ({"miou": float("nan")}, "'miou' is nan"),
        ({"best_miou": 71.0}, "'best_miou' is 71.0"),
        ({"iou": [0.5]}, "'iou' is no list of 3 classes"),
        ({"iou": [0.5, "x", None]}, "'iou' holds a value"),
        ({"seconds": -1}, "'seconds' is -1"),
        ({"boundary": 3}, "'boundary' is 3"),
    ],
)
def test_a_wrong_field_is_named(folder: Path, fields: dict[str, Any], named: str) -> None:
    change(folder, **fields)
    assert named in only_problem(folder)
    comparison = read_comparison(folder)
    assert 0 not in comparison.finished("kd")
    assert rest_is_there(comparison)


def test_what_was_not_measured_is_none(folder: Path) -> None:
    change(folder, seconds=None, peak_bytes=None)
    outcome = read_comparison(folder).finished("kd")[0]
    assert (outcome.seconds, outcome.seconds_shared, outcome.seconds_alone, outcome.peak_bytes) == (None,) * 4


def damage_nothing_there(path: Path) -> None:
    path.unlink()


def damage_cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def damage_garbled(path: Path) -> None:
    """Overwrite where the compressed numbers begin, leaving the archive's frame whole: no deflate stream any more."""
    content = bytearray(path.read_bytes())
    start = content.index(b".npy") + 4
    content[start : start + 100] = content[start : start + 20] + b"\xff" * 80
    path.write_bytes(bytes(content))


def damage_text(path: Path) -> None:
    path.write_text("no archive")


def damage_name(path: Path) -> None:
    np.savez(path, other=invented_confusions(0.7, 0))


def damage_shape(path: Path) -> None:
    np.savez(path, confusions=invented_confusions(0.7, 0, classes=4))


def damage_floats(path: Path) -> None:
    np.savez(path, confusions=invented_confusions(0.7, 0).astype(np.float32))


def damage_negative(path: Path) -> None:
    np.savez(path, confusions=-invented_confusions(0.7, 0))


def damage_pickled(path: Path) -> None:
    np.savez(path, confusions=np.array([{"a": 1}], dtype=object))


DAMAGES = [
    (damage_nothing_there, "no confusions.npz"),
    (damage_cut_short, "confusions.npz is damaged"),
    (damage_garbled, "confusions.npz is damaged"),
    (damage_text, "confusions.npz is damaged"),
    (damage_name, "confusions.npz is damaged"),
    (damage_shape, "confusions.npz has shape (40, 4, 4), not (images, 3, 3)"),
    (damage_floats, "confusions.npz holds values that are no pixel counts"),
    (damage_negative, "confusions.npz holds values that are no pixel counts"),
    (damage_pickled, "confusions.npz is damaged"),
]


@pytest.mark.parametrize(("damage", "named"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_without_confusions_the_score_counts_but_no_images(folder: Path, damage: Any, named: str) -> None:
    damage(kd0(folder) / "confusions.npz")
    problem = only_problem(folder)
    assert problem.startswith(f"arms/kd/seed0: {named}")
    assert problem.endswith("; its mIoU counts, but there is no interval over images")
    comparison = read_comparison(folder)
    assert comparison.finished("kd")[0].images is None
    assert rest_is_there(comparison)


def test_files_that_contradict_each_other_leave_the_run_out(folder: Path) -> None:
    change(folder, miou=0.5)
    assert "the outcome says mIoU 0.500000, confusions.npz gives" in only_problem(folder)
    comparison = read_comparison(folder)
    assert comparison.runs["kd", 0].status == "damaged"
    assert rest_is_there(comparison)


@pytest.mark.parametrize("kind", ["fewer images", "another order"])
def test_a_run_of_other_images_is_left_out(folder: Path, kind: str) -> None:
    confusions = np.load(kd0(folder) / "confusions.npz")["confusions"]
    changed = confusions[:-1] if kind == "fewer images" else confusions[::-1]
    np.savez(kd0(folder) / "confusions.npz", confusions=changed)
    change(folder, miou=float(np.mean(iou_of(changed))))
    assert only_problem(folder) == ("arms/kd/seed0: scored other images than most runs, or in another order; left out")
    assert rest_is_there(read_comparison(folder))


def test_a_missing_arm_is_named_once(folder: Path) -> None:
    write_plan(folder, ["none", "kd", "cwd", "kt"], [0, 1])
    assert only_problem(folder) == "arms/kt: no outcome.json for seeds 0, 1"
    comparison = read_comparison(folder)
    assert comparison.finished("kt") == {}
    assert len(comparison.finished("kd")) == 2


def test_a_comparison_still_going(tmp_path: Path) -> None:
    write_plan(tmp_path, ["none", "kd"], [0, 1])
    write_run(tmp_path, "none", 0, 0.7)
    going = tmp_path / "arms/kd/seed0"
    going.mkdir(parents=True)
    (going / "outcome.json").write_text('{"version": 1, "arm": "kd", "seed": 0, "status": "running", "reason": null}')
    comparison = read_comparison(tmp_path)
    assert list(comparison.finished("none")) == [0]
    assert comparison.runs["kd", 0].status == "running"
    assert comparison.problems == ["arms/none: no outcome.json for seed 1", "arms/kd: no outcome.json for seed 1"]


def test_a_failed_run_keeps_its_reason(folder: Path) -> None:
    change(folder, status="failed", reason="loss is not finite at step 12", miou=None)
    comparison = read_comparison(folder)
    assert comparison.problems == []
    assert comparison.runs["kd", 0].reason == "loss is not finite at step 12"
    assert rest_is_there(comparison)


def test_runs_that_were_not_planned_are_named(folder: Path) -> None:
    write_run(folder, "kd", 7, 0.8)
    assert only_problem(folder) == "arms/kd/seed7: not in comparison.json; left out"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"baseline": "alone"}, "baseline 'alone' is no arm"),
        ({"teacher": {"miou": "high"}}, "the teacher has no sound"),
    ],
)
def test_a_wrong_baseline_or_teacher_is_named(folder: Path, changes: dict[str, Any], named: str) -> None:
    write_plan(folder, ["none", "kd", "cwd"], [0, 1], **changes)
    assert named in only_problem(folder)


def test_without_a_teacher_nothing_is_wrong(folder: Path) -> None:
    write_plan(folder, ["none", "kd", "cwd"], [0, 1], teacher=None)
    comparison = read_comparison(folder)
    assert (comparison.problems, comparison.teacher_miou) == ([], None)
