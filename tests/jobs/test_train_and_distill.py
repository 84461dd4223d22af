"""The two main jobs, from recipe to report, on a tiny toy world."""

import json
from pathlib import Path

import pytest
import torch

import segtailor
from segtailor.config import DataConfig
from segtailor.engine.logging import read_metrics
from segtailor.engine.runs import RunStopped, StopRequest, load_checkpoint
from segtailor.errors import SegtailorError
from segtailor.jobs.train import RunResult
from tiny import TINY_DATA, tiny_distill, tiny_train


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state = load_checkpoint(folder / "checkpoints" / "last.ckpt")["distiller"]
    return dict(state)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def kt_run(tmp_path_factory: pytest.TempPathFactory, teacher_run: Path) -> RunResult:
    """A finished run of `tiny_distill`, to be read."""
    return segtailor.distill(tiny_distill(tmp_path_factory.mktemp("kt"), teacher_run))


def test_train_leaves_a_model_its_scores_and_a_report(teacher_run: Path) -> None:
    results = json.loads((teacher_run / "results.json").read_text())
    model = segtailor.load_model(teacher_run)
    assert model.num_classes == len(results["classes"])
    assert results["rows"][0]["role"] == "model"
    assert (teacher_run / "report.html").read_text().startswith("<!doctype html>")
    assert (teacher_run / "checkpoints" / "best.safetensors").exists()
    kinds = [line["kind"] for line in read_metrics(teacher_run / "metrics.jsonl")]
    assert kinds.count("train") == 4
    assert kinds.count("evaluate") == 2
    assert list((teacher_run / "tensorboard").glob("events*"))


def test_distill_gives_three_rows_and_a_student_alone_and_leaves_the_teacher(tmp_path: Path, teacher_run: Path) -> None:
    before = (teacher_run / "model.safetensors").read_bytes()
    recipe = {**tiny_distill(tmp_path, teacher_run), "baseline": "train"}
    result = segtailor.distill(recipe)
    rows = {row["role"]: row for row in result.results["rows"]}
    assert list(rows) == ["teacher", "alone", "distilled"]
    assert rows["alone"]["parameters"] == rows["distilled"]["parameters"]
    student = segtailor.load_model(result.folder)
    assert sum(p.numel() for p in student.parameters()) == rows["distilled"]["parameters"]
    terms = read_metrics(result.folder / "metrics.jsonl")[0]["terms"]
    assert {"task", "task_aux", "kt.kd", "kt.ft.decoder", "kt.ft.stages.0", "kt.ft.stages.3"} <= terms.keys()
    assert result.report.exists()
    assert (teacher_run / "model.safetensors").read_bytes() == before


def test_the_exported_student_scores_what_the_results_say(kt_run: RunResult) -> None:
    again = segtailor.evaluate(kt_run.folder, DataConfig(**TINY_DATA))
    assert again.miou == pytest.approx(kt_run.results["rows"][-1]["miou"], abs=1e-6)


