"""A run folder is new, resumed or replaced and never touched by surprise; a checkpoint is whole or not there."""

import copy
import errno
from pathlib import Path

import pytest
import torch

from segtailor.config import CompareRecipe, RunConfig, TrainRecipe
from segtailor.engine.runs import load_checkpoint, open_run, save_checkpoint
from segtailor.errors import SegtailorError
from segtailor.files import write_atomically

RECIPE = {"train": {"steps": 10, "threads": 1}, "method": [{"name": "kt"}], "run": {"exists": "error"}}


def config(folder: Path, exists: str = "error") -> RunConfig:
    return RunConfig.model_validate({"folder": folder, "exists": exists})


def test_a_new_run_writes_its_recipe(tmp_path: Path) -> None:
    run = open_run(config(tmp_path), "a", RECIPE)
    assert (run.path / "recipe.yaml").exists()
    assert not run.finished


def test_an_existing_run_is_left_alone(tmp_path: Path) -> None:
    run = open_run(config(tmp_path), "a", RECIPE)
    kept = run.path / "student.safetensors"
    kept.write_bytes(b"precious")
    with pytest.raises(SegtailorError, match=r"exists already.*resume or replace"):
        open_run(config(tmp_path), "a", RECIPE)
    assert kept.read_bytes() == b"precious"


def test_replacing_empties_a_run_but_nothing_else(tmp_path: Path) -> None:
    run = open_run(config(tmp_path), "a", RECIPE)
    (run.path / "old").write_text("x")
    assert not (open_run(config(tmp_path, "replace"), "a", RECIPE).path / "old").exists()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "me.jpg").write_text("x")
    with pytest.raises(SegtailorError, match="not a run folder"):
        open_run(config(tmp_path, "replace"), "photos", RECIPE)
    assert (tmp_path / "photos" / "me.jpg").exists()


def test_resuming_a_changed_recipe_names_the_keys(tmp_path: Path) -> None:
    open_run(config(tmp_path), "a", RECIPE)
    changed = {**RECIPE, "train": {"steps": 20, "threads": 2}, "method": [{"name": "kd"}]}
    with pytest.raises(SegtailorError) as caught:
        open_run(config(tmp_path, "resume"), "a", changed)
    assert "train.steps 10 -> 20" in str(caught.value)
    assert "method.0.name kt -> kd" in str(caught.value)
    assert "threads" not in str(caught.value)


def test_a_run_of_a_version_that_knew_fewer_settings_can_be_resumed(tmp_path: Path) -> None:
    now = TrainRecipe.model_validate({"model": {"model": "x"}}).model_dump(mode="json")
    before = copy.deepcopy(now)
    del before["data"]["reduce_zero_label"], before["evaluate"], before["train"]["precision"]
    before["data"]["streaming"] = False  # a setting that is gone
    open_run(config(tmp_path), "a", before)
    open_run(config(tmp_path, "resume"), "a", now)
    now["data"]["reduce_zero_label"] = True
    with pytest.raises(SegtailorError, match=r"changed .data.reduce_zero_label False -> True.; undo"):
        open_run(config(tmp_path, "resume"), "a", now)


def test_a_run_of_a_version_with_settings_that_were_removed_can_be_resumed(tmp_path: Path) -> None:
    recipe = {"student": {"model": "x"}, "arms": {"kd": "kd"}}
    now = CompareRecipe.model_validate(recipe).model_dump(mode="json")
    open_run(config(tmp_path), "a", {**now, "memory": 8.0, "data": {**now["data"], "streaming": False}})
    open_run(config(tmp_path, "resume"), "a", now)


def test_how_many_arms_are_trained_at_once_may_change(tmp_path: Path) -> None:
    open_run(config(tmp_path), "a", {**RECIPE, "arms_at_once": None})
    open_run(config(tmp_path, "resume"), "a", {**RECIPE, "arms_at_once": 1})


def test_resuming_knows_a_finished_run(tmp_path: Path) -> None:
    run = open_run(config(tmp_path, "resume"), "a", RECIPE)
    assert not open_run(config(tmp_path, "resume"), "a", RECIPE).finished
    (run.path / "results.json").write_text("{}")
    assert open_run(config(tmp_path, "resume"), "a", RECIPE).finished


def test_a_first_write_that_was_cut_off_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".recipe.yaml.x.partial").write_text("train:")
    assert not open_run(config(tmp_path, "resume"), "a", RECIPE).finished
    assert (tmp_path / "a" / "recipe.yaml").exists()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(SegtailorError, match="is a file"):
        open_run(config(tmp_path), "a", RECIPE)


def test_a_failed_write_keeps_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, lambda file: file.write(b"old"))

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("segtailor.files.os.fsync", full)
    with pytest.raises(SegtailorError, match="No space"):
        write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    state = {"progress": {"step": 3}, "distiller": {"w": torch.arange(3.0)}}
    save_checkpoint(tmp_path / "last.ckpt", state)
    read = load_checkpoint(tmp_path / "last.ckpt")
    assert read["progress"] == {"step": 3}
    assert torch.equal(read["distiller"]["w"], torch.arange(3.0))


def test_a_full_disk_leaves_the_previous_checkpoint_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    save_checkpoint(path, {"progress": {"step": 1}})

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("segtailor.files.os.fsync", full)
        with pytest.raises(SegtailorError, match=r"No space left.*previous file is whole") as caught:
            save_checkpoint(path, {"progress": {"step": 2}})
    assert "\n" not in str(caught.value)
    assert load_checkpoint(path)["progress"] == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x04\x95"])
def test_a_damaged_checkpoint_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "last.ckpt"
    path.write_bytes(content)
    with pytest.raises(SegtailorError, match=r"cannot read the checkpoint.*replace") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_a_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save({"w": torch.zeros(1)}, path)
    with pytest.raises(SegtailorError, match="not a checkpoint of this version"):
        load_checkpoint(path)
