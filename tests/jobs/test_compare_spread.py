"""A comparison over several processes: the same result as in one process."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import segtailor
from processes import command_under_torchrun
from segtailor.config import CompareRecipe
from segtailor.engine.launch import prints
from segtailor.errors import SegtailorError
from segtailor.jobs.compare import _this_process
from segtailor.models import load_model
from segtailor.results.model import read_comparison
from tiny import tiny_distill


def written(folder: Path, teacher: Path, **settings: Any) -> Path:
    made = tiny_distill(folder, teacher, "comparison")
    del made["method"]
    recipe = {**made, "arms": {"kd": "kd"}, "seeds": [0, 1], **settings}
    path = folder / "recipe.yaml"
    folder.mkdir(parents=True)
    path.write_text(yaml.safe_dump(recipe))
    return path


def students(folder: Path) -> dict[tuple[str, int], dict[str, torch.Tensor]]:
    return {
        (arm, seed): dict(
            load_model(folder / "comparison" / "arms" / arm / f"seed{seed}" / "student.safetensors").state_dict()
        )
        for arm in ("none", "kd")
        for seed in (0, 1)
    }


@pytest.fixture(scope="module")
def expected(
    tmp_path_factory: pytest.TempPathFactory, teacher_run: Path
) -> dict[tuple[str, int], dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("compare") / "one"
    segtailor.compare(written(folder, teacher_run))
    return students(folder)


def test_seeds_dealt_out_give_the_same(
    tmp_path: Path, teacher_run: Path, expected: dict[tuple[str, int], dict[str, torch.Tensor]]
) -> None:
    folder = tmp_path / "spread"
    path = written(folder, teacher_run)
    output = command_under_torchrun(["compare", str(path)], tmp_path / "output.txt")
    assert "difference to none" in output
    assert re.search(r"^kd +2 ", output, re.MULTILINE)  # the first process waits for the others' seeds
    assert (tmp_path / "output.txt1").read_text() == ""
    torch.testing.assert_close(students(folder), expected, rtol=0, atol=0)
    assert read_comparison(folder / "comparison").problems == []


SLOW = """
import os
import time

from segtailor.methods.kd import PixelKD

time.sleep(2 if os.environ["RANK"] == "0" else 0)  # imported before the folder is opened


class Slow(PixelKD):
    name = "slow"
"""


def test_other_processes_wait_until_the_first_has_replaced_the_folder(
    tmp_path: Path, teacher_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    old = written(tmp_path / "runs", teacher_run, arms={"kd": "kd"}, seeds=[0])
    segtailor.compare(old)
    recipe = yaml.safe_load(old.read_text()) | {"arms": {"slow": "module:slow:Slow"}, "seeds": [0, 1]}
    old.write_text(yaml.safe_dump(recipe))
    monkeypatch.syspath_prepend(tmp_path)
    command_under_torchrun(["compare", str(old), "--run.exists", "replace"], tmp_path / "output.txt")
    comparison = read_comparison(tmp_path / "runs" / "comparison")
    assert comparison.problems == []
    assert (comparison.arms, list(comparison.finished("slow"))) == (("none", "slow"), [0, 1])


def test_each_arm_can_be_data_parallel(tmp_path: Path, teacher_run: Path) -> None:
    folder = tmp_path / "parallel"
    path = written(folder, teacher_run, spread="data", seeds=[0])
    command_under_torchrun(["compare", str(path)], tmp_path / "output.txt")
    comparison = read_comparison(folder / "comparison")
    assert comparison.problems == []
    assert comparison.environment["processes"] == "2"
    assert comparison.finished("kd")[0].images is not None


def test_more_processes_than_seeds_are_refused(
    tmp_path: Path, teacher_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "few", teacher_run, seeds=[0])
    for name, value in (("TORCHELASTIC_RUN_ID", "none"), ("RANK", "0"), ("WORLD_SIZE", "2")):  # as torchrun does
        monkeypatch.setenv(name, value)
    with pytest.raises(SegtailorError, match="2 processes for 1 seeds: start at most as many, or set spread to data"):
        segtailor.compare(path)


def test_the_variables_of_a_cluster_are_no_torchrun(teacher_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some set RANK and WORLD_SIZE for the job's machines, of which one runs the command."""
    made = tiny_distill(Path("runs"), teacher_run)
    del made["method"]
    recipe = CompareRecipe.model_validate({**made, "arms": {"kd": "kd"}})
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert _this_process(recipe) == (recipe.train, 0, 1, None)
    assert prints()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not prints()
