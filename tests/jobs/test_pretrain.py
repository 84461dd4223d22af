"""Methods with a training before the student's, and with an opponent beside it, from recipe to report."""

from __future__ import annotations

import html
import shutil
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import segtailor
from segtailor.engine.logging import read_metrics
from segtailor.engine.runs import RunStopped, StopRequest, load_checkpoint
from segtailor.errors import SegtailorError
from segtailor.jobs.pretrain import _no_other
from segtailor.jobs.train import RunResult
from segtailor.models import create_model, save_model
from tiny import TINY_MODEL, tiny_distill

MASKD = {"name": "maskd", "token_steps": 3}


def recipe(folder: Path, teacher: Path | None, name: str, method: Any, **train: Any) -> dict[str, Any]:
    made = {**tiny_distill(folder, teacher or folder, name, **train), "method": method}
    if teacher is None:
        del made["teacher"]
    return made


def stage_files(folder: Path) -> list[Path]:
    return sorted((folder / "stages").glob("*.safetensors"))


@pytest.fixture(scope="module")
def lad_run(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    """A finished run of lad; its teacher is in ``stages/`` beside it."""
    return segtailor.distill(recipe(tmp_path_factory.mktemp("lad"), None, "first", "lad"))


@pytest.fixture
def trained_folder(lad_run: RunResult, tmp_path: Path) -> Path:
    """A folder for runs, with what lad has trained in it."""
    shutil.copytree(lad_run.folder.parent / "stages", tmp_path / "stages")
    return tmp_path


def test_lad_needs_no_teacher_and_a_second_run_takes_what_the_first_learnt(lad_run: RunResult) -> None:
    first, folder = lad_run, lad_run.folder.parent
    (file,) = stage_files(folder)
    changed = file.stat().st_mtime_ns
    second = segtailor.distill(recipe(folder, None, "second", "lad", seed=1))
    assert [result.results["stages"][0]["reused"] for result in (first, second)] == [False, True]
    assert second.results["stages"][0]["seconds"] == first.results["stages"][0]["seconds"] > 0
    assert stage_files(folder) == [file]
    assert file.stat().st_mtime_ns == changed
    assert [row["role"] for row in first.results["rows"]] == ["assisted", "distilled"]
    assert first.results["gap_closed"] is None
    assert "lad.cwd_logits" in read_metrics(first.folder / "metrics.jsonl")[0]["terms"]
    kinds = {line["kind"] for line in read_metrics(file.with_suffix("") / "metrics.jsonl")}
    assert kinds == {"train", "evaluate"}
    # The student is an ordinary network over three planes.
    student = segtailor.load_model(first.folder)
    assert student.planes == 3
    assert student(torch.zeros(1, 3, 32, 48, dtype=torch.uint8)).logits.shape[1] == 9
    page = first.report.read_text()
    assert "scored with the labels as an input" in page
    assert "the label-assisted teacher was trained for the method lad" in page


def test_another_setting_is_another_stage(trained_folder: Path) -> None:
    segtailor.distill(recipe(trained_folder, None, "second", {"name": "lad", "consistency": 1.0}))
    segtailor.distill(recipe(trained_folder, None, "third", {"name": "lad", "base": "kd"}))  # no matter to the teacher
    assert len(stage_files(trained_folder)) == 2


def test_tokens_are_learnt_once_for_each_teacher(tmp_path: Path, teacher_run: Path) -> None:
    first = segtailor.distill(recipe(tmp_path, teacher_run, "first", MASKD))
    second = segtailor.distill(recipe(tmp_path, teacher_run, "second", MASKD, seed=1))
    assert [result.results["stages"][0]["reused"] for result in (first, second)] == [False, True]
    torch.manual_seed(1)
    other = tmp_path / "other.safetensors"
    save_model(create_model(TINY_MODEL, 9), other)
    segtailor.distill(recipe(tmp_path, other, "third", MASKD))
    files = stage_files(tmp_path)
    assert len(files) == 2
    mine = first.results["stages"][0]["file"]
    again = segtailor.distill(recipe(tmp_path, teacher_run, "fourth", {**MASKD, "tokens_file": mine}))
    assert again.results["stages"][0]["file"] == mine
    (foreign,) = (file for file in files if str(file) != mine)
    with pytest.raises(SegtailorError, match="another teacher") as error:
        segtailor.distill(recipe(tmp_path, teacher_run, "fifth", {**MASKD, "tokens_file": str(foreign)}))
    assert "\n" not in str(error.value)
    with pytest.raises(SegtailorError, match=r"(?i)no such file"):
        segtailor.distill(recipe(tmp_path, teacher_run, "sixth", {**MASKD, "tokens_file": "nowhere"}))


def stop_after(monkeypatch: pytest.MonkeyPatch, polls: int) -> None:
    """Ask for a stop at the ``polls``-th look."""
    count = 0

    def requested(self: StopRequest) -> bool:
        nonlocal count
        count += 1
        return count == polls

    monkeypatch.setattr(StopRequest, "requested", property(requested))


@pytest.mark.parametrize(("method", "stops"), [("lad", [2, 6]), ("adversarial", [2])])
def test_an_interrupted_run_equals_one_in_one_piece(
    tmp_path: Path, teacher_run: Path, monkeypatch: pytest.MonkeyPatch, method: str, stops: list[int]
) -> None:
    options = {"name": method, "width": 8} if method == "adversarial" else {"name": method}
    teacher = None if method == "lad" else teacher_run
    whole = segtailor.distill(recipe(tmp_path / "whole", teacher, "run", options, checkpoint_every=1))
    end = load_checkpoint(whole.folder / "checkpoints" / "last.ckpt")
    assert bool(end["opponents"]) == (method == "adversarial")
    for polls in stops:
        folder = tmp_path / f"stopped-at-{polls}"
        with monkeypatch.context() as patched:
            stop_after(patched, polls)
            with pytest.raises(RunStopped):
                segtailor.distill(recipe(folder, teacher, "run", options, checkpoint_every=1))
        resumed = recipe(folder, teacher, "run", options, checkpoint_every=1)
        resumed["run"]["exists"] = "resume"
        parts = load_checkpoint(segtailor.distill(resumed).folder / "checkpoints" / "last.ckpt")
        torch.testing.assert_close(parts["distiller"], end["distiller"], rtol=0, atol=0)
        torch.testing.assert_close(parts["opponents"], end["opponents"], rtol=0, atol=0)


def test_the_opponent_learns_beside_the_student_and_is_not_exported(tmp_path: Path, teacher_run: Path) -> None:
    method = [{"name": "kd"}, {"name": "adversarial", "width": 8}]
    result = segtailor.distill(recipe(tmp_path, teacher_run, "run", method, checkpoint_every=1, log_every=1))
    state = load_checkpoint(result.folder / "checkpoints" / "last.ckpt")
    assert not any("discriminator" in name for name in state["distiller"])
    opponent = state["opponents"]["adversarial"]
    assert len(opponent["optimizer"]["state"]) > 0
    assert all(item["step"] == 4 for item in opponent["optimizer"]["state"].values())
    record = read_metrics(result.folder / "metrics.jsonl")[0]
    terms = record["terms"]
    assert {"kd.kd", "adversarial.adversarial", "adversarial.opponent"} <= terms.keys()
    own = sum(value for name, value in terms.items() if name != "adversarial.opponent")
    assert record["loss"] == pytest.approx(own, rel=1e-5)  # the opponent's loss is not the student's


def test_the_recipes_teacher_may_stand_beside_lads_own(trained_folder: Path, teacher_run: Path) -> None:
    result = segtailor.distill(recipe(trained_folder, teacher_run, "run", [{"name": "kd"}, {"name": "lad"}]))
    assert [row["role"] for row in result.results["rows"]] == ["teacher", "assisted", "distilled"]
    terms = read_metrics(result.folder / "metrics.jsonl")[0]["terms"]
    assert {"kd.kd", "lad.cwd_logits"} <= terms.keys()


@pytest.mark.parametrize("method", ["kd", "maskd"])
def test_a_method_without_its_teacher_is_refused_in_one_line(tmp_path: Path, method: str) -> None:
    with pytest.raises(SegtailorError, match=rf"method {method} needs a teacher; set teacher\.weights") as error:
        segtailor.distill(recipe(tmp_path, None, "run", method))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_damaged_stage_file_is_named(trained_folder: Path) -> None:
    (file,) = stage_files(trained_folder)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SegtailorError, match=r"lad-.*safetensors is damaged"):
        segtailor.distill(recipe(trained_folder, None, "second", "lad"))


