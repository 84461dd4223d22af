"""What the recipes of published rows say, and that the arms of the equal one differ in their method alone."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from segtailor.config import CompareRecipe, DistillRecipe
from segtailor.errors import SegtailorError
from segtailor.methods import check_options
from segtailor.recipes import list_recipes, load_recipe

PAIR = "cityscapes-deeplabv3-r101-r18"
KD = {"kd": {"kd": 1.0, "temperature": 1.0, "standardise": False}}
DISCRIMINATOR = {"adversarial": 0.001, "opponent": 0.1, "loss": "hinge", "lr": 4e-4, "betas": (0.9, 0.99)}
ADVERSARIAL = {"adversarial": DISCRIMINATOR}
CWD_BASE = {"name": "cwd", "logits": 3.0, "feature": 0.0, "temperature": 4.0}
DIST_BASE = {"name": "dist", "inter": 1.0, "intra": 1.0, "aux": 0.4}


def lad(base: dict[str, Any], teacher: str | None) -> dict[str, dict[str, Any]]:
    """Return the options that LAD's code and log give, with this base and teacher."""
    optimizer = {"name": "sgd", "lr": 0.001, "momentum": 0.9, "weight_decay": 1e-4}
    fixed = {"codes": "fixed", "noise": 0.02, "teacher_noise": 0.03, "consistency": 5.0, "dropout": 0.01}
    found = {"lad": 1.0, "base": base, "teacher": teacher, "teacher_steps": 40_000, "teacher_optimizer": optimizer}
    return {"lad": {**found, **fixed, "pretrained": teacher and "weights/resnet101-imagenet.pth"}}


class Row(NamedTuple):
    """What a published row was run with; every one by SGD with momentum 0.9, 40000 steps of 16 crops of 512 x 1024."""

    methods: dict[str, dict[str, Any]]
    lr: float = 0.02
    weight_decay: float = 1e-4
    floor: float = 0.0
    every: int = 800
    aux_weight: float = 0.4


def lad_row(base: dict[str, Any], teacher: str | None = None) -> Row:
    return Row(lad(base, teacher), lr=0.001, aux_weight=0.02)


CIRKD = {
    "minibatch": 1.0, "memory_pixel": 0.1, "memory_region": 0.1, "temperature": 0.1, "pixel_queue": 20_000,
    "region_queue": 2000, "pixel_samples": 4096, "region_samples": 1024, "pixels_per_image": 16, "legacy_enqueue": True,
}  # fmt: skip
MASKD = {
    "maskd": 1.0, "maskd_aux": 0.4, "tokens": 8, "tap": "logits", "weighting": False, "customised": False,
    "token_steps": 10_000, "token_lr": 0.1, "token_weight_decay": 1e-3, "dice": 1.0,
}  # fmt: skip
DIFFKD = {
    "logits": 1.0, "aux": 0.4, "feature": 0.0, "distance": "dist", "ddim": 1.0, "steps": 5, "kernel": 3,
    "mixing": "linear", "start": "fixed", "denoiser_gradient": "shared",
}  # fmt: skip
KT = {
    "kd": 1.0, "kd_aux": 0.4, "lt_all": 1.0, "lt_class": 1.0, "lt_nonclass": 1.0, "ft": 1.0, "contrastive": 1.0,
    "temperature": 4.0, "tuning_point": 0.25, "tailors": "frozen",
}  # fmt: skip
ROWS = {
    "skd": Row(KD | ADVERSARIAL | {"skd": {"pairwise": 10.0, "pool": 2, "nodes": None}}),
    "ifvd": Row(KD | ADVERSARIAL | {"ifvd": {"ifvd": 20.0}}),
    "cwd": Row(KD | ADVERSARIAL | {"cwd": {"logits": 3.0, "feature": 50.0, "temperature": 4.0}}),
    "cirkd": Row(KD | {"cirkd": CIRKD}),
    "dist": Row({"dist": {"inter": 1.0, "intra": 1.0, "aux": 0.4, "temperature": 1.0}}, 0.02, 5e-4, 1e-4, 400),
    "maskd": Row({"maskd": MASKD}, weight_decay=5e-4, floor=1e-4),
    "diffkd": Row({"diffkd": DIFFKD}, weight_decay=5e-4, floor=1e-4),
    "lad": lad_row(CWD_BASE),
    "lad-star-bigger-teacher": lad_row(CWD_BASE, "deeplabv3-resnet101"),
    "lad-star-stronger-base": lad_row(DIST_BASE),
    "lad-star-both": lad_row(DIST_BASE, "deeplabv3-resnet101"),
    "kt": Row({"kt": KT}, weight_decay=5e-4),
}


