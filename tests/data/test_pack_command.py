"""`segtailor data pack` as a user meets it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from data.trees import truncate, write_camvid
from segtailor.config import DataConfig
from segtailor.data import create_dataset


@pytest.fixture
def run(run_data):
    return partial(run_data, "pack")


def test_data_set_by_options(run, tmp_path):
    write_camvid(tmp_path / "camvid")
    code, out, _ = run("--data.name", "camvid", "--data.root=camvid", "--out", "packed", "--shards", "2")
    assert code == 0
    assert "train: 3 samples, 2 shards" in out
    assert "identical pixels" in out
    assert "data: {name: packed, root: packed}" in out
    assert len(create_dataset(DataConfig(name="packed", root=Path("packed")), "train", True)) == 3


def test_data_set_of_a_recipe_at_its_size(run, tmp_path):
    (tmp_path / "my.yaml").write_text(
        "data: {name: toy, size: [24, 32], length: 3}\narms: {a: kd}\ntrain: {steps: 3}\n"  # a comparison's will do
    )
    code, out, _ = run("my.yaml", "--out", "packed", "--splits", "train", "--format", "jpeg", "--quality", "90")
    assert code == 0
    assert "at 24 x 32" in out
    assert "JPEG quality 90, PSNR" in out
    assert "size: [24, 32]}" in out
    assert not list(tmp_path.glob("packed/val*"))
    # a setting beside the recipe changes it
    code, out, _ = run("my.yaml", "--data.length", "2", "--out", "less", "--splits", "train")
    assert "train: 2 samples" in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "say which data: give a recipe first, or --data.name NAME --data.root FOLDER"),
        (("--data.root", "here"), "say which data"),
        (("--data.nme", "toy"), "unknown key 'data.nme'; nearest: name"),
        (("--train.steps", "3"), "--train.steps is no setting of the data"),
        (("nothing.yaml",), "no such recipe file: nothing.yaml"),
        (("--data.name", "toy", "--splits", "train,,val"), "--splits 'train,,val' names a split of no name"),
        (("--data.name", "toy", "--splits", ","), "--splits ',' names a split of no name"),
        (("--data.name", "toy", "--quality", "95"), "--quality is for --format jpeg, not raw"),
        (("--data.name", "toy", "--format", "jpg"), "unknown --format 'jpg'; nearest: jpeg"),
        (("--data.name", "camvid", "--data.root", "none"), "no such folder: none"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(run, tmp_path, words, message):
    code, _, error = run(*words, "--out", "packed")
    assert code == 2
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "packed").exists()


def test_a_fixed_source_is_packed_to_the_end(run, tmp_path):
    root = write_camvid(tmp_path / "camvid")
    content = (root / "val/b.png").read_bytes()
    truncate(root / "val/b.png")
    words = ("--data.name", "camvid", "--data.root", "camvid", "--out", "packed")
    code, _, error = run(*words)
    assert code == 2
    assert error.splitlines()[-1].startswith("error: cannot read camvid/val/b.png: truncated")
    (root / "val/b.png").write_bytes(content)
    assert run(*words)[0] == 0
    code, _, error = run(*words)
    assert (code, len(error.splitlines())) == (2, 1)
    assert "is a complete pack already" in error
