"""benchmarks/equal, the study that runs itself, at a tiny size."""

from __future__ import annotations

import ast
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from segtailor.config import CompareRecipe, RunConfig
from segtailor.errors import SegtailorError
from segtailor.recipes import validate

ROOT = Path(__file__).resolve().parents[1]
STUDY = {
    "title": "tiny",
    "about": "tiny",
    "common": {
        "data": {"name": "toy", "size": [48, 64], "crop": [48, 64], "workers": 0, "length": 8},
        "train": {"batch": 2, "threads": 1, "devices": 1, "accelerator": "cpu", "checkpoint_every": 1},
        "evaluate": {"every": 100},
    },
    "teachers": {"val": {"model": {"model": "deeplabv3plus-lcnet_050"}, "train": {"steps": 3}}},
    "student": {"student": {"model": "deeplabv3plus-lcnet_050"}, "train": {"steps": 3}},
    "comparisons": {
        "first": {
            "recipe": {"teacher": {"check": False}},
            "seeds": [0],
            "arms": {"none": "none", "kd": "kd"},
        }
    },
}
PLACE = Path("results/tiny/first/arms")


def start(folder: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "equal"), "--study", "studies/tiny.yaml", *options]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )


def run(folder: Path, *options: str) -> tuple[int, str, str]:
    process = start(folder, *options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def write_study(folder: Path, **changes: object) -> None:
    (folder / "studies").mkdir(parents=True, exist_ok=True)
    (folder / "studies" / "tiny.yaml").write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_study(folder)
    code, out, err = run(folder)
    assert code == 0, out + err
    return folder


@pytest.fixture
def folder(done: Path, tmp_path: Path) -> Path:
    shutil.copytree(done, tmp_path / "study")
    return tmp_path / "study"


def test_the_study_leaves_rows_that_say_what_made_them(done: Path) -> None:
    made_by = json.loads((done / PLACE / "kd" / "seed0" / "fingerprint.json").read_text())
    alone = json.loads((done / PLACE / "none" / "seed0" / "fingerprint.json").read_text())
    assert made_by.keys() == {"code", "method", "recipe", "teacher", "torch", "unit"}
    assert made_by["code"] == alone["code"]
    assert made_by["unit"] == alone["unit"]
    assert made_by["method"] != alone["method"]
    teacher = json.loads((done / "results/tiny/teacher-val.json").read_text())
    assert teacher["weights"] == made_by["teacher"]
    assert (done / "results/tiny/first/table.md").exists()
    comparison = json.loads((done / "results/tiny/first/comparison.json").read_text())
    recipe = validate(CompareRecipe, comparison["recipe"], "the recorded recipe")
    assert list(recipe.arms) == comparison["arms"] == ["none", "kd"]
    # `segtailor repro ROW` names its run after the comparison
    assert validate(RunConfig, {"name": f"repro-{comparison['name']}-kd-seed0"}, "name").name
    assert (done / PLACE / "kd" / "seed0" / "confusions.npz").exists()


def test_what_is_finished_is_not_run_again(folder: Path) -> None:
    code, out, _ = run(folder)
    assert code == 0
    assert "started" not in out
    assert "first: 2 there" in out


def test_a_clone_without_the_teacher_has_its_rows_and_trains_it_when_one_needs_it(folder: Path) -> None:
    shutil.rmtree(folder / "runs")
    code, out, _ = run(folder)
    assert code == 0
    assert "first: 2 there" in out
    assert "started" not in out
    path = made_by_other_code(folder, "kd")
    code, _, err = run(folder, "--confirm", "first/arms/kd/seed0")
    assert (code, err.count("\n")) == (1, 1)
    assert "runs/tiny/teacher-val, is not there; train it with --teachers" in err
    code, out, _ = run(folder)
    assert code == 1
    assert "started" not in out  # what made the row is asked about first
    shutil.rmtree(path.parent)
    code, out, err = run(folder)
    assert code == 0, out + err
    assert "teacher val: started" in out
    assert "first, seed 0: 1 arms: started" in out


def test_the_teachers_can_be_trained_alone(folder: Path) -> None:
    shutil.rmtree(folder / "runs")
    shutil.rmtree(folder / PLACE / "kd")
    code, out, err = run(folder, "--teachers")
    assert code == 0, out + err
    assert (folder / "runs/tiny/teacher-val/model.safetensors").exists()
    assert not (folder / PLACE / "kd").exists()
    assert run(folder, "--teachers")[1] == "teacher val: there\n"


@pytest.mark.parametrize("name", ["outcome.json", "confusions.npz"])
def test_a_damaged_arm_is_named_and_run_again(folder: Path, name: str) -> None:
    before = json.loads((folder / PLACE / "kd" / "seed0" / "outcome.json").read_text())["miou"]
    (folder / PLACE / "kd" / "seed0" / name).write_bytes(b"{")
    code, out, _ = run(folder)
    assert code == 0
    assert "first/arms/kd/seed0: damaged" in out
    assert "first, seed 0: 1 arms: started" in out
    after = json.loads((folder / PLACE / "kd" / "seed0" / "outcome.json").read_text())["miou"]
    assert after == before
    assert len(list((folder / "runs/tiny/set-aside").iterdir())) == 1


def test_rows_of_another_recipe_are_refused_and_kept(folder: Path) -> None:
    student = {"student": {"model": "deeplabv3plus-lcnet_050"}, "train": {"steps": 2}}
    write_study(folder, student=student)
    code, out, err = run(folder)
    assert code == 1
    assert err.count("\n") == 1
    assert "first/arms/none/seed0 was made by other recipe" in err
    assert (folder / PLACE / "none" / "seed0" / "outcome.json").exists()
    code, out, _ = run(folder, "--list")
    assert code == 0
    assert "2 made by something else" in out
    code, out, err = run(folder, "--anew")
    assert code == 0, out + err
    assert json.loads((folder / PLACE / "kd" / "seed0" / "outcome.json").read_text())["steps"] == 2
    assert len(list((folder / "runs/tiny/set-aside").iterdir())) == 2


def made_by_other_code(folder: Path, arm: str) -> Path:
    path = folder / PLACE / arm / "seed0" / "fingerprint.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "method": "other"}))
    return path


def test_a_row_of_other_code_counts_again_once_the_same_figures_come_out(folder: Path) -> None:
    path = made_by_other_code(folder, "kd")
    code, _, err = run(folder)
    assert code == 1
    assert "first/arms/kd/seed0 was made by other method" in err
    assert "--confirm" in err
    code, out, err = run(folder, "--confirm", "first/arms/kd/seed0")
    assert code == 0, err
    assert "first/arms/kd/seed0: confirmed" in out
    assert json.loads(path.read_text())["method"] != "other"
    code, out, _ = run(folder)
    assert (code, "first: 2 there" in out) == (0, True)


def test_a_row_whose_figures_are_others_now_is_not_confirmed(folder: Path) -> None:
    path = made_by_other_code(folder, "kd")
    confusions = path.with_name("confusions.npz")
    with np.load(confusions) as old:
        np.savez(confusions, **{name: old[name] + 1 if old[name].ndim == 3 else old[name] for name in old.files})
    code, out, err = run(folder, "--confirm", "results/tiny/first/arms/kd/seed0")
    assert code == 1, err
    assert "not confirmed, the figures differ" in out
    assert json.loads(path.read_text())["method"] == "other"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("first/arms/kd/seed0", "today's code made it"),
        ("first/arms/kd/seed9", "no row of the study"),
        ("nowhere", "no row of the study"),
        ("first/arms/kt/seed0", "no row of the study"),
    ],
)
def test_only_rows_of_other_code_can_be_confirmed(folder: Path, place: str, message: str) -> None:
    code, out, err = run(folder, "--confirm", place)
    assert code == 1
    assert err.count("\n") == 1
    assert message in err
    assert not out


