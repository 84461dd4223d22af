"""Creating and describing methods, and a user's mistakes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from segtailor.cli import main
from segtailor.engine.logging import read_metrics
from segtailor.errors import SegtailorError
from segtailor.methods import METHODS, check_options, create_method, find_method, list_methods
from segtailor.methods.describe import describe, listing_pages, pages, with_lists
from tiny import tiny_distill

from .cases import CLASSES, STUDENT, TEACHER, labels, output


def test_table_uses_each_methods_own_name() -> None:
    assert {name: method.name for name, method in METHODS.items()} == {name: name for name in METHODS}
    assert list_methods() == [(name, method.summary) for name, method in METHODS.items()]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ktt", {}, "unknown method 'ktt'; nearest: kt"),
        ("kd", {"temprature": 2}, "unknown option of method 'kd' 'temprature'; nearest: temperature"),
        ("kd", {"temperature": 0}, "method 'kd', option 'temperature': .*greater than 0"),
        ("kd", {"variant": "original"}, "option 'variant': .*'clean' or 'published'"),
        ("kt", {"tuning_point": 10000}, "option 'tuning_point': .*less than or equal to 1"),
        ("kt", {"feature_taps": []}, "option 'feature_taps'"),
        ("skd", {"pairwise": -1}, "option 'pairwise': .*greater than or equal to 0"),
        ("diffkd", {"logits": -0.5}, "option 'logits': .*greater than or equal to 0"),
        ("cirkd", {"temperature": -1}, "option 'temperature': .*greater than 0"),
        ("maskd", {"token": 4}, "unknown option of method 'maskd' 'token'; nearest: tokens"),
        ("none", {"temperature": 2}, "unknown option of method 'none'"),
    ],
)
def test_mistakes_are_one_line_with_the_nearest_names(name: str, options: dict[str, Any], message: str) -> None:
    for call in (
        lambda: check_options(name, options),
        lambda: create_method(name, CLASSES, student_channels=STUDENT, teacher_channels=TEACHER, **options),
    ):
        with pytest.raises(SegtailorError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["ifvd", "cirkd", "lad", "bpkd"])
def test_a_method_that_reads_classes_says_so_in_one_line(name: str) -> None:
    method = create_method(name, CLASSES, student_channels=STUDENT, teacher_channels=TEACHER)
    with pytest.raises(SegtailorError, match=f"method {name} needs labels; give it a target") as error:
        method(output(STUDENT), output(TEACHER, seed=2), None, 0.5)
    assert "\n" not in str(error.value)


def test_a_method_without_labels_needs_no_target() -> None:
    method = create_method("kd", CLASSES, STUDENT, TEACHER, variant="published")
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    assert method(student, teacher, None, 0.5) == method(student, teacher, labels(), 0.5)


def test_without_a_target_a_method_that_only_masks_void_pixels_counts_all() -> None:
    method = create_method("kd", CLASSES, STUDENT, TEACHER)
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    expected = method(student, teacher, torch.zeros_like(labels(size=(48, 64))), 0.5)
    torch.testing.assert_close(method(student, teacher, None, 0.5), expected)


@pytest.mark.parametrize("name", ["kt", "cwd"])
def test_a_teacher_without_a_feature_is_refused_by_name(name: str) -> None:
    with pytest.raises(SegtailorError, match="tap of the teacher"):
        create_method(name, CLASSES, student_channels=8, teacher_channels={"stages.0": 8})


def test_published_presets_fill_in_and_give_way_to_given_options() -> None:
    assert check_options("kt", {"variant": "published"}).model_dump()["contrastive"] == 1
    assert check_options("kt", {"variant": "published", "contrastive": 0.5}).model_dump()["contrastive"] == 0.5
    assert check_options("kt", {}).model_dump()["contrastive"] == 0


def test_channels_as_a_number_are_the_features() -> None:
    assert create_method("cwd", CLASSES, 8, 16).projector.weight.shape == (16, 8, 1, 1)  # type: ignore[union-attr]


def test_describe_shows_both_variants_defaults_and_refuses_unknown_names() -> None:
    assert "default 0.1; published: 1.0" in describe("kt")
    with pytest.raises(SegtailorError, match="nearest: cwd"):
        describe("cdw")


def test_the_documentation_is_up_to_date() -> None:
    root = Path(__file__).parents[2]
    folder = root / "docs" / "methods"
    assert {path.name: path.read_text() for path in folder.glob("*.md")} == pages()
    listing = listing_pages(root)
    assert root / "README.md" in listing
    for page in listing:
        assert page.read_text() == with_lists(page.read_text()), f"{page}: run `make docs`"


@pytest.mark.parametrize("name", METHODS)
def test_every_default_has_a_source_and_every_page_its_facts(name: str) -> None:
    schema, text = METHODS[name].Options, describe(name)
    for option in schema.model_fields:
        assert f"`{option}`" in text
        assert option == "variant" or schema.extra(option)["source"]
    for fact in ("Limitations", "Source", "Inputs", "Labels", "Requires", "Channel alignment", "Cost"):
        assert f"\n- {fact}: " in text, fact
    assert max(map(len, text.splitlines())) < 700


MINE = """
import segtailor
from pydantic import PositiveFloat


class MineOptions(segtailor.MethodOptions):
    weight_of_it: PositiveFloat = 2.0


class Mine(segtailor.Method[MineOptions]):
    name = "mine"
    summary = "squared error of the logits"

    def terms(self, student, teacher, target, step):
        return {"squares": self.options.weight_of_it * (student.logits - teacher.logits).square().mean()}


