"""Every shipped recipe runs: two steps with its own networks and methods, on data in the real layout, tiny."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import segtailor
from segtailor.engine.logging import read_metrics
from segtailor.models import create_model, save_model
from segtailor.models.layout import to_published
from segtailor.models.published import load_published_backbone
from segtailor.recipes import list_recipes, load_recipe, recipe_path

ROOT = Path(__file__).parent.parent
SIZE = (64, 128)
QUICK: dict[str, Any] = {
    "data.workers": 0, "data.scale": [1.0, 1.0], "train.steps": 2, "train.batch": 2, "train.log_every": 1,
    "train.precision": "fp32", "evaluate.every": 2, "evaluate.samples": 0, "train.threads": 1,
}  # fmt: skip


@pytest.fixture(scope="session")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree in Cityscapes' layout with raw label ids."""
    root = tmp_path_factory.mktemp("cityscapes")
    random = np.random.default_rng(0)
    for split, city in (("train", "aachen"), ("train", "ulm"), ("val", "munster")):
        for frame in range(2):
            stem = f"{city}_{frame:06d}_000019"
            images, masks = root / "leftImg8bit" / split / city, root / "gtFine" / split / city
            images.mkdir(parents=True, exist_ok=True)
            masks.mkdir(parents=True, exist_ok=True)
            picture = random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            Image.fromarray(picture).save(images / f"{stem}_leftImg8bit.png")
            raw = random.choice(np.array([0, 7, 8, 11, 21, 23, 26, 33], np.uint8), (SIZE[0] // 16, SIZE[1] // 16))
            Image.fromarray(raw.repeat(16, 0).repeat(16, 1)).save(masks / f"{stem}_gtFine_labelIds.png")
    return root


def published_file(name: str, folder: Path) -> Path:
    """Write random weights of the network ``name`` in the published layout."""
    path = folder / f"{name}.pth"
    torch.save(to_published(create_model(name, 19)), path)
    return path


def encoder_file(name: str, folder: Path) -> Path:
    """Write random weights of the encoder of ``name`` as the published ImageNet files hold them."""
    state = to_published(create_model(name, 19))
    prefixes = ("pretrained.net.", "pretrained.", "patch_embed", "block", "norm")
    kept: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        for prefix in prefixes:
            if key.startswith(prefix):
                kept[key.removeprefix(prefix) if prefix.startswith("pretrained") else key] = value
                break
    path = folder / f"{name}-imagenet.pth"
    torch.save(kept, path)
    return path


@pytest.mark.parametrize("name", [name for name in list_recipes() if "cityscapes" in name])
def test_cityscapes_recipes(name: str, cityscapes: Path, tmp_path: Path) -> None:
    recipe = load_recipe(name, segtailor_kind(name))
    overrides = {
        **QUICK, "data.root": str(cityscapes), "data.crop": list(SIZE), "teacher.check": False,
        "teacher.weights": f"published:{published_file(recipe.teacher.model, tmp_path)}",
        "student.pretrained": str(encoder_file(recipe.student.model, tmp_path)), "run.folder": str(tmp_path),
    }  # fmt: skip
    result = segtailor.distill(name, overrides)
    terms = read_metrics(result.folder / "metrics.jsonl")[0]["terms"]
    assert {"kt.kd", "kt.lt_all", "kt.lt_class", "kt.lt_nonclass", "kt.ft", "kt.contrastive"} <= terms.keys()
    assert ("kt.kd_aux" in terms) == ("task_aux" in terms)
    assert all(np.isfinite(value) for value in terms.values())


def segtailor_kind(name: str) -> Any:
    from segtailor.config import DistillRecipe, TrainRecipe

    return DistillRecipe if "student:" in recipe_path(name).read_text() else TrainRecipe


def test_published_settings() -> None:
    recipe = load_recipe("published-kt-cityscapes-deeplabv3-r101-r18", segtailor_kind("toy-kt"))
    train, optimizer = recipe.train, recipe.train.optimizer
    assert recipe.data.crop == (512, 1024)
    assert (train.batch, train.steps, train.schedule.power, train.schedule.floor) == (16, 40_000, 0.9, 0.0)
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.momentum) == ("sgd", 0.02, 5e-4, 0.9)
    assert recipe.method[0].options() == {"variant": "published"}


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.endswith("teacher")])
def test_teacher_recipes(name: str, tmp_path: Path, small_data: dict[str, Any]) -> None:
    overrides = {**QUICK, **small_data, "model.pretrained": False, "run.folder": str(tmp_path)}
    assert segtailor.train(name, overrides).report.exists()


@pytest.mark.parametrize("name", ["toy-kt", "camvid-kt", "camvid-cpu-kt"])
def test_distill_recipes(name: str, tmp_path: Path, small_data: dict[str, Any]) -> None:
    recipe = load_recipe(name, segtailor_kind(name))
    classes = 11 if small_data["data.name"] == "camvid" else 9
    save_model(create_model(recipe.teacher.model, classes), tmp_path / "teacher.safetensors")
    overrides = {
        **QUICK, **small_data, "teacher.weights": str(tmp_path / "teacher.safetensors"), "teacher.check": False,
        "run.folder": str(tmp_path), "baseline": "none",
    }  # fmt: skip
    assert segtailor.distill(name, overrides).report.exists()


@pytest.fixture
def small_data(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """The recipe's own data at a small size: real CamVid frames where there are some, else the toy scenes."""
    sizes = {"data.size": list(SIZE), "data.crop": list(SIZE)}
    name = request.node.callspec.params["name"]
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


def test_the_seeds_script(cityscapes: Path, tmp_path: Path) -> None:
    words = [str(ROOT / "train_KT.sh"), "--data.root", str(cityscapes), "--data.crop", "[64, 128]"]
    words += ["--teacher.weights", f"published:{published_file('deeplabv3-resnet101', tmp_path)}"]
    words += ["--student.pretrained", str(encoder_file("deeplabv3-resnet18", tmp_path))]
    words += ["--teacher.check", "false", "--run.folder", str(tmp_path / "runs")]
    for key, value in QUICK.items():
        words += [f"--{key}", str(value)]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "deeplabv3-resnet18" in done.stdout
    folder = tmp_path / "runs" / "published-kt-cityscapes-deeplabv3-r101-r18"
    assert (folder / "student.safetensors").exists()


def test_encoder_files_fit(tmp_path: Path) -> None:
    """The files that these tests make are what the reader of the published encoders accepts."""
    student = create_model("deeplabv3-resnet18", 19)
    load_published_backbone(student.backbone.net, "resnet18", encoder_file("deeplabv3-resnet18", tmp_path))