def test_a_settled_comparison_stays_as_it_is(folder: Path) -> None:
    made_by_other_code(folder, "kd")
    first = {**STUDY["comparisons"]["first"], "settled": "abc1234"}  # type: ignore[index]
    write_study(folder, comparisons={"first": first})
    code, out, err = run(folder)
    assert (code, err) == (0, "")
    assert "first: 2 there (made at abc1234)" in out
    shutil.rmtree(folder / PLACE / "kd")
    code, out, err = run(folder)
    assert code == 1
    assert "first/arms/kd/seed0: not run; the rows of first were made at abc1234" in err


def test_a_row_that_another_comparison_has_is_taken_and_the_student_alone_is_not(folder: Path) -> None:
    first = STUDY["comparisons"]["first"]  # type: ignore[index]
    second = {**first, "arms": {"none": "none", "other-name": "kd", "kd-3": {"name": "kd", "kd": 3}}}
    write_study(folder, comparisons={"first": first, "second": second})
    code, out, err = run(folder)
    assert code == 0, out + err
    assert "second/arms/other-name/seed0: first/arms/kd/seed0 is the same, taken from there" in out
    assert "second, seed 0: 2 arms: started" in out
    assert "second: 3 there" in out
    source, copy = folder / PLACE / "kd" / "seed0", folder / "results/tiny/second/arms/other-name/seed0"
    assert (copy / "confusions.npz").read_bytes() == (source / "confusions.npz").read_bytes()
    assert json.loads((copy / "outcome.json").read_text())["arm"] == "other-name"
    alone = json.loads((folder / PLACE / "none" / "seed0" / "outcome.json").read_text())
    made_by = json.loads((copy / "fingerprint.json").read_text())
    seconds = alone["seconds"] + alone["stage_seconds"] + alone["teacher_seconds"]
    assert made_by["taken"] == {"from": "first/arms/kd/seed0", "alone_seconds": pytest.approx(seconds)}
    origin = json.loads((source / "fingerprint.json").read_text())
    assert {key: value for key, value in made_by.items() if key != "taken"} == {
        key: value for key, value in origin.items() if key != "unit"
    }
    assert "started" not in run(folder)[1]