class Bare(segtailor.Method):
    name = "bare"
    summary = "no options"

    def terms(self, student, teacher, target, step):
        return {"absolute": (student.logits - teacher.logits).abs().mean()}


class NoTerms(segtailor.Method):
    name = "none"
    summary = ""


class Taken(Bare):
    name = "kd"


class DemandingOptions(segtailor.MethodOptions):
    size: int


class Demanding(segtailor.Method[DemandingOptions]):
    name = "demanding"
    summary = ""
    inputs = frozenset({"neck"})

    def build(self, student, teacher):
        self.width = student["neck"] + teacher["neck"] * self.options.size

    def terms(self, student, teacher, target, step):
        return {}


class Foreign(Bare):
    name = "foreign"
    Options = dict


class Typo(Bare):
    name = "typo"
    labels = "class"


class Given(Bare):
    name = "given"

    def terms(self, student, teacher, target, step):
        return self.given


class Other:
    pass


def function():
    pass
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of another's methods, on the import path."""
    (tmp_path / "others_methods.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_method_of_another_package_works_like_ours(mine: Path) -> None:
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    squares = (student.logits - teacher.logits).square().mean()
    method = create_method("module:others_methods:Mine", CLASSES, STUDENT, TEACHER, weight_of_it=3)
    torch.testing.assert_close(method(student, teacher, labels(), 0.5)["squares"], 3 * squares)
    assert (method.inputs, method.labels, method.teacher) == ({"logits"}, "ignore_mask", "recipe")
    assert set(create_method("module:others_methods:Bare", CLASSES, STUDENT, TEACHER)(student, teacher, None, 0.5)) == {
        "absolute"
    }
    assert "- Inputs: logits" in describe("module:others_methods:Mine")
    assert "# mine" in describe("module:others_methods:Mine")
    demanding = describe("module:others_methods:Demanding")
    assert "- Inputs: neck" in demanding
    assert "- `size`: which computation (whole number; required)" in demanding
    with pytest.raises(SegtailorError, match="unknown option of method 'module:others_methods:Mine' 'weight_of'"):
        check_options("module:others_methods:Mine", {"weight_of": 1})


def test_a_package_registers_methods_by_entry_points(mine: Path) -> None:
    info = mine / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[segtailor.methods]\nmine = others_methods:Mine\nlost = others_lost:Lost\n")
    assert create_method("mine", CLASSES, STUDENT, TEACHER).name == "mine"
    with pytest.raises(SegtailorError, match="lost, which others registers, cannot be imported"):
        find_method("lost")
    with pytest.raises(SegtailorError, match="unknown method 'mina'; nearest: mine"):
        find_method("mina")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("module:nowhere:Mine", "cannot import nowhere .*is it on PYTHONPATH"),
        ("module:others_methods", "write module:package.module"),
        ("module:others_methods:Mime", "unknown function or class of others_methods 'Mime'; nearest: Mine"),
        ("module:others_methods:Other", "a class that does not derive from segtailor.Method; write class Mine"),
        ("module:others_methods:function", "is a function that does not derive from segtailor.Method"),
        ("module:others_methods:NoTerms", r"lacks terms\(\); its class must define"),
        ("module:others_methods:Foreign", "the Options of .* do not derive from segtailor.MethodOptions"),
        ("module:others_methods:Taken", "calls itself 'kd', which is a method of segtailor; choose another `name`"),
    ],
)
def test_mistakes_in_anothers_method_are_one_line(mine: Path, spec: str, message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as error:
        find_method(spec)
    assert "\n" not in str(error.value)


def test_a_method_is_one_name() -> None:
    for name in (["kd", "cwd"], None, METHODS["kd"]):
        with pytest.raises(SegtailorError, match=r"a method is one name, not .*; make one loss for each method"):
            create_method(name, CLASSES, STUDENT, TEACHER)  # type: ignore[call-overload]


def test_terms_of_anothers_method_are_scalar_losses_by_name(mine: Path) -> None:
    with pytest.raises(SegtailorError, match="method typo: labels are unused, ignore_mask or classes, not 'class'"):
        create_method("module:others_methods:Typo", CLASSES, STUDENT, TEACHER)
    method: Any = create_method("module:others_methods:Given", CLASSES, STUDENT, TEACHER)
    for given, message in (
        (torch.zeros(()), r"terms\(\) returns Tensor, not a dict"),
        (None, r"terms\(\) returns NoneType, not a dict"),
        ({"it": 0.5}, "the term 'it' is float, not a scalar tensor of floats"),
        ({"it": torch.zeros(4)}, r"the term 'it' is torch.float32 \[4\], not"),
        ({"it": torch.zeros((), dtype=torch.int64)}, r"the term 'it' is torch.int64 \[\], not"),
    ):
        method.given = given
        with pytest.raises(SegtailorError, match=f"method given: {message}"):
            method(output(STUDENT), output(TEACHER, seed=2), labels(), 0.5)


def test_the_command_line_trains_with_a_file_on_the_import_path(
    mine: Path, teacher_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = tiny_distill(mine / "runs", teacher_run, steps=2)
    listed = [{"name": "module:others_methods:Mine", "weight": 0.5, "weight_of_it": 3.0}, "module:others_methods:Bare"]
    recipe = mine / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**made, "method": listed}))
    monkeypatch.setattr(sys, "argv", ["segtailor", "distill", str(recipe)])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    terms = read_metrics(mine / "runs" / "student" / "metrics.jsonl")[0]["terms"]
    assert {"task", "mine.squares", "bare.absolute"} <= terms.keys()
