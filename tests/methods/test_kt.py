from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from segtailor.errors import SegtailorError
from segtailor.methods import check_options, create_method

from .cases import CLASSES, EVERY_TERM, STUDENT, TEACHER, labels, output
from .tester import EARLY, LATE, MethodTester

TERMS = frozenset({"kd", "kd_aux", "lt_all", "lt_class", "lt_nonclass", "ft", "contrastive"})
CLEAN = TERMS - {"contrastive"}


def fix_components(method: Any) -> None:
    """Give each tap components that no batch changes any more."""
    for index, module in enumerate(method.tailoring.values()):
        generator = torch.Generator().manual_seed(index)
        basis, _ = torch.linalg.qr(torch.randn(module.basis.shape, generator=generator))
        module.basis.copy_(basis)
        module.shares.copy_(torch.rand(module.shares.shape, generator=generator) + 0.1)
        module.seen = module.STEPS + 1


class TestKT(MethodTester):
    name = "kt"
    minimal: ClassVar = frozenset({"kd"})
    prepare = staticmethod(fix_components)
    terms = CLEAN - {"kd_aux", "ft"} | {"ft.decoder", "ft.stages.0", "ft.stages.1"}


class TestKTEveryTerm(MethodTester):
    minimal: ClassVar = frozenset({"kd", "kd_aux"})
    name = "kt"
    options: ClassVar = EVERY_TERM
    prepare = staticmethod(fix_components)
    terms = CLEAN


class TestKTPublished(MethodTester):
    minimal: ClassVar = frozenset({"kd", "kd_aux", "lt_class", "lt_nonclass"})
    phased = True
    name = "kt"
    options: ClassVar = {"variant": "published", "margin": 20.0}
    void_matters = True
    terms = TERMS


class TestKTPublishedTrained(MethodTester):
    minimal: ClassVar = frozenset({"kd", "kd_aux", "lt_class", "lt_nonclass"})
    phased = True
    name = "kt"
    options: ClassVar = {"variant": "published", "tailors": "trained", "margin": 20.0}
    void_matters = True
    terms = TERMS


class TestKTOnStages(MethodTester):
    minimal: ClassVar = frozenset({"kd", "kd_aux", "lt_class", "lt_nonclass"})
    phased = True
    name = "kt"
    options: ClassVar = {"variant": "published", "feature_taps": ["decoder", "stages.0"], "margin": 20.0}
    void_matters = True
    terms = TERMS - {"ft", "contrastive"} | {
        f"{term}.{tap}" for term in ("ft", "contrastive") for tap in ("decoder", "stages.0")
    }


class TestKTOnOneStage(MethodTester):
    minimal: ClassVar = frozenset({"kd", "kd_aux", "lt_class", "lt_nonclass"})
    phased = True
    name = "kt"
    options: ClassVar = {"feature_taps": "stages.1", "variant": "published", "margin": 20.0}
    void_matters = True
    terms = TERMS


def test_phase_two_begins_at_the_published_iteration() -> None:
    method, student, teacher = (
        create_method("kt", CLASSES, STUDENT, TEACHER, variant="published"),
        output(STUDENT),
        output(TEACHER, seed=2),
    )
    values = [method(student, teacher, labels(), n / 40_000)["ft"].item() for n in (1, 9_999, 10_000, 40_000)]
    assert values[0] == values[1]
    assert values[2] == values[3]
    assert values[1] != values[2]


@pytest.mark.parametrize("which", ["student", "teacher", "both"])
def test_drops_the_auxiliary_term_where_a_network_has_no_auxiliary_logits(which: str) -> None:
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    if which != "teacher":
        student.aux_logits = None
    if which != "student":
        teacher.aux_logits = None
    terms = create_method("kt", CLASSES, STUDENT, TEACHER, **EVERY_TERM)(student, teacher, labels(), EARLY)
    assert set(terms) == CLEAN - {"kd_aux"}