def test_a_failed_arm_is_named_and_run_again_when_asked(folder: Path) -> None:
    path = folder / PLACE / "kd" / "seed0" / "outcome.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "status": "failed", "reason": "out of memory"}))
    code, out, _ = run(folder)
    assert code == 1
    assert "started" not in out
    assert "first/arms/kd/seed0: out of memory" in out
    code, out, err = run(folder, "--anew")
    assert code == 0, out + err
    assert json.loads(path.read_text())["status"] == "finished"


def test_a_killed_study_goes_on_where_it_was(folder: Path) -> None:
    shutil.rmtree(folder / "results/tiny/first")
    for path in (folder / "runs/tiny").glob("first-*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    student = {"student": {"model": "deeplabv3plus-lcnet_050"}, "train": {"steps": 40}}
    write_study(folder, student=student)
    process = start(folder)
    began = time.monotonic()
    while not list((folder / "runs/tiny").glob("first-*/arms/kd/seed0/checkpoints/last.ckpt")):
        assert time.monotonic() - began < 120
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 130
    assert not (folder / PLACE / "kd").exists()
    code, out, err = run(folder)
    assert code == 0, out + err
    lines = (next((folder / "runs/tiny").glob("first-*/arms/kd/seed0")) / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if json.loads(line)["kind"] == "train"]
    assert steps == sorted(set(steps))
    assert len(list((folder / "runs/tiny").glob("first-seed0-????????"))) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGPIPE"), reason="only where there is SIGPIPE")
def test_a_list_whose_reader_has_enough_ends_quietly(folder: Path) -> None:
    process = start(folder, "--list")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    with process.stderr as errors:
        assert errors.read() == ""
    assert process.wait(60) == -signal.SIGPIPE


def test_mistakes_are_one_line(folder: Path) -> None:
    code, _, err = run(folder, "--only", "frist")
    assert code == 1
    assert err.strip() == "error: no comparison 'frist' in tiny.yaml; there are first"
    (folder / "studies" / "tiny.yaml").write_text("title: x\n")
    code, _, err = run(folder)
    assert code == 1
    assert err.strip() == "error: studies/tiny.yaml: about, common, teachers, comparisons missing"


def test_a_fingerprint_sees_code_and_not_its_dress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "equal")
    monkeypatch.syspath_prepend(tmp_path)
    fingerprint = importlib.import_module("fingerprint")
    module = tmp_path / "probed_by_the_study.py"

    def hashed(text: str) -> str:
        module.write_text(text)
        return str(fingerprint.code_hash(["probed_by_the_study"]))

    plain = hashed("def half(x):\n    return x / 2\n")
    dressed = '"""About."""\n\n\ndef half(x):\n    """Return half."""\n    # a comment\n    return (x / 2)\n'
    assert hashed(dressed) == plain
    assert hashed("def half(x):\n    return x / 3\n") != plain
    method = 'class M:\n    summary: str = "{}"\n    weight: float = Field({}, description="{}")\n'
    described = hashed(method.format("one", 1.0, "a weight"))
    assert hashed(method.format("another", 1.0, "the weight")) == described
    assert hashed(method.format("one", 2.0, "a weight")) != described
    kt = fingerprint.code_hash(["segtailor.methods.kt"])
    assert kt == fingerprint.code_hash(["segtailor.methods.kt"])
    assert kt != fingerprint.code_hash(["segtailor.methods.cwd"])


