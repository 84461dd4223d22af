"""Shipped recipes on small data sets run: two steps with their own networks and methods, tiny."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import segtailor
from quick import QUICK, SIZE
from segtailor.config import CompareRecipe, DistillRecipe
from segtailor.data.toy import draw_scene
from segtailor.models import create_model, save_model
from segtailor.recipes import list_recipes, load_recipe


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.endswith("teacher")])
def test_teacher_recipes(name: str, tmp_path: Path, small_data: dict[str, Any]) -> None:
    overrides = {**QUICK, **small_data, "model.pretrained": False, "run.folder": str(tmp_path)}
    assert segtailor.train(name, overrides).report.exists()


@pytest.mark.parametrize("name", ["toy-kt", "camvid-kt", "camvid-cpu-kt", "camvid-cpu-unlabelled"])
def test_distill_recipes(name: str, tmp_path: Path, small_data: dict[str, Any]) -> None:
    recipe = load_recipe(name, DistillRecipe)
    assert recipe.teacher is not None
    classes = 11 if small_data["data.name"] == "camvid" else 9
    save_model(create_model(recipe.teacher.model, classes), tmp_path / "teacher.safetensors")
    overrides = {
        **QUICK, **small_data, "teacher.weights": str(tmp_path / "teacher.safetensors"), "teacher.check": False,
        "run.folder": str(tmp_path), "baseline": "none",
    }  # fmt: skip
    assert segtailor.distill(name, overrides).report.exists()


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.endswith(("compare", "demo"))])
def test_compare_recipes(name: str, tmp_path: Path, small_data: dict[str, Any]) -> None:
    recipe = load_recipe(name, CompareRecipe)
    assert recipe.teacher is not None
    classes = 11 if small_data["data.name"] == "camvid" else 9
    save_model(create_model(recipe.teacher.model, classes), tmp_path / "teacher.safetensors")
    overrides = {
        **QUICK, **small_data, "teacher.weights": str(tmp_path / "teacher.safetensors"), "teacher.check": False,
        "run.folder": str(tmp_path), "seeds": [0],
    }  # fmt: skip
    if "maskd" in recipe.arms:
        overrides["arms.maskd"] = {"name": "maskd", "token_steps": 2}
    result = segtailor.compare(name, overrides)
    assert result.report.exists()
    assert all(len(arm.scores) == 1 for arm in result.board.arms)


@pytest.fixture
def small_data(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The recipe's own data at a small size: real CamVid frames where there are some, else the toy scenes."""
    sizes: dict[str, Any] = {"data.size": list(SIZE), "data.crop": list(SIZE)}
    name = request.node.callspec.params["name"]
    if name.endswith("unlabelled"):
        sizes["data.unlabelled.images"] = str(tmp_path / "unlabelled")
        (tmp_path / "unlabelled").mkdir()
        for index in range(3):
            image, _ = draw_scene((7, index), SIZE)
            Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / "unlabelled" / f"{index}.png")
    root = Path(os.environ.get("SEGTAILOR_CAMVID", "data/camvid"))
    if name.startswith("toy") or not root.is_dir():
        print(f"{name}: on the toy data set")
        return {**sizes, "data.name": "toy", "data.root": None, "data.length": 8}
    print(f"{name}: on CamVid's frames")
    few = tmp_path / "camvid"
    for split, count in (("train", 6), ("val", 4)):
        for folder in (split, f"{split}annot"):
            (few / folder).mkdir(parents=True)
            for file in sorted((root / folder).iterdir())[:count]:
                shutil.copy(file, few / folder)
    return {**sizes, "data.name": "camvid", "data.root": str(few)}
