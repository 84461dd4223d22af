"""Recipes: shipped ones are valid, overrides address any field, and every mistake is one line with the nearest name."""

from pathlib import Path

import pytest

from segtailor.config import CompareRecipe, DistillRecipe, TrainRecipe
from segtailor.errors import SegtailorError
from segtailor.recipes import (
    copy_recipe,
    list_fields,
    list_recipes,
    load_recipe,
    parse_overrides,
    recipe_path,
)

DISTILL = {"teacher": {"model": "a"}, "student": {"model": "b"}, "method": "kt"}


@pytest.mark.parametrize("name", list_recipes())
def test_every_shipped_recipe_is_valid_and_described(name: str) -> None:
    text = recipe_path(name).read_text()
    kind = CompareRecipe if "arms:" in text else DistillRecipe if "student:" in text else TrainRecipe
    recipe = load_recipe(name, kind)
    assert recipe.description


def test_a_method_is_read_as_a_list_with_its_options() -> None:
    recipe = load_recipe({**DISTILL, "method": {"name": "kt", "variant": "published", "weight": 2}}, DistillRecipe)
    assert [(m.name, m.weight, m.options()) for m in recipe.method] == [("kt", 2.0, {"variant": "published"})]


def test_overrides_set_any_field() -> None:
    overrides = parse_overrides(
        ["--train.steps", "20", "--method.variant=clean", "--data.size", "[8, 16]", "--train.optimizer.lr", "1.0e-3"]
    )
    recipe = load_recipe(DISTILL, DistillRecipe, overrides)
    assert recipe.train.steps == 20
    assert recipe.data.size == (8, 16)
    assert recipe.train.optimizer.lr == 1e-3
    assert recipe.method[0].options() == {"variant": "clean"}


def test_overrides_address_a_list_by_index_and_the_first_method_without() -> None:
    both = {**DISTILL, "method": [{"name": "kd"}, {"name": "cwd"}]}
    recipe = load_recipe(both, DistillRecipe, {"method.1.weight": 3, "method.temperature": 2})
    assert recipe.method[1].weight == 3
    assert recipe.method[0].options() == {"temperature": 2}


def test_a_resolved_recipe_reads_back_the_same(tmp_path: Path) -> None:
    import yaml

    recipe = load_recipe(DISTILL, DistillRecipe)
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    assert load_recipe(file, DistillRecipe) == recipe


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"train.stepz": 1}, ["unknown key 'train.stepz'", "steps"]),
        ({"train.optimizer.learning": 1}, ["unknown key 'train.optimizer.learning'", "lr"]),
        ({"trian.steps": 1}, ["unknown key 'trian'", "train"]),
        ({"train.steps": "many"}, ["'train.steps'", "integer", "'many'"]),
        ({"train.steps": 0}, ["'train.steps'", "greater than 0"]),
        ({"method.weight": -1}, ["'method.0.weight'", "greater than or equal to 0"]),
        ({"data.scale": [2.0, 0.5]}, ["'data'", "smallest, largest"]),
        ({"run.name": "../x"}, ["'run.name'"]),
        ({"method.3.weight": 1}, ["not an index"]),
        ({"data.size": 96}, ["'data.size': must be [height, width] (given: 96)"]),
        ({"data.crop": [96]}, ["'data.crop': must be [height, width] (given: [96])"]),
        ({"data.scale": 1.0}, ["'data.scale': must be [smallest, largest] (given: 1.0)"]),
        ({"train.optimizer.betas": [0.9]}, ["'train.optimizer.betas': must be [beta1, beta2] (given: [0.9])"]),
        ({"teacher.preprocess.mean": 0}, ["'teacher.preprocess.mean': must be [first channel, second, third]"]),
    ],
)
def test_a_wrong_recipe_is_one_line(overrides: dict[str, object], parts: list[str]) -> None:
    with pytest.raises(SegtailorError) as caught:
        load_recipe({**DISTILL, "method": [{"name": "kt"}]}, DistillRecipe, overrides)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(SegtailorError, match=r"stepz.*batchh"):
        load_recipe(DISTILL, DistillRecipe, {"train.stepz": 1, "train.batchh": 1})