def test_a_fingerprint_sees_the_code_of_networks_that_few_rows_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "equal")
    fingerprint = importlib.import_module("fingerprint")
    recipe = {"data": {"name": "toy"}, "teacher": {"model": "deeplabv3-resnet18", "weights": "runs/teacher"},
              "student": {"model": "segformer-mit_b0"}, "arms": {"none": "none", "kd": "kd"}}  # fmt: skip

    def made_by(**changed: object) -> dict[str, str]:
        checked = validate(CompareRecipe, {**recipe, **changed}, "probe")
        return dict(fingerprint.fingerprint(checked, "kd", 0, "t"))

    before = made_by()
    assert "network" not in made_by(student={"model": "deeplabv3plus-lcnet_050"})
    assert made_by(student={"model": "segformer-lcnet_050"})["network"] != before["network"]
    taught = made_by(teacher={"model": "pspnet-resnet18", "weights": "x"}, student={"model": "deeplabv3plus-lcnet_050"})
    assert "network" in taught
    tree = fingerprint._tree

    def changed_tree(name: str) -> object:
        return ast.parse("changed = 1") if name == "segtailor.models.mit" else tree(name)

    monkeypatch.setattr(fingerprint, "_tree", changed_tree)
    after = made_by()
    assert [key for key in before if before[key] != after[key]] == ["network"]


def test_the_same_weights_are_the_same_teacher_whatever_their_card_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "equal")
    weights_hash = importlib.import_module("fingerprint").weights_hash

    def hashed(tensors: dict[str, torch.Tensor], card: str) -> str:
        save_file(tensors, tmp_path / "model.safetensors", metadata={"card": card})
        return str(weights_hash(tmp_path / "model.safetensors"))

    tensors = {"b": torch.ones(2, 3), "a": torch.zeros(2)}
    plain = hashed(tensors, "one")
    assert hashed(tensors, "another, longer card") == plain
    others = (
        {**tensors, "a": torch.tensor([0.0, 1e-30])},
        {"c": tensors["b"], "a": tensors["a"]},
        {**tensors, "b": torch.ones(3, 2)},
    )
    for other in others:
        assert hashed(other, "one") != plain
    (tmp_path / "model.safetensors").write_bytes(b"damaged, not a file of weights")
    with pytest.raises(SegtailorError, match=r"model\.safetensors is damaged; remove .* and run it again"):
        weights_hash(tmp_path / "model.safetensors")


def test_no_row_of_a_study_is_ignored_by_git() -> None:
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("no git checkout")
    for path in (ROOT / "benchmarks" / "studies").glob("*.yaml"):
        study = yaml.safe_load(path.read_text(encoding="utf-8"))
        for name, comparison in study.get("comparisons", {}).items():
            rows = [
                f"benchmarks/results/{path.stem}/{name}/arms/{arm}/seed0/outcome.json" for arm in comparison["arms"]
            ]
            ignored = subprocess.run(["git", "check-ignore", *rows], cwd=ROOT, capture_output=True, text=True)
            assert (ignored.returncode, ignored.stdout) == (1, "")
