"""What the recipes of published rows say, and that the arms of the equal one differ in their method alone."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import pytest

from segtailor.config import CompareRecipe, DistillRecipe, TrainConfig, TrainRecipe
from segtailor.errors import SegtailorError
from segtailor.methods import check_options, find_method
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
    encoder = "weights/resnet101-imagenet.pth" if teacher else "weights/resnet18-imagenet.pth"
    return {"lad": {**found, **fixed, "pretrained": encoder}}


class Row(NamedTuple):
    """What a published row was run with; every one by SGD with momentum 0.9, 40000 steps of 16 crops of 512 x 1024."""

    methods: dict[str, dict[str, Any]]
    lr: float = 0.02
    weight_decay: float = 1e-4
    floor: float = 0.0
    every: int = 800
    aux_weight: float = 0.4
    start: str | None = None
    """The trained student that it begins with; else the student has an ImageNet encoder."""
    dropout: float | None = None
    """The student's, where it is not the network's own."""


def lad_row(base: dict[str, Any], teacher: str | None = None) -> Row:
    first = f"runs/published-none-{PAIR}/checkpoints/best.safetensors"
    return Row(lad(base, teacher), lr=0.001, aux_weight=0.02, start=first, dropout=0.01)


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
    "none": Row({"none": {}}),
    "skd": Row(KD | ADVERSARIAL | {"skd": {"pairwise": 10.0, "pool": 2, "nodes": None}}),
    "ifvd": Row(KD | ADVERSARIAL | {"ifvd": {"ifvd": 20.0}}),
    "cwd": Row(KD | ADVERSARIAL | {"cwd": {"logits": 3.0, "feature": 50.0, "temperature": 4.0}}),
    "cirkd": Row(KD | {"cirkd": CIRKD}),
    "dist": Row({"dist": {"inter": 1.0, "intra": 1.0, "aux": 0.4, "temperature": 1.0}}, 0.02, 5e-4, 1e-4, 400),
    "maskd": Row({"maskd": MASKD}, weight_decay=5e-4, floor=1e-4, every=400),
    "diffkd": Row({"diffkd": DIFFKD}, weight_decay=5e-4, floor=1e-4, every=400),
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
    check_training(recipe.train, row)
    assert (recipe.data.name, recipe.data.train_split, recipe.data.crop) == ("cityscapes", "train", (512, 1024))
    assert recipe.evaluate.every == row.every
    assert (recipe.teacher is None) == (name.startswith("lad") or name == "none")
    student, encoder = recipe.student, None if row.start else "weights/resnet18-imagenet.pth"
    assert (student.model, student.weights, student.pretrained or None) == ("deeplabv3-resnet18", row.start, encoder)
    assert student.dropout == row.dropout
    assert {method.name for method in recipe.method} == row.methods.keys()
    for method in recipe.method:
        options = check_options(method.name, method.options()).model_dump()
        wanted = row.methods[method.name]
        assert method.weight == 1.0
        assert options.get("variant", "published") == "published"
        assert {key: pruned(options[key], wanted[key]) for key in wanted} == wanted


def check_training(train: TrainConfig, row: Row) -> None:
    optimizer, schedule = train.optimizer, train.schedule
    assert (train.steps, train.batch, train.aux_weight) == (40_000, 16, row.aux_weight)
    assert (train.clip, train.ema, train.precision) == (None, None, "fp32")
    assert (optimizer.name, optimizer.lr, optimizer.momentum) == ("sgd", row.lr, 0.9)
    assert (optimizer.weight_decay, optimizer.head_lr_factor) == (row.weight_decay, 1.0)
    assert optimizer.decay_norm_and_bias
    assert (schedule.power, schedule.warmup, schedule.floor) == (0.9, 0, row.floor)
    assert (train.devices, train.micro_batch) == ("auto", None)  # on any number of devices


def pruned(value: Any, wanted: Any) -> Any:
    """Return ``value`` without the settings that ``wanted`` does not name."""
    return {key: value.get(key) for key in wanted} if isinstance(wanted, dict) else value


KT_PAIRS = {
    "cityscapes-deeplabv3-r101-r18": (("train", (512, 1024)), "deeplabv3-resnet18", "citys", 77.98),
    "cityscapes-deeplabv3-r101-psp-r18": (("train", (512, 1024)), "pspnet-resnet18", "citys", 76.49),
    "cityscapes-deeplabv3-r101-mbv2": (("train", (512, 1024)), "deeplabv3-mobilenetv2", "citys", 76.17),
    "voc-deeplabv3-r101-r18": (("train_aug", (512, 512)), "deeplabv3-resnet18", "voc", 76.49),
    "voc-deeplabv3-r101-psp-r18": (("train_aug", (512, 512)), "pspnet-resnet18", "voc", 75.52),
    "ade20k-deeplabv3-r101-r18": (("train", (512, 512)), "deeplabv3-resnet18", "ade20k", 35.64),
    "ade20k-deeplabv3-r101-psp-r18": (("train", (512, 512)), "pspnet-resnet18", "ade20k", 35.77),
}


@pytest.mark.parametrize("pair", KT_PAIRS)
def test_the_rows_of_kt_differ_in_data_and_student_alone(pair: str) -> None:
    data, student, token, figure = KT_PAIRS[pair]
    recipe = load_recipe(f"published-kt-{pair}", DistillRecipe)
    assert recipe.data.name == pair.partition("-")[0]
    assert (recipe.data.train_split, recipe.data.crop) == data
    assert recipe.student.model == student
    assert recipe.teacher is not None
    assert recipe.teacher.weights == f"published:weights/deeplabv3_resnet101_{token}_best_model.pth"
    same = read("published-kt")
    assert (recipe.method, recipe.train, recipe.evaluate) == (same.method, same.train, same.evaluate)
    assert f"({figure:.2f}, alone" in recipe.description
    assert f"{figure:.2f}" in (inspect.getdoc(find_method("kt")) or "")


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("published-teacher-cityscapes-deeplabv3-r101", "deeplabv3-resnet101"),
        ("teacher-cityscapes-pspnet-r101", "pspnet-resnet101"),
    ],
)
def test_the_teachers_have_the_settings_of_the_student_alone(name: str, model: str) -> None:
    recipe, alone = load_recipe(name, TrainRecipe), read("published-none")
    assert (recipe.model.model, recipe.model.pretrained) == (model, "weights/resnet101-imagenet.pth")
    assert (recipe.data, recipe.train, recipe.evaluate) == (alone.data, alone.train, alone.evaluate)


@pytest.mark.parametrize("pair", ["pspnet-r101-r18", "segformer-b2-b0"])
def test_a_teacher_without_public_weights_has_a_recipe(pair: str) -> None:
    recipe = load_recipe(f"kt-cityscapes-{pair}", DistillRecipe)
    first = f"teacher-cityscapes-{pair.rpartition('-')[0]}"
    assert "no public checkpoint of this teacher" in recipe.description
    assert f"`segtailor train {first}`" in recipe.description
    assert recipe.teacher is not None
    assert recipe.teacher.weights == f"runs/{first}"
    teacher = load_recipe(first, TrainRecipe)
    assert (teacher.model.model, teacher.data) == (recipe.teacher.model, recipe.data)


@pytest.mark.parametrize("name", ["cirkd", "dist", "diffkd", "skd", "ifvd", "cwd"])
def test_rows_that_depend_on_the_devices_say_so(name: str) -> None:
    assert "8 devices of 2 images" in read(f"published-{name}").description


def test_the_rows_of_lad_name_their_first_step() -> None:
    found = {name: text for name, text in list_recipes().items() if name.startswith("published-lad")}
    assert len(found) == 4
    assert all(f"Step 2 of 2: fine-tunes the student of published-none-{PAIR}" in text for text in found.values())


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
    "stagewise": ["stagewise"],
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
        if name.startswith(("equal-", "published-", "kt-")):
            kind = CompareRecipe if name.startswith("equal-") else DistillRecipe
            kind = TrainRecipe if name.startswith("published-teacher-") else kind
            assert load_recipe(name, kind).run.name == name
        if name.startswith("teacher-"):
            assert load_recipe(name, TrainRecipe).run.name == name
