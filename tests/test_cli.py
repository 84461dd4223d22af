"""The command line as a user meets it: help, listings, jobs, and mistakes in one line."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import yaml
from PIL import Image

from segtailor import __version__
from segtailor.cli import main
from tiny import tiny_distill, tiny_train


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, str, str]:
    """Run `segtailor WORDS` in this process; returns exit code, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["segtailor", *words])
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("command", ["train", "distill", "evaluate", "predict", "inspect"])
def test_help_is_short_and_has_an_example(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    code, out, _ = run(capsys, monkeypatch, command, "--help")
    assert code == 0
    assert "Example: segtailor " + command in out
    assert len(out.splitlines()) < 30


def test_the_package_runs_as_a_module_and_says_its_version() -> None:
    command = [sys.executable, "-m", "segtailor", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == f"{__version__}\n"


def test_help_and_import_need_no_torch() -> None:
    script = "import sys, segtailor, segtailor.cli; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["recipes", "ls"], "published-kt-cityscapes-deeplabv3-r101-r18"),
        (["recipes", "show", "toy-kt"], "method: {name: kt"),
        (["recipes", "fields"], "train.optimizer.lr"),
        (["models"], "segformer-mit_b0"),
        (["methods"], "Knowledge Tailoring"),
        (["methods", "kt"], "tuning_point"),
        (["data", "ls"], "cityscapes"),
        (["inspect", "deeplabv3-resnet18"], "159.0 G"),
    ],
)
def test_listings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], part: str
) -> None:
    code, out, _ = run(capsys, monkeypatch, *words)
    assert code == 0
    assert part in out


def test_from_recipe_to_predictions(
    tmp_path: Path, teacher_run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump(tiny_distill(tmp_path, teacher_run)))
    code, out, _ = run(capsys, monkeypatch, "distill", str(recipe), "--run.name", "mine", "--baseline", "train")
    assert code == 0
    assert "Student alone" in out
    assert f"report: {tmp_path / 'mine' / 'report.html'}" in out

    scores = tmp_path / "scores.json"
    code, out, _ = run(capsys, monkeypatch, "evaluate", str(tmp_path / "mine"), "--json", str(scores), "--boundary")
    assert code == 0
    assert "mIoU" in out
    assert "Boundary IoU" in out
    results = json.loads((tmp_path / "mine" / "results.json").read_text())
    assert json.loads(scores.read_text())["miou"] == pytest.approx(results["rows"][-1]["miou"])

    picture = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    code, out, _ = run(
        capsys,
        monkeypatch,
        "predict",
        str(tmp_path / "mine"),
        str(tmp_path / "photo.png"),
        "--out",
        str(tmp_path / "o"),
    )
    assert code == 0
    assert np.asarray(Image.open(tmp_path / "o" / "index" / "photo.png")).shape == (40, 50)

    code, out, _ = run(capsys, monkeypatch, "report", str(tmp_path / "mine"))
    assert code == 0
    code, out, _ = run(capsys, monkeypatch, "inspect", str(tmp_path / "mine"))
    assert "deeplabv3plus-lcnet_035" in out


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["train", "toy-teecher"], "nearest: toy-teacher"),
        (["train", "toy-kt"], "recipe of `segtailor distill`"),
        (["train", "toy-teacher", "--train.stepz", "3"], "unknown key 'train.stepz'; nearest: steps"),
        (["train", "toy-teacher", "--data.name", "camvid", "--data.root", "nowhere"], "no such folder"),
        (["train", "toy-teacher", "extra"], "unexpected argument 'extra'"),
        (["evaluate", "nowhere/model.safetensors"], "nowhere/model.safetensors"),
        (["evaluate", "runs/nowhere"], "runs/nowhere"),
        (["inspect", "deeplabv3-resnet81"], "nearest: deeplabv3-resnet18"),
        (["inspect", "published:nowhere.pth"], "nowhere.pth"),
        (["methods", "ktt"], "nearest: kt"),
        (["recipes", "show", "toy"], "nearest: toy-kt"),
        (["recipes", "cp", "toy-kt", "/proc/nowhere/toy.yaml"], "No such file or directory (/proc/nowhere)"),
        (["report", "nowhere"], "nowhere"),
        (["predict", "nowhere", "nowhere", "--out", "x", "--size", "12"], "--size is HEIGHTxWIDTH"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, monkeypatch, *words)
    assert code == 2
    assert part in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert out == ""
    assert list(tmp_path.iterdir()) == []


def test_an_existing_run_is_refused_and_left_whole(
    teacher_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tmp_path / "again.yaml"
    recipe.write_text(yaml.safe_dump(tiny_train(teacher_run.parent, teacher_run.name)))
    before = {path: path.stat().st_mtime_ns for path in teacher_run.rglob("*")}
    code, _, err = run(capsys, monkeypatch, "train", str(recipe))
    assert code == 2
    assert "exists already" in err
    assert {path: path.stat().st_mtime_ns for path in teacher_run.rglob("*")} == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_writes_a_checkpoint_and_prints_how_to_continue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    folder = tmp_path / "my runs"
    recipe = tmp_path / "long.yaml"
    recipe.write_text(yaml.safe_dump(tiny_train(folder, "long", steps=5000)))
    metrics = folder / "long" / "metrics.jsonl"

    def stop_soon() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") > 2):
            time.sleep(0.05)
        os.kill(os.getpid(), number)

    Thread(target=stop_soon).start()
    code, _, err = run(capsys, monkeypatch, "train", str(recipe), "--evaluate.every", "5000")
    assert code == 128 + number
    last = err.strip().splitlines()[-1]
    assert "the checkpoint is written" in last
    assert f"continue with: segtailor train '{folder / 'long' / 'recipe.yaml'}' --run.exists resume" in last
    assert (folder / "long" / "checkpoints" / "last.ckpt").exists()
    assert "Traceback" not in err
