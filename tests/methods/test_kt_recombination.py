"""Recombination by trained convolutions, tailoring without tailors, and all taps at once."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.methods import check_options, create_method
from segtailor.methods._kt_terms import from_moments, linear_matching, matching

from .cases import CLASSES, EVERY_TERM, STUDENT, TEACHER, labels, output
from .tester import EARLY, PHASES, MethodTester

LOGIT_TERMS = frozenset({"kd", "kd_aux", "lt_all", "lt_class", "lt_nonclass"})
ALONE = {**EVERY_TERM, **dict.fromkeys((*LOGIT_TERMS, "contrastive"), 0)}
TRAINED = {**EVERY_TERM, "recombination": "trained", "contrastive": 0}


class TestKTTrainedRecombination(MethodTester):
    minimal: ClassVar = frozenset({"kd", "kd_aux"})
    phased = True
    name = "kt"
    options: ClassVar = TRAINED
    terms = LOGIT_TERMS | {"ft"}


class TestKTLinearRegression(MethodTester):
    minimal: ClassVar = frozenset({"kd_aux"})
    phased = True
    name = "kt"
    options: ClassVar = {**TRAINED, "tailors": "none", "kd": 0}
    terms = LOGIT_TERMS - {"kd"} | {"ft"}


class TestKTWithoutTailors(MethodTester):
    minimal: ClassVar = frozenset({"kd", "kd_aux"})
    phased = True
    name = "kt"
    options: ClassVar = {**EVERY_TERM, "tailors": "none", "margin": 2.0}
    terms = LOGIT_TERMS | {"ft", "contrastive"}


def correlation_loss(first: Tensor, second: Tensor, weight: Tensor) -> float:
    """Return 1 - correlation of two maps (C,n), averaged over channels; ``weight`` (n) sums to 1."""
    total = 0.0
    for a, b in zip(first.double(), second.double(), strict=True):
        a, b = a - (a * weight).sum(), b - (b * weight).sum()
        spread = ((a * a * weight).sum() * (b * b * weight).sum()).sqrt()
        total += 1 - ((a * b * weight).sum() / spread).item()
    return total / len(first)


@PHASES
@pytest.mark.parametrize("tailors", ["trained", "none"])
def test_trained_recombination_equals_a_standardised_regression_by_hand(progress: float, tailors: str) -> None:
    method = create_method(
        "kt", CLASSES, STUDENT, TEACHER, **{**ALONE, "recombination": "trained", "tailors": tailors, "ft": 1}
    )
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    value = method(student, teacher, target, progress)["ft"].item()
    module, expected = method.tailoring["decoder"], 0.0
    early = progress == EARLY
    layer = module.student_to_teacher_recombination if early else module.teacher_to_student_recombination
    assert student.feature is not None
    assert teacher.feature is not None
    for own, guide, image in zip(student.feature.detach(), teacher.feature.detach(), target, strict=True):
        weight = torch.zeros(6, 8, dtype=torch.float64)
        for row in range(46):
            for column in range(63):
                weight[row * 6 // 46, column * 8 // 63] += image[row, column] != 255
        weight = weight.flatten() / weight.sum()
        source, goal = (own, guide) if early else (guide, own)
        source = source.flatten(1).double()
        middle = source - (source * weight).sum(1, keepdim=True)
        scaled = middle / ((middle**2 * weight).sum(1, keepdim=True) + 1e-6).sqrt()
        recombined = layer.weight.detach().flatten(1).double() @ scaled
        if tailors == "trained":
            tailor = module.tailor(early).double()
            recombined = recombined + tailor.layers(recombined.view(1, -1, 6, 8)).detach()[0].flatten(1)
            tailor.float()
        expected += correlation_loss(recombined, goal.flatten(1), weight) / 2
    assert value == pytest.approx(expected, rel=1e-4)


def test_the_regression_from_moments_is_that_of_maps() -> None:
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(3, 5, 4, 6, generator=generator, dtype=torch.float64).add_(2).requires_grad_()
    teacher = torch.randn(3, 7, 4, 6, generator=generator, dtype=torch.float64) * 3 - 1
    teacher[1, 2] = 4.0  # a constant channel
    valid = torch.randint(0, 3, (3, 24), generator=generator).double()
    valid[2] = 0
    mixing = torch.randn(7, 5, generator=generator, dtype=torch.float64).requires_grad_()
    found = from_moments(student, teacher, valid, mixing)
    assert linear_matching(student, teacher, valid, mixing) == found
    expected = matching(student, teacher, valid, None, mixing.expand(3, -1, -1), True)
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, [student, mixing]), torch.autograd.grad(expected, [student, mixing]), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    assert torch.autograd.gradcheck(lambda maps, matrix: from_moments(maps, teacher, valid, matrix), [student, mixing])


def test_the_regression_on_few_cells_forms_the_maps() -> None:
    student, teacher = torch.randn(2, 9, 2, 4, requires_grad=True), torch.randn(2, 3, 2, 4)
    mixing, valid = torch.randn(3, 9), torch.ones(2, 8)
    expected = matching(student, teacher, valid, None, mixing.expand(2, -1, -1), True)
    assert linear_matching(student, teacher, valid, mixing) == expected
    torch.testing.assert_close(from_moments(student, teacher, valid, mixing), expected)


def test_the_regression_keeps_nothing_of_the_teachers_width() -> None:
    student, teacher = torch.randn(2, 4, 30, 40, requires_grad=True), torch.randn(2, 64, 30, 40).bfloat16()
    mixing, valid = torch.randn(64, 4, requires_grad=True), torch.ones(2, 1200)
    known = {student.data_ptr(), teacher.data_ptr(), mixing.data_ptr(), valid.data_ptr()}
    kept: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        if value.data_ptr() not in known:
            kept[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        linear_matching(student, teacher, valid, mixing).backward()
    assert sum(kept.values()) < teacher.numel() / 20


def test_at_tuning_point_1_there_is_no_late_phase() -> None:
    options = {**ALONE, "recombination": "trained", "tailors": "none", "ft": 1}
    method = create_method("kt", CLASSES, STUDENT, TEACHER, **{**options, "tuning_point": 1})
    assert not method.sparse_gradients
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    last = method(student, teacher, target, 1.0)["ft"]
    assert last.item() == method(student, teacher, target, 0.5)["ft"].item()
    last.backward()
    assert all(parameter.grad is not None for parameter in method.parameters())


@pytest.mark.parametrize(
    ("student", "teacher", "taps"),
    [
        (STUDENT, TEACHER, ["decoder", "stages.0", "stages.1"]),
        ({"feature": 4, "stages.0": 3}, TEACHER, ["decoder", "stages.0"]),
        ({"feature": 4}, TEACHER, ["decoder"]),
        ({"stages.1": 4, "stages.10": 5, "stages.2": 6}, {"stages.2": 4, "stages.10": 5}, ["stages.2", "stages.10"]),
    ],
)
def test_all_taps_are_those_that_both_networks_have(
    student: dict[str, int], teacher: dict[str, int], taps: list[str]
) -> None:
    method = create_method("kt", CLASSES, student, teacher, feature_taps="all")
    assert [key.replace("_", ".") for key in method.tailoring] == taps  # type: ignore[union-attr]
    assert method.inputs - {"logits"} == {"feature" if tap == "decoder" else tap for tap in taps}


def test_all_taps_of_networks_without_any_are_one_line() -> None:
    with pytest.raises(SegtailorError, match="the teacher") as error:
        create_method("kt", CLASSES, {"feature": 4}, {}, feature_taps="all")
    assert "\n" not in str(error.value)


@PHASES
def test_a_trained_recombination_learns(progress: float) -> None:
    method = create_method("kt", CLASSES, STUDENT, TEACHER, **{**ALONE, "recombination": "trained", "tailors": "none"})
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    optimizer, values = torch.optim.Adam(method.parameters(), 0.02), []
    for _ in range(60):
        optimizer.zero_grad()
        value = method(student, teacher, target, progress)["ft"]
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] - 0.05
    assert student.feature is not None
    assert student.feature.grad is not None
    assert student.feature.grad.any()


def test_frozen_tailors_leave_the_recombination_to_learn() -> None:
    method = create_method("kt", CLASSES, STUDENT, TEACHER, **{**TRAINED, "tailors": "frozen"})
    trained = {name.split(".")[-2] for name, value in method.named_parameters() if value.requires_grad}
    assert trained == {"student_to_teacher_recombination", "teacher_to_student_recombination"}
    assert method.sparse_gradients
    none = create_method("kt", CLASSES, STUDENT, TEACHER, **{**TRAINED, "tailors": "none"})
    assert len(none.state_dict()) == 2
    assert set(create_method("kt", CLASSES, STUDENT, TEACHER, **{**EVERY_TERM, "tailors": "none"}).state_dict()) == {
        "tailoring.decoder.student_projector.weight"
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"contrastive": 1}, "'recombination': .*set contrastive: 0, or recombination: correlation"),
        ({"variant": "published", "recombination": "trained", "contrastive": 0}, "'recombination': .*variant: clean"),
        ({"variant": "published", "tailors": "none"}, "'tailors': .*variant: clean"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as error:
        check_options("kt", options)
    assert "\n" not in str(error.value)


def test_published_takes_what_changes_nothing() -> None:
    options = {"recombination": "correlation", "tailors": "frozen"}
    assert check_options("kt", {"variant": "published", **options}) == check_options("kt", {"variant": "published"})
