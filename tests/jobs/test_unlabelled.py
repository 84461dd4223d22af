"""Runs with unlabelled images: alone, in comparisons, interrupted, and wrongly set up."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load

import segtailor
from segtailor.config import CompareRecipe
from segtailor.data.toy import Toy, draw_scene
from segtailor.engine.logging import read_metrics
from segtailor.engine.runs import RunStopped, StopRequest
from segtailor.errors import SegtailorError
from segtailor.jobs.compare import arm_recipe
from segtailor.models import load_model
from segtailor.recipes import load_recipe
from tiny import tiny_distill, tiny_train

ARMS: dict[str, Any] = {
    "kd": "kd",
    "kt": "kt",
    "adversarial": {"name": "adversarial", "width": 8},
    "lad": "lad",
    "both": ["kd", {"name": "lad", "base": "kd"}],
}


@pytest.fixture(scope="module")
def more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of toy scenes without masks; ``labelled`` beside it holds scenes with masks."""
    folder = tmp_path_factory.mktemp("scenes") / "more"
    write_scenes(folder, 7, (40, 56))
    for split, count in (("train", 12), ("val", 4)):
        write_scenes(folder.parent / "labelled" / "images" / split, count, (32, 48), masks=True)
    names = "".join(f"  - {name}\n" for name in Toy.classes)
    (folder.parent / "labelled" / "classes.yaml").write_text(f"classes:\n{names}")
    return folder


def write_scenes(folder: Path, count: int, size: tuple[int, int], masks: bool = False) -> None:
    for index in range(count):
        for kind, array in zip(("images", "masks"), draw_scene((9 + count, index), size), strict=True):
            path = Path(str(folder).replace("images", kind)) / f"u{index}.png"
            if kind == "images" or masks:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(array.transpose(1, 2, 0) if kind == "images" else array).save(path)


def plain(folder: Path, teacher: Path, more: Path, name: str, method: Any = "kd", **train: Any) -> dict[str, Any]:
    """Return a recipe without unlabelled images."""
    made = {**tiny_distill(folder, teacher, name, **{"steps": 2, **train}), "method": method}
    made["evaluate"] = {"every": made["train"]["steps"], "samples": 0}
    labelled = more.parent / "labelled"
    del made["data"]["length"]
    made["data"] |= {"name": "folder", "root": str(labelled), "classes": str(labelled / "classes.yaml")}
    return made


def recipe(folder: Path, teacher: Path, more: Path, name: str, method: Any = "kd", **train: Any) -> dict[str, Any]:
    made = plain(folder, teacher, more, name, method, **train)
    # a teacher of four steps is sure of nothing
    made["data"] |= {"unlabelled": {"images": str(more), "threshold": 0.2}}
    return made


def weights(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_model(path).state_dict())


def equal(first: Path, other: Path) -> bool:
    pairs = zip(weights(first).values(), weights(other).values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def losses(folder: Path) -> list[tuple[int, float, float | None]]:
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "train"]
    return [(line["step"], line["loss"], line.get("confident")) for line in lines]


def test_what_a_run_says_of_them(tmp_path: Path, teacher_run: Path, more: Path) -> None:
    result = segtailor.distill(recipe(tmp_path, teacher_run, more, "kt", {"name": "kt", "lt_all": 1}))
    facts = result.results.unlabelled
    assert facts is not None
    assert facts | {"confident": None} == {
        "images": 7, "labelled_images": 12, "rows": 2, "labelled_rows": 2, "threshold": 0.2, "confident": None,
        "methods": {"kt": "confident pixels"},
    }  # fmt: skip
    shares = [share for _, _, share in losses(result.folder)]
    assert len(shares) == 2
    assert all(share is not None and 0 <= share <= 1 for share in shares)
    assert facts["confident"] == pytest.approx(sum(share or 0.0 for share in shares) / 2)
    assert (
        "kt, unlabelled images: takes the teacher's class where it is at least 0.2 sure"
        in (result.results["alignment"])
    )