def test_the_terminal_shows_the_alignment(
    tmp_path: Path, teacher_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = recipe(tmp_path, teacher_run, "run", "cwd")
    made["student"] = {"model": "segformer-mit_b0", "head_width": 16}
    result = segtailor.distill(made)
    lines = result.results["alignment"]
    assert lines[0] == "cwd, logits: student 9 x 8 x 12, teacher 9 x 8 x 12: equal grids"
    assert lines[1].startswith("cwd, feature: student 16 x 8 x 12, teacher 128 x 8 x 12: equal grids; ")
    assert "1x1" in lines[1]
    assert lines[1] in capsys.readouterr().err
    assert lines[1] in html.unescape(result.report.read_text())


def test_a_second_run_waits_for_the_one_that_makes_the_stage(tmp_path, capsys):
    path, order = tmp_path / "stages" / "tokens.safetensors", []
    begun, released = threading.Event(), threading.Event()
    fabric = SimpleNamespace(is_global_zero=True, barrier=lambda: None)

    def first():
        with _no_other(fabric, path):
            begun.set()
            released.wait(10)
            order.append("first made it")

    def second():
        with _no_other(fabric, path):
            order.append("second reads it")

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    threads[0].start()
    assert begun.wait(10)
    threads[1].start()
    threads[1].join(0.5)
    assert order == []
    released.set()
    for thread in threads:
        thread.join(10)
    assert order == ["first made it", "second reads it"]
    assert f"another run makes {path}; waiting for it" in capsys.readouterr().err
