"""Comparisons: arms that do not influence each other, that fail alone, resume, and are trained a few at a time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import segtailor
import segtailor.jobs.compare as compare_job
from segtailor.config import CompareRecipe
from segtailor.engine.runs import RunStopped, StopRequest
from segtailor.errors import SegtailorError
from segtailor.jobs.compare import all_arms, arm_recipe, baseline_of
from segtailor.models import create_model, load_model, save_model
from segtailor.recipes import load_recipe
from segtailor.results.model import read_comparison
from tiny import TINY_MODEL, tiny_distill

DROPOUT_ARMS: dict[str, Any] = {
    "kd": "kd",
    "kt": {"name": "kt"},
    "adversarial": {"name": "adversarial", "width": 8},
    "lad": "lad",
    "cirkd": {"name": "cirkd", "pixel_queue": 40, "region_queue": 10, "pixel_samples": 20, "region_samples": 10},
}


def recipe(folder: Path, teacher: Path, arms: dict[str, Any], name: str = "comparison", **train: Any) -> dict[str, Any]:
    made = tiny_distill(folder, teacher, name, **train)
    del made["method"]
    return {**made, "arms": arms, "seeds": [0]}


def outcome(folder: Path, arm: str, seed: int = 0) -> dict[str, Any]:
    return dict(json.loads((folder / "arms" / arm / f"seed{seed}" / "outcome.json").read_text()))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(path).state_dict())


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_an_arm_among_others_equals_the_arm_alone_bit_for_bit(
    tmp_path: Path, teacher_run: Path, micro_batch: int | None
) -> None:
    steps = 8 if micro_batch is None else 6
    made = recipe(tmp_path, teacher_run, DROPOUT_ARMS, steps=steps, micro_batch=micro_batch)
    made["evaluate"]["every"] = steps
    result = segtailor.compare(made)
    plan = json.loads((result.folder / "comparison.json").read_text())
    assert {sample["arm"] for sample in plan["tailoring"]} == {"kt"}
    assert "How a method alters" in result.report.read_text()
    checked = load_recipe(made, CompareRecipe)
    for arm in ("none", "kt", "adversarial", "lad", "cirkd"):
        single = arm_recipe(checked, arm, 0).model_dump(mode="json")
        single["run"] = {"name": f"alone-{arm}", "folder": str(tmp_path)}
        alone = segtailor.distill(single)
        among = weights(result.folder / "arms" / arm / "seed0" / "student.safetensors")
        torch.testing.assert_close(among, weights(alone.folder), rtol=0, atol=0)
        last = next(row for row in alone.results["rows"] if row["role"] == "distilled")
        assert outcome(result.folder, arm)["miou"] == last["miou"]


def test_what_a_comparison_leaves(tmp_path: Path, teacher_run: Path) -> None:
    made = recipe(
        tmp_path, teacher_run, {"kt": {"name": "kt", "lt_all": 1.0}, "both": ["kd", {"name": "cwd", "feature": 0}]}
    )
    made["seeds"] = [3, 4]
    result = segtailor.compare(made)
    comparison = read_comparison(result.folder)
    assert comparison.arms == ("none", "kt", "both")
    assert comparison.baseline == "none"
    assert comparison.problems == []
    assert comparison.teacher is not None
    for arm in comparison.arms:
        for seed in (3, 4):
            facts = outcome(result.folder, arm, seed)
            confusions = np.load(result.folder / "arms" / arm / f"seed{seed}" / "confusions.npz")["confusions"]
            assert confusions.shape == (12, 9, 9)
            hits = confusions.sum(0)
            unions = hits.sum(0) + hits.sum(1) - hits.diagonal()
            assert (hits.diagonal() / np.maximum(unions, 1))[unions > 0].mean() == pytest.approx(facts["miou"])
            assert facts["status"] == "finished"
            assert facts["boundary"]["miou"] is not None
            assert facts["calibration"] is not None
            assert (facts["teacher_seconds"] > 0) == (arm != "none")
            if arm != "none":
                assert facts["teacher_seconds_alone"] == pytest.approx(2 * facts["teacher_seconds"], rel=1e-6)
    assert {"table.md", "table.csv", "table.tex", "report.html"} <= {path.name for path in result.folder.iterdir()}
    plan = json.loads((result.folder / "comparison.json").read_text())
    assert {"image", "target", "teacher", "arm:kt", "arm:both"} <= plan["samples"][0]["pictures"].keys()
    shown = [*plan["samples"][0]["pictures"].values(), *plan["tailoring"][0]["pictures"].values()]
    assert all((result.folder / path).is_file() for path in shown)
    assert plan["tailoring"][0]["class"] in plan["classes"]
    assert plan["tailoring"][0]["arm"] == "kt"


def test_one_arm_is_distilled_alone(tmp_path: Path, teacher_run: Path) -> None:
    made = recipe(tmp_path, teacher_run, {"kd": "kd", "slow": {"method": "kd", "optimizer": {"lr": 1e-5}}}, steps=2)
    result = segtailor.distill(made, {"train.seed": 1}, arm="slow")
    assert result.folder == tmp_path / "comparison-slow"
    written = yaml.safe_load((result.folder / "recipe.yaml").read_text())
    assert (written["train"]["seed"], written["train"]["optimizer"]["lr"]) == (1, 1e-5)
    single = arm_recipe(load_recipe(made, CompareRecipe), "slow", 1).model_dump(mode="json")
    single["run"] = {"name": "same", "folder": str(tmp_path)}
    torch.testing.assert_close(weights(result.folder), weights(segtailor.distill(single).folder), rtol=0, atol=0)
    with pytest.raises(SegtailorError, match="unknown arm 'slaw'; nearest: slow"):
        segtailor.distill(made, arm="slaw")
    with pytest.raises(SegtailorError, match="has no arms"):
        segtailor.distill(tiny_distill(tmp_path, teacher_run), arm="kd")


def test_seeds_change_weights_and_order(tmp_path: Path, teacher_run: Path) -> None:
    made = recipe(tmp_path, teacher_run, {"kd": "kd"})
    made["seeds"] = [0, 1]
    folder = segtailor.compare(made).folder
    first, second = (weights(folder / "arms" / "kd" / f"seed{seed}" / "student.safetensors") for seed in (0, 1))
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_failed_arm_is_marked_and_stops_nobody(tmp_path: Path, teacher_run: Path) -> None:
    arms = {"wild": {"method": "kd", "optimizer": {"name": "sgd", "lr": 1e30}}, "kd": "kd", "wrong": "heteroakd"}
    made = recipe(tmp_path, teacher_run, arms)
    made["arms"]["wrong"] = {"method": {"name": "kt", "feature_taps": ["stages.9"]}}
    result = segtailor.compare(made)
    facts = outcome(result.folder, "wild")
    assert facts["status"] == "failed"
    assert "lower train.optimizer.lr" in facts["reason"]
    assert "stages.9" in outcome(result.folder, "wrong")["reason"]
    assert outcome(result.folder, "kd")["status"] == "finished"
    assert "failed" in (result.folder / "table.md").read_text()
    # It learnt what it would have without the other.
    without = segtailor.compare(recipe(tmp_path, teacher_run, {"kd": "kd"}, "without"))
    pair = [weights(run.folder / "arms" / "kd" / "seed0" / "student.safetensors") for run in (result, without)]
    torch.testing.assert_close(pair[0], pair[1], rtol=0, atol=0)


def test_an_arm_of_other_classes_is_marked(tmp_path: Path, teacher_run: Path) -> None:
    save_model(create_model(TINY_MODEL, 4), tmp_path / "four.safetensors")
    student = {"model": TINY_MODEL, "weights": str(tmp_path / "four.safetensors")}
    result = segtailor.compare(recipe(tmp_path, teacher_run, {"four": {"method": "kd", "student": student}}))
    assert outcome(result.folder, "four")["status"] == "failed"
    assert "has 4 classes where 9 are asked for" in outcome(result.folder, "four")["reason"]
    assert outcome(result.folder, "none")["status"] == "finished"


def stop_after(monkeypatch: pytest.MonkeyPatch, polls: int) -> None:
    count = 0

    def requested(self: StopRequest) -> bool:
        nonlocal count
        count += 1
        return count == polls

    monkeypatch.setattr(StopRequest, "requested", property(requested))


def test_resume_continues_all_and_skips_what_is_finished(
    tmp_path: Path, teacher_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"kd": "kd", "kt": "kt"}
    whole = recipe(tmp_path / "whole", teacher_run, arms, checkpoint_every=1)
    parts = recipe(tmp_path / "parts", teacher_run, arms, checkpoint_every=1)
    whole["seeds"] = parts["seeds"] = [0, 1]
    expected = segtailor.compare(whole)
    with monkeypatch.context() as patched:
        stop_after(patched, 6)  # seed 0 has four steps
        with pytest.raises(RunStopped) as stop:
            segtailor.compare(parts)
    assert stop.value.folder == tmp_path / "parts" / "comparison"
    finished = tmp_path / "parts" / "comparison" / "arms" / "kt" / "seed0" / "outcome.json"
    written = finished.stat().st_mtime_ns
    assert outcome(tmp_path / "parts" / "comparison", "kt", 1)["status"] == "running"
    with pytest.raises(SegtailorError, match="exists already"):
        segtailor.compare(parts)
    parts["run"]["exists"] = "resume"
    resumed = segtailor.compare(parts)
    assert finished.stat().st_mtime_ns == written
    for arm in ("none", *arms):
        for seed in (0, 1):
            names = [run.folder / "arms" / arm / f"seed{seed}" / "student.safetensors" for run in (expected, resumed)]
            torch.testing.assert_close(weights(names[0]), weights(names[1]), rtol=0, atol=0)


def test_arms_that_are_trained_a_few_at_a_time(
    tmp_path: Path, teacher_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arms = {"kd": "kd", "kt": "kt"}
    together = segtailor.compare(recipe(tmp_path / "together", teacher_run, arms))
    seen: list[list[str]] = []
    whole = compare_job.train_arms

    def noted(context: Any, built: list[Any], **settings: Any) -> Any:
        seen.append([arm.label for arm in built])
        return whole(context, built, **settings)

    monkeypatch.setattr(compare_job, "train_arms", noted)
    for at_once, groups in ((1, [["none"], ["kd"], ["kt"]]), (2, [["none", "kd"], ["kt"]])):
        seen.clear()
        result = segtailor.compare(recipe(tmp_path / f"{at_once}", teacher_run, arms), {"arms_at_once": at_once})
        assert seen == groups
        for arm in ("none", *arms):
            pair = [weights(run.folder / "arms" / arm / "seed0" / "student.safetensors") for run in (together, result)]
            torch.testing.assert_close(pair[0], pair[1], rtol=0, atol=0)


def test_the_student_alone_is_always_there() -> None:
    base = {"student": {"model": "a"}, "teacher": {"model": "b"}}

    def names(arms: dict[str, Any]) -> list[str]:
        return list(all_arms(load_recipe({**base, "arms": arms}, CompareRecipe)))

    assert names({"kd": "kd"}) == ["none", "kd"]
    assert names({"kd": "kd", "alone": "none"}) == ["kd", "alone"]
    assert names({"kd": "kd", "small": {"method": "kd", "student": {"model": "c"}}}) == [
        "none",
        "none-c",
        "kd",
        "small",
    ]
    made = load_recipe({**base, "arms": {"kd": "kd", "alone": "none"}}, CompareRecipe)
    assert baseline_of(made) == "alone"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"memory": 4}, "'memory' was removed; set arms_at_once"),
        ({"executor": "ray"}, "'executor' was removed; start one process a GPU: torchrun"),
        ({"seeds": [0, 0]}, "seeds must differ"),
        ({"seeds": []}, "'seeds'"),
        ({"arms": {}}, "'arms'"),
        ({"arms": {"a/b": "kd"}}, "'arms.a/b"),
        ({"arms": {"x": {"method": "kd", "data": {"name": "camvid"}}}}, "unknown key 'arms.x.data'"),
        ({"arms": {"x": "ktt"}}, "unknown method 'ktt'; nearest: kt"),
        ({"arms": {"x": {"name": "kd", "temprature": 2}}}, "nearest: temperature"),
    ],
)
def test_mistakes_in_a_recipe_are_one_line(
    tmp_path: Path, teacher_run: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(SegtailorError, match=message) as error:
        segtailor.compare({**recipe(tmp_path, teacher_run, {"kd": "kd"}), **change})
    assert "\n" not in str(error.value)
    assert not (tmp_path / "comparison").exists()


def test_arms_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "twice.yaml"
    path.write_text("student: {model: a}\narms:\n  kd: kd\n  kt: kt\n  kd: {name: kd, temperature: 4}\n")
    with pytest.raises(SegtailorError, match="at line 5: duplicate key 'kd'"):
        load_recipe(path, CompareRecipe)


def test_the_commands_tell_their_recipes_apart(tmp_path: Path, teacher_run: Path) -> None:
    made = recipe(tmp_path, teacher_run, {"kd": "kd"})
    with pytest.raises(SegtailorError, match="is a recipe of `segtailor compare`"):
        segtailor.distill(made)
    with pytest.raises(SegtailorError, match="has no arms"):
        segtailor.compare(tiny_distill(tmp_path, teacher_run))