def test_method_none_is_the_student_alone(tmp_path: Path, teacher_run: Path) -> None:
    recipe = {**tiny_distill(tmp_path, teacher_run, "none"), "method": "none", "baseline": "train"}
    folder = segtailor.distill(recipe).folder
    assert equal(weights(folder), weights(folder / "baseline"))


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_resumed_run_is_the_uninterrupted_run(
    tmp_path: Path, teacher_run: Path, monkeypatch: pytest.MonkeyPatch, ema: float | None
) -> None:
    whole = segtailor.distill(tiny_distill(tmp_path, teacher_run, "whole", steps=6, ema=ema)).folder
    recipe = tiny_distill(tmp_path, teacher_run, "cut", steps=6, ema=ema)
    asked = iter([False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "requested", property(lambda self: next(asked)))
        patch.setattr(StopRequest, "code", property(lambda self: 130))
        with pytest.raises(RunStopped, match="after step 3 of 6") as stop:
            segtailor.distill(recipe)
    assert stop.value.folder == tmp_path / "cut"
    assert not (tmp_path / "cut" / "results.json").exists()
    segtailor.distill(tmp_path / "cut" / "recipe.yaml", {"run.exists": "resume"})
    assert equal(weights(whole), weights(tmp_path / "cut"))

    def losses(folder: Path) -> list[tuple[int, float]]:
        lines = read_metrics(folder / "metrics.jsonl")
        return [(line["step"], line["loss"]) for line in lines if line["kind"] == "train"]

    assert losses(whole) == losses(tmp_path / "cut")


def test_resuming_a_finished_run_does_nothing(kt_run: RunResult, teacher_run: Path) -> None:
    stamp = (kt_run.folder / "student.safetensors").stat().st_mtime_ns
    again = segtailor.distill(tiny_distill(kt_run.folder.parent, teacher_run), {"run.exists": "resume"})
    assert again.results == kt_run.results
    assert (kt_run.folder / "student.safetensors").stat().st_mtime_ns == stamp


def test_workers_do_not_change_the_run(tmp_path: Path, teacher_run: Path) -> None:
    helped = segtailor.train(tiny_train(tmp_path, "w2"), {"data.workers": 2}).folder
    assert equal(weights(teacher_run), weights(helped))


def test_several_methods_are_combined_with_weights(tmp_path: Path, teacher_run: Path) -> None:
    recipe = {
        **tiny_distill(tmp_path, teacher_run, steps=1),
        "method": [{"name": "kd"}, {"name": "cwd", "weight": 0}],
    }
    terms = read_metrics(segtailor.distill(recipe).folder / "metrics.jsonl")[0]["terms"]
    assert terms["kd.kd"] > 0
    assert {value for name, value in terms.items() if name.startswith("cwd.")} == {0.0}


def test_a_diverging_run_names_step_and_term(tmp_path: Path) -> None:
    recipe = tiny_train(tmp_path, "wild", steps=20, optimizer={"name": "sgd", "lr": 1e18})
    with pytest.raises(SegtailorError, match=r"step \d+: the (term 'task\w*'|weight '.*') became (nan|inf)") as caught:
        segtailor.train(recipe)
    assert "checkpoint" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_teacher_near_chance_stops_the_run(tmp_path: Path, teacher_run: Path) -> None:
    recipe = tiny_distill(tmp_path, teacher_run)
    recipe["teacher"] = {"model": "deeplabv3plus-lcnet_035"}
    with pytest.raises(SegtailorError, match="teacher is near chance"):
        segtailor.distill(recipe)
    assert not (tmp_path / "student").exists()


def test_a_window_with_gaps_is_refused_before_training(tmp_path: Path) -> None:
    recipe = tiny_train(tmp_path, "gaps")
    recipe["evaluate"] |= {"mode": "slide", "window": [16, 16], "stride": [16, 17]}
    with pytest.raises(SegtailorError, match="would leave gaps"):
        segtailor.train(recipe)
    assert not (tmp_path / "gaps").exists()


def test_a_teacher_of_other_classes_is_refused(tmp_path: Path) -> None:
    from segtailor.models import create_model, save_model

    save_model(create_model("deeplabv3plus-lcnet_035", 3), tmp_path / "other.safetensors")
    with pytest.raises(SegtailorError, match="3") as caught:
        segtailor.distill(tiny_distill(tmp_path, tmp_path / "other.safetensors"))
    assert "classes" in str(caught.value)


def test_a_teacher_that_is_not_what_the_recipe_says(tmp_path: Path, teacher_run: Path) -> None:
    recipe = tiny_distill(tmp_path, teacher_run)
    recipe["teacher"]["model"] = "deeplabv3-resnet101"
    with pytest.raises(SegtailorError, match="holds deeplabv3plus-lcnet_035, not deeplabv3-resnet101"):
        segtailor.distill(recipe)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"teacher.weights": "runs/nowhere"}, "runs/nowhere"),
        ({"student.model": "deeplabv3plus-lcnet_05O"}, "nearest: .*lcnet_050"),
        ({"method.name": "ktt"}, "unknown method 'ktt'; nearest: kt"),
        ({"method.temprature": 3}, "temperature"),
        ({"method.feature_taps": "stages.9"}, "stages.9.*nearest: stages"),
        ({"data.name": "citiscapes"}, "cityscapes"),
        ({"baseline": "runs/nowhere"}, "no finished run in runs/nowhere"),
        ({"train.micro_batch": 3}, "does not divide"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_run(
    tmp_path: Path, teacher_run: Path, overrides: dict[str, object], message: str
) -> None:
    with pytest.raises(SegtailorError, match=message) as caught:
        segtailor.distill(tiny_distill(tmp_path, teacher_run), overrides)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "student" / "student.safetensors").exists()
    if "baseline" in overrides:  # so that the corrected command needs no other name
        assert not (tmp_path / "student").exists()


