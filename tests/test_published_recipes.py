"""Cityscapes recipes run: two steps, their own networks and methods, tiny images in the real layout.

One recipe of each kind: with a discriminator, pre-training, a label-assisted teacher, a memory; each student network.
`test_published_rows` checks the settings of all of them, `tests/methods` the terms of every method.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import segtailor
from quick import QUICK, SIZE
from segtailor.cli import main
from segtailor.config import DistillRecipe
from segtailor.engine.logging import read_metrics
from segtailor.models import create_model, save_model
from segtailor.models.checkpoint_keys import load_published_backbone, to_published
from segtailor.recipes import load_recipe

ROOT = Path(__file__).parent.parent
KT = {"kt.kd", "kt.kd_aux", "kt.lt_all", "kt.lt_class", "kt.lt_nonclass", "kt.ft", "kt.contrastive"}
KD, ADVERSARIAL = {"kd.kd"}, {"adversarial.adversarial", "adversarial.opponent"}
PAIR = "cityscapes-deeplabv3-r101-r18"
TERMS: dict[str, set[str]] = {
    f"published-none-{PAIR}": set(),
    f"published-cwd-{PAIR}": KD | ADVERSARIAL | {"cwd.cwd_logits", "cwd.cwd_feature"},
    f"published-cirkd-{PAIR}": KD | {"cirkd.minibatch", "cirkd.memory_pixel", "cirkd.memory_region"},
    f"published-maskd-{PAIR}": {"maskd.maskd", "maskd.maskd_aux"},
    f"published-lad-star-both-{PAIR}": {"lad.inter", "lad.intra", "lad.inter_aux", "lad.intra_aux"},
    "published-kt-cityscapes-deeplabv3-r101-mbv2": KT,
    "published-kt-cityscapes-deeplabv3-r101-psp-r18": KT,
    "kt-cityscapes-segformer-b2-b0": KT,
}
PAIRED = [name for name in TERMS if name.split("-")[1] in ("cwd", "cirkd", "maskd")]
SMALL: dict[str, dict[str, Any]] = {
    "maskd": {"token_steps": 1},
    "lad": {"teacher_steps": 1},
    "cirkd": {"pixel_queue": 40, "region_queue": 10},
}
"""Options that cut a method's stage and memory."""
LIGHT_TEACHER = "deeplabv3-resnet18"
"""Replaces ResNet101 in recipes that are run for their method; `test_the_seeds_script` runs ResNet101."""


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


class Weights:
    """Files of random weights, each written when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def published(self, name: str) -> Path:
        """Return the network ``name`` in the published layout."""
        path = self.folder / f"{name}.pth"
        if not path.exists():
            torch.save(to_published(create_model(name, 19)), path)
        return path

    def trained(self, name: str) -> Path:
        """Return the network ``name`` as a run writes it."""
        path = self.folder / f"{name}.safetensors"
        if not path.exists():
            save_model(create_model(name, 19), path)
        return path

    def encoder(self, name: str) -> Path:
        """Return the encoder of ``name`` as the published ImageNet files hold it."""
        path = self.folder / f"{name}-imagenet.pth"
        if not path.exists():
            state = torch.load(self.published(name), weights_only=True)
            prefixes = ("pretrained.net.", "pretrained.", "patch_embed", "block", "norm")
            kept: dict[str, torch.Tensor] = {}
            for key, value in state.items():
                for prefix in prefixes:
                    if key.startswith(prefix):
                        kept[key.removeprefix(prefix) if prefix.startswith("pretrained") else key] = value
                        break
            torch.save(kept, path)
        return path


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    return Weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all runs, so that recipes share what their stages learn; emptied, since it takes gigabytes."""
    folder = tmp_path_factory.mktemp("runs")
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("name", TERMS)
def test_cityscapes_recipes(name: str, cityscapes: Path, weights: Weights, runs: Path) -> None:
    light = {"teacher.model": LIGHT_TEACHER} if name in PAIRED else {}
    recipe = load_recipe(name, DistillRecipe, light)
    overrides = {
        **light,
        **QUICK, "data.root": str(cityscapes), "data.crop": list(SIZE), "run.folder": str(runs),
    }  # fmt: skip
    if recipe.student.weights is None:
        overrides["student.pretrained"] = str(weights.encoder(recipe.student.model))
    else:
        overrides["student.weights"] = str(weights.trained(recipe.student.model))
    if recipe.teacher is not None:
        overrides["teacher.weights"] = f"published:{weights.published(recipe.teacher.model)}"
        overrides["teacher.check"] = False
    for index, method in enumerate(recipe.method):
        changes = dict(SMALL.get(method.name, {}))
        if "pretrained" in method.options():
            changes |= {"teacher": LIGHT_TEACHER, "pretrained": str(weights.encoder(LIGHT_TEACHER))}
        overrides |= {f"method.{index}.{option}": value for option, value in changes.items()}
    result = segtailor.distill(name, overrides)
    assert result.report.exists()
    records = [record["terms"] for record in read_metrics(result.folder / "metrics.jsonl") if "terms" in record]
    assert len(records) == 2
    for terms in records:
        aux = "task_aux" in terms
        task = {"task", "task_aux"} if aux else {"task"}
        assert terms.keys() - task == {term for term in TERMS[name] if aux or not term.endswith("_aux")}
        assert all(np.isfinite(value) for value in terms.values())
    shutil.rmtree(result.folder)


def test_the_seeds_script(
    cityscapes: Path, weights: Weights, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["--data.root", str(cityscapes), "--data.crop", "[64, 128]"]
    words += ["--teacher.weights", f"published:{weights.published('deeplabv3-resnet101')}"]
    words += ["--student.pretrained", str(weights.encoder("deeplabv3-resnet18"))]
    words += ["--teacher.check", "false", "--run.folder", str(runs / "script")]
    for key, value in QUICK.items():
        words += [f"--{key}", str(value)]
    # A command that prints its words shows what the script calls; this process then runs that.
    script = shutil.copy(ROOT / "train_KT.sh", tmp_path)
    (tmp_path / "segtailor").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (tmp_path / "segtailor").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    called = subprocess.run([script, *words], capture_output=True, text=True, env=environment, check=True)
    monkeypatch.setattr(sys, "argv", ["segtailor", *called.stdout.splitlines()])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    assert "deeplabv3-resnet18" in capsys.readouterr().out
    folder = runs / "script" / "published-kt-cityscapes-deeplabv3-r101-r18"
    assert (folder / "student.safetensors").exists()


def test_encoder_files_fit(weights: Weights) -> None:
    """The files that these tests make are what the reader of the published encoders accepts."""
    student = create_model("deeplabv3-resnet18", 19)
    load_published_backbone(student.backbone.net, "resnet18", weights.encoder("deeplabv3-resnet18"))