def test_without_them_results_and_records_say_nothing(tmp_path: Path, teacher_run: Path, more: Path) -> None:
    result = segtailor.distill(plain(tmp_path, teacher_run, more, "run"))
    assert result.results.unlabelled is None
    assert not any("confident" in line for line in read_metrics(result.folder / "metrics.jsonl"))


def test_they_change_what_the_student_learns_and_the_threshold_does_for_classes_alone(
    tmp_path: Path, teacher_run: Path, more: Path
) -> None:
    folders = {}
    for method in ("kd", "ifvd"):
        for threshold in (0.0, 0.99):
            made = recipe(tmp_path, teacher_run, more, f"{method}-{threshold}", method)
            made["data"]["unlabelled"]["threshold"] = threshold
            folders[method, threshold] = segtailor.distill(made).folder
    assert equal(folders["kd", 0.0], folders["kd", 0.99])
    assert not equal(folders["ifvd", 0.0], folders["ifvd", 0.99])
    assert losses(folders["ifvd", 0.0])[0][2] == 1.0
    alone = plain(tmp_path, teacher_run, more, "plain", batch=2)
    assert not equal(segtailor.distill(alone).folder, folders["kd", 0.0])


def test_the_student_alone_passes_them_over(tmp_path: Path, teacher_run: Path, more: Path) -> None:
    """Methods none and lad, and the baseline, are those of a smaller batch of labelled images."""
    for method in ("none", "lad"):
        mixed = segtailor.distill({**recipe(tmp_path, teacher_run, more, f"{method}-mixed", method)}).folder
        small = plain(tmp_path, teacher_run, more, f"{method}-small", method, batch=2)
        if method == "lad":  # the same teacher: its stage learns in batches of the run's size
            (stage,) = (tmp_path / "stages").glob("lad-*.safetensors")
            small["method"] = {"name": "lad", "teacher_file": str(stage)}
        alone = segtailor.distill(small).folder
        assert equal(mixed, alone), method
        assert [line[:2] for line in losses(mixed)] == [line[:2] for line in losses(alone)]
    with_baseline = {**recipe(tmp_path, teacher_run, more, "kd"), "baseline": "train"}
    assert equal(segtailor.distill(with_baseline).folder / "baseline", tmp_path / "none-small")


def test_stages_learn_from_labelled_images_alone(tmp_path: Path, teacher_run: Path, more: Path) -> None:
    method = {"name": "maskd", "token_steps": 2}
    segtailor.distill(recipe(tmp_path, teacher_run, more, "mixed", method))
    (tokens,) = (tmp_path / "stages").glob("tokens-*.safetensors")
    before = tokens.read_bytes()
    shutil.rmtree(tmp_path / "stages")
    segtailor.distill(plain(tmp_path, teacher_run, more, "plain", method))
    assert tokens.exists()  # the same name: they are the same stage
    assert torch.equal(load(before)["tokens"], load(tokens.read_bytes())["tokens"])


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_an_arm_among_others_equals_the_arm_alone_bit_for_bit(
    tmp_path: Path, teacher_run: Path, more: Path, micro_batch: int | None
) -> None:
    made = recipe(tmp_path, teacher_run, more, "comparison", micro_batch=micro_batch)
    del made["method"]
    made |= {"arms": ARMS, "seeds": [0]}
    result = segtailor.compare(made)
    checked = load_recipe(made, CompareRecipe)
    for arm in ("none", *ARMS):
        single = arm_recipe(checked, arm, 0).model_dump(mode="json")
        single["run"] = {"name": f"alone-{arm}", "folder": str(tmp_path)}
        alone = segtailor.distill(single)
        place = result.folder / "arms" / arm / "seed0"
        assert equal(place / "student.safetensors", alone.folder), arm
        assert losses(place) == losses(alone.folder), arm
        facts = json.loads((place / "outcome.json").read_text())["unlabelled"]
        assert facts == alone.results["unlabelled"]
        assert (facts["confident"] is None) == (arm in ("none", "lad"))