@pytest.mark.parametrize("settings", [{"train.precision": "bf16"}, {"train.clip": 0.5}, {"train.micro_batch": 2}])
def test_precision_clipping_and_accumulation_train(
    tmp_path: Path, teacher_run: Path, kt_run: RunResult, settings: dict[str, object]
) -> None:
    other = segtailor.distill(tiny_distill(tmp_path, teacher_run, "other"), settings).folder
    assert not equal(weights(kt_run.folder), weights(other))
    assert all(torch.isfinite(value).all() for value in weights(other).values() if value.is_floating_point())
    assert [line["step"] for line in read_metrics(other / "metrics.jsonl") if line["kind"] == "train"] == [1, 2, 3, 4]


def test_averaged_weights_are_what_is_exported(tmp_path: Path) -> None:
    folder = segtailor.train(tiny_train(tmp_path, "ema", ema=0.9)).folder
    exported = segtailor.load_model(folder).state_dict()
    average = load_checkpoint(folder / "checkpoints" / "last.ckpt")["average"]
    assert equal(dict(exported), dict(average))
    scored = [line["weights"] for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "evaluate"]
    assert scored == ["ema", "ema", "student"]


def test_two_methods_of_one_name_are_refused(
    tmp_path: Path, teacher_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("one_method", "two_method"):
        lines = ["from segtailor import Method", "class Mine(Method):", "    name = 'mine'", "    summary = 'nothing'"]
        lines += ["    def terms(self, student, teacher, target, step):", "        return {}"]
        (tmp_path / f"{module}.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    methods = ["module:one_method:Mine", "module:two_method:Mine"]
    with pytest.raises(SegtailorError, match="names the method mine 2 times; list it once"):
        segtailor.distill({**tiny_distill(tmp_path, teacher_run), "method": methods})


def test_an_options_error_is_the_methods_words_alone(tmp_path: Path, teacher_run: Path) -> None:
    recipe = {**tiny_distill(tmp_path, teacher_run), "method": {"name": "kt", "contrastive": 1}}
    with pytest.raises(SegtailorError, match="option") as caught:
        segtailor.distill(recipe)
    assert "Value error" not in str(caught.value)


def test_a_method_of_yours_that_cannot_be_built_is_one_line(
    tmp_path: Path, teacher_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["from segtailor import Method", "class Mine(Method):", "    name = 'mine'", "    summary = 'fails'"]
    lines += ["    def build(self, student, teacher):", "        raise ValueError('no width')"]
    lines += ["    def terms(self, student, teacher, target, step):", "        return {}"]
    (tmp_path / "failing_method.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    recipe = {**tiny_distill(tmp_path, teacher_run), "method": "module:failing_method:Mine"}
    with pytest.raises(SegtailorError, match=r"cannot be built: ValueError: no width \(failing_method\.py, line 6\)"):
        segtailor.distill(recipe)