@pytest.mark.parametrize("variant", ["published", "clean"])
def test_weights_scale_their_term_and_zero_drops_it(variant: str) -> None:
    terms, options = (CLEAN, EVERY_TERM) if variant == "clean" else (TERMS, {"variant": "published", "margin": 20})
    for term in terms:
        values = []
        for weight in (0.0, 1.5, 3.0):
            torch.manual_seed(0)
            method = create_method("kt", CLASSES, STUDENT, TEACHER, **{**options, term: weight})
            values.append(method(output(STUDENT), output(TEACHER, seed=2), labels(), LATE))
        assert set(values[0]) == terms - {term}
        for name in terms:
            factor = 2 if name == term else 1
            torch.testing.assert_close(values[2][name], factor * values[1][name], rtol=1e-6, atol=0)


def test_frozen_tailors_are_the_same_whatever_the_random_state_and_are_saved() -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        method = create_method("kt", CLASSES, STUDENT, TEACHER, variant="published")
        assert not any(parameter.requires_grad for parameter in method.parameters())
        states.append(method.state_dict())
    assert states[0].keys() == states[1].keys()
    assert len(states[0]) == 13
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    other = create_method("kt", CLASSES, STUDENT, TEACHER, variant="published", seed=1).state_dict()
    assert not torch.equal(
        other["tailoring.decoder.student_projector.weight"], states[0]["tailoring.decoder.student_projector.weight"]
    )


def test_creating_the_method_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(())
    torch.manual_seed(0)
    create_method("kt", CLASSES, STUDENT, TEACHER, variant="published")
    assert torch.rand(()) == expected


def test_published_reads_after_dropout_and_clean_before() -> None:
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    for variant, read, unread in (
        ("published", "classifier_input", "feature"),
        ("clean", "feature", "classifier_input"),
    ):
        method = create_method("kt", CLASSES, STUDENT, TEACHER, variant=variant, feature_taps="decoder")
        value = method(student, teacher, labels(), LATE)["ft"]
        gradients = torch.autograd.grad(value, [getattr(student, read), getattr(student, unread)], allow_unused=True)
        assert gradients[0].abs().sum() > 0
        assert gradients[1] is None


def test_without_feature_terms_nothing_is_built_or_read() -> None:
    method = create_method("kt", CLASSES, {}, {}, ft=0, contrastive=0)
    assert not method.state_dict()
    assert method.inputs == {"logits"}
    assert not method.sparse_gradients


@pytest.mark.parametrize(
    ("tap", "nearest"), [("stages.7", "stages.0"), ("decodr", "decoder"), (["decoder", "stage.1"], "stages.1")]
)
def test_a_tap_that_does_not_exist_lists_the_nearest(tap: object, nearest: str) -> None:
    with pytest.raises(SegtailorError, match=nearest):
        create_method("kt", CLASSES, STUDENT, TEACHER, feature_taps=tap)


def test_a_tap_that_only_the_student_has_names_the_teacher() -> None:
    with pytest.raises(SegtailorError, match=r"tap of the teacher 'stages.1'"):
        create_method("kt", CLASSES, STUDENT, {"feature": 4, "stages.0": 3}, feature_taps="stages.1")


def test_several_taps_have_modules_of_their_own() -> None:
    taps = ["decoder", "stages.0"]
    published = create_method("kt", CLASSES, STUDENT, TEACHER, feature_taps=taps, variant="published")
    widths = {
        key: module.student_to_teacher_tailor.layers[0].weight.shape[:2] for key, module in published.tailoring.items()
    }
    assert widths == {"decoder": (5, 10), "stages_0": (4, 8)}
    clean = create_method("kt", CLASSES, STUDENT, TEACHER, feature_taps=taps)
    assert {key: module.projector.weight.shape[:2] for key, module in clean.tailoring.items()} == {
        "decoder": (6, 6),
        "stages_0": (4, 4),
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrastive": 1}, "'contrastive': .*variant: published"),
        ({"tailors": "trained"}, "'tailors': .*variant: published"),
        ({"recombination": "trained", "ft": 8}, "'recombination': .*`stagewise`"),
        ({"recombination": "correlation"}, "'recombination': .*leave it out"),
        ({"sharpness": 0.1}, "'sharpness': .*leave it out"),
        ({"tailors": "none"}, "'tailors'"),
    ],
)
def test_options_that_do_not_go_together_or_are_gone_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as error:
        check_options("kt", options)
    assert "\n" not in str(error.value)


def test_what_was_recorded_with_all_options_is_read_again() -> None:
    for variant in ("clean", "published"):
        options = check_options("kt", {"variant": variant})
        assert check_options("kt", options.model_dump(mode="json")) == options