def test_a_methods_weight_is_not_negative() -> None:
    values = {"teacher": {"model": "a"}, "student": {"model": "b"}, "method": ["kt", {"name": "kd", "weight": -1}]}
    with pytest.raises(SegtailorError, match=r"'method\.1\.weight': input should be greater than or equal to 0"):
        load_recipe(values, DistillRecipe)


def test_a_missing_section_is_named() -> None:
    with pytest.raises(SegtailorError, match="'student' is missing"):
        load_recipe({"teacher": {"model": "b"}, "method": "kt"}, DistillRecipe)


def test_a_recipe_of_the_other_command_says_so() -> None:
    with pytest.raises(SegtailorError, match="recipe of `segtailor train`"):
        load_recipe("toy-teacher", DistillRecipe)
    with pytest.raises(SegtailorError, match="recipe of `segtailor distill`"):
        load_recipe("toy-kt", TrainRecipe)


def test_unknown_recipes_list_the_nearest() -> None:
    with pytest.raises(SegtailorError, match="toy-kt"):
        recipe_path("toy-ktt")
    with pytest.raises(SegtailorError, match="no such recipe file"):
        recipe_path("nowhere/x.yaml")


def test_a_recipe_that_became_an_arm_is_named_only_where_there_is_such_an_arm() -> None:
    with pytest.raises(SegtailorError, match=r"distill equal-cityscapes-deeplabv3-r101-r18 --arm kt, or"):
        recipe_path("equal-kt-cityscapes-deeplabv3-r101-r18")
    with pytest.raises(SegtailorError, match="unknown recipe 'equal-ktt-cityscapes-deeplabv3-r101-r18'; nearest: "):
        recipe_path("equal-ktt-cityscapes-deeplabv3-r101-r18")


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "\tx"])
def test_a_file_that_is_no_recipe_is_one_line(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(SegtailorError, match=r"r\.yaml") as caught:
        load_recipe(file, TrainRecipe)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("words", [["train.steps", "3"], ["--train.steps"], ["--x", "[1"]])
def test_words_that_are_no_setting(words: list[str]) -> None:
    with pytest.raises(SegtailorError):
        parse_overrides(words)


def test_copying_never_overwrites(tmp_path: Path) -> None:
    path = copy_recipe("toy-kt", tmp_path)
    assert path.read_text() == recipe_path("toy-kt").read_text()
    with pytest.raises(SegtailorError, match="exists already"):
        copy_recipe("toy-kt", tmp_path)


def test_every_field_is_listed() -> None:
    lines = list_fields()
    assert any(line.startswith("train.optimizer.lr = ") for line in lines)
    assert any(line.startswith("model.model = ") for line in lines)
    assert any(line.startswith("run.exists = error") for line in lines)
    assert "data.unlabelled.share = 0.5  # share of each batch that is unlabelled" in lines


def test_a_field_that_takes_few_values_lists_them() -> None:
    lines = list_fields()
    assert "train.precision = fp32  # one of fp32, bf16, fp16" in lines
    assert any(line.startswith("data.masks = None  # one of index, color, binary; what a mask holds") for line in lines)
    assert "train.devices = auto" in lines


def test_a_recipe_without_arms_says_what_runs_it() -> None:
    for name, command in (("toy-kt", "distill"), ("toy-teacher", "train")):
        with pytest.raises(SegtailorError, match=f"{name}.yaml has no arms: use `segtailor {command}` without --arm"):
            load_recipe(name, CompareRecipe)


def test_a_run_may_be_named_after_any_arm() -> None:
    assert load_recipe(DISTILL, DistillRecipe, {"run.name": "compare-kd+cwd"}).run.name == "compare-kd+cwd"


def test_a_comparison_given_to_distill_names_the_option_for_one_arm() -> None:
    with pytest.raises(SegtailorError, match="add --arm NAME"):
        load_recipe("toy-compare", DistillRecipe)


def test_the_student_alone_of_another_library_is_an_arm_with_a_folders_name() -> None:
    from segtailor.jobs.compare import all_arms

    values = {key: value for key, value in DISTILL.items() if key != "method"}
    arms = {"kd": "kd", "unet": {"method": "kd", "student": {"model": "smp:Unet/resnet18"}}}
    recipe = load_recipe({**values, "arms": arms}, CompareRecipe)
    assert list(all_arms(recipe)) == ["none", "none-smp-Unet-resnet18", "kd", "unet"]