def read(name: str) -> DistillRecipe:
    return load_recipe(f"{name}-{PAIR}", DistillRecipe)


@pytest.mark.parametrize("name", ROWS)
def test_published_settings(name: str) -> None:
    row, recipe = ROWS[name], read(f"published-{name}")
    train, optimizer, schedule = recipe.train, recipe.train.optimizer, recipe.train.schedule
    assert recipe.data.crop == (512, 1024)
    assert recipe.data.scale == (0.5, 2.0)
    assert (train.steps, train.batch, train.aux_weight, train.clip, train.ema) == (
        40_000,
        16,
        row.aux_weight,
        None,
        None,
    )
    assert (optimizer.name, optimizer.lr, optimizer.momentum) == ("sgd", row.lr, 0.9)
    assert (optimizer.weight_decay, optimizer.head_lr_factor) == (row.weight_decay, 1.0)
    assert optimizer.decay_norm_and_bias
    assert (schedule.power, schedule.warmup, schedule.floor) == (0.9, 0, row.floor)
    assert recipe.evaluate.every == row.every
    assert (recipe.teacher is None) == name.startswith("lad")
    assert {method.name for method in recipe.method} == row.methods.keys()
    for method in recipe.method:
        options = check_options(method.name, method.options()).model_dump()
        wanted = row.methods[method.name]
        assert method.weight == 1.0
        assert options["variant"] == "published"
        assert {key: pruned(options[key], wanted[key]) for key in wanted} == wanted


def pruned(value: Any, wanted: Any) -> Any:
    """Return ``value`` without the settings that ``wanted`` does not name."""
    return {key: value.get(key) for key in wanted} if isinstance(wanted, dict) else value


def test_nothing_is_called_a_reproduction_of_lad_star() -> None:
    found = {name: text for name, text in list_recipes().items() if "lad-star" in name}
    assert len(found) == 3
    assert all("is not known" in text and "nothing here is a reproduction" in text for text in found.values())


COMBINATIONS = {
    "none": ["none"],
    "kd": ["kd"],
    "skd": ["kd", "adversarial", "skd"],
    "ifvd": ["kd", "adversarial", "ifvd"],
    "cwd": ["kd", "adversarial", "cwd"],
    "cirkd": ["kd", "cirkd"],
    "dist": ["dist"],
    "maskd": ["maskd"],
    "diffkd": ["diffkd"],
    "lad": ["lad"],
    "kt": ["kt"],
}


def test_the_equal_recipe_has_the_rows_as_arms_that_differ_in_their_method_alone() -> None:
    recipe = load_recipe(f"equal-{PAIR}", CompareRecipe)
    assert {name: [method.name for method in arm.method] for name, arm in recipe.arms.items()} == COMBINATIONS
    for arm in recipe.arms.values():
        assert arm.model_dump(exclude={"method"}, exclude_none=True) == {}
        assert all(not method.options() and method.weight == 1.0 for method in arm.method)  # clean, its defaults
    optimizer = recipe.train.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay) == ("sgd", 0.02, 5e-4)
    assert recipe.train.schedule.floor == 0.0


@pytest.mark.parametrize("name", COMBINATIONS)
def test_the_former_equal_recipes_name_their_arm(name: str) -> None:
    with pytest.raises(SegtailorError, match=f"segtailor distill equal-{PAIR} --arm {name}") as caught:
        read(f"equal-{name}")
    assert "\n" not in str(caught.value)


def test_every_recipe_runs_under_its_own_name() -> None:
    for name in list_recipes():
        if "cityscapes" in name:
            kind = CompareRecipe if name.startswith("equal-") else DistillRecipe
            assert load_recipe(name, kind).run.name == name