def test_a_resumed_run_is_the_uninterrupted_run(
    tmp_path: Path, teacher_run: Path, more: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = segtailor.distill(recipe(tmp_path, teacher_run, more, "whole", ["kd", "kt"], steps=6)).folder
    asked = iter([False, False, True])
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "requested", property(lambda self: next(asked)))
        patch.setattr(StopRequest, "code", property(lambda self: 130))
        with pytest.raises(RunStopped, match="after step 3 of 6"):
            segtailor.distill(recipe(tmp_path, teacher_run, more, "cut", ["kd", "kt"], steps=6))
    # the folder may have moved
    moved = shutil.copytree(more, tmp_path / "moved")
    overrides = {"run.exists": "resume", "data.unlabelled.images": str(moved), "data.workers": 1}
    resumed = segtailor.distill(tmp_path / "cut" / "recipe.yaml", overrides)
    assert equal(whole, tmp_path / "cut")
    assert losses(whole) == losses(tmp_path / "cut")
    assert resumed.results["unlabelled"]["confident"] == pytest.approx(sum(line[2] or 0 for line in losses(whole)) / 6)


def test_an_arm_that_needs_labels_in_each_micro_batch_fails_alone(
    tmp_path: Path, teacher_run: Path, more: Path
) -> None:
    made = recipe(tmp_path, teacher_run, more, "comparison", micro_batch=1, steps=1)
    del made["method"]
    made |= {"arms": {"kd": "kd"}, "seeds": [0]}
    folder = segtailor.compare(made).folder
    none, kd = (json.loads((folder / "arms" / arm / "seed0" / "outcome.json").read_text()) for arm in ("none", "kd"))
    assert none["status"] == "failed"
    assert "some micro-batches of 1 hold no labelled one" in none["reason"]
    assert kd["status"] == "finished"


def test_training_without_a_teacher_refuses_them(tmp_path: Path, more: Path) -> None:
    made = tiny_train(tmp_path)
    made["data"]["unlabelled"] = {"images": str(more)}
    with pytest.raises(SegtailorError, match=r"data.unlabelled needs a teacher, .*segtailor distill") as caught:
        segtailor.train(made)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "teacher").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.unlabelled.images": "no/such"}, "no such folder: no/such"),
        ({"data.unlabelled.limit": 8}, "asks for 8 images, but .* holds 7"),
        ({"data.unlabelled.share": 1.0}, r"'data.unlabelled.share': input should be less than 1"),
        ({"data.unlabelled.threshold": 1.0}, r"'data.unlabelled.threshold': input should be less than 1"),
        ({"data.unlabelled.thresholds": 0.5}, "unknown key 'data.unlabelled.thresholds'; nearest: threshold"),
        ({"train.batch": 1}, "train.batch 1 has no room"),
    ],
)
def test_a_mistake_is_one_line_before_anything_is_written(
    tmp_path: Path, teacher_run: Path, more: Path, changes: dict[str, Any], message: str
) -> None:
    made = recipe(tmp_path, teacher_run, more, "x")
    with pytest.raises(SegtailorError, match=message) as caught:
        segtailor.distill(made, changes)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_an_unreadable_image_is_named_before_the_first_step(tmp_path: Path, teacher_run: Path, more: Path) -> None:
    folder = shutil.copytree(more, tmp_path / "more")
    (folder / "u3.png").write_bytes(b"x")
    with pytest.raises(SegtailorError, match=r"1 file cannot be read: .*u3.png"):
        segtailor.distill(recipe(tmp_path, teacher_run, more, "x"), {"data.unlabelled.images": str(folder)})
    assert not (tmp_path / "x").exists()
