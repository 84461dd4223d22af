"""Recombination by trained convolutions, tailoring without tailors, and the switch that follows the agreement."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.methods import Method, check_options, create_method

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .tester import EARLY, LATE, PHASES, MethodTester

LOGIT_TERMS = frozenset({"kd", "kd_aux", "lt_all", "lt_class", "lt_nonclass"})
ALONE = dict.fromkeys((*LOGIT_TERMS, "contrastive"), 0)


class TestKTTrainedRecombination(MethodTester):
    phased = True
    name = "kt"
    options: ClassVar = {"recombination": "trained", "contrastive": 0}
    terms = LOGIT_TERMS | {"ft"}


class TestKTLinearRegression(MethodTester):
    phased = True
    name = "kt"
    options: ClassVar = {"recombination": "trained", "contrastive": 0, "tailors": "none", "boundary": 2, "kd": 0}
    terms = LOGIT_TERMS - {"kd"} | {"ft"}


class TestKTOverTheBatch(MethodTester):
    phased = True
    name = "kt"
    options: ClassVar = {"moments": "batch", "margin": 2.0}
    terms = LOGIT_TERMS | {"ft", "contrastive"}


class TestKTWithoutTailors(MethodTester):
    phased = True
    name = "kt"
    options: ClassVar = {"tailors": "none", "margin": 2.0}
    terms = LOGIT_TERMS | {"ft", "contrastive"}


def halfway(method: Method) -> None:
    """Let both phases count."""
    for agreement in method.agreements.values():  # type: ignore[union-attr, operator]
        agreement.value.fill_(0.4)


class TestKTAgreement(MethodTester):
    name = "kt"
    options: ClassVar = {"switch": "agreement", "margin": 2.0, "feature_taps": ["decoder", "stages.0"]}
    prepare = staticmethod(halfway)
    terms = LOGIT_TERMS | {f"{term}.{tap}" for term in ("ft", "contrastive") for tap in ("decoder", "stages.0")}

    def call(self, method: Any, *inputs: Any) -> Any:
        """Return the terms, and the means to what they held: each test's calls are meant to start equal."""
        kept = [(buffer, buffer.clone()) for buffer in method.buffers()]
        terms = super().call(method, *inputs)
        for buffer, before in kept:
            buffer.copy_(before)
        return terms


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
        "kt", CLASSES, STUDENT, TEACHER, recombination="trained", tailors=tailors, **{**ALONE, "ft": 1}
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


@PHASES
def test_moments_over_the_batch_equal_one_image_made_of_all(progress: float) -> None:
    options = {"recombination": "trained", "tailors": "none", **ALONE, "ft": 1}
    method = create_method("kt", CLASSES, STUDENT, TEACHER, moments="batch", **options)
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    value = method(student, teacher, target, progress)["ft"].item()
    module, expected = method.tailoring["decoder"], 0.0
    early = progress == EARLY
    layer = module.student_to_teacher_recombination if early else module.teacher_to_student_recombination
    assert student.feature is not None
    assert teacher.feature is not None
    weight = torch.zeros(len(target), 6, 8, dtype=torch.float64)
    for image in range(len(target)):
        for row in range(46):
            for column in range(63):
                weight[image, row * 6 // 46, column * 8 // 63] += target[image, row, column] != 255
    weight = weight.flatten() / weight.sum()
    own, guide = (maps.feature.detach().double().movedim(1, 0).flatten(1) for maps in (student, teacher))
    source, goal = (own, guide) if early else (guide, own)
    middle = source - (source * weight).sum(1, keepdim=True)
    scaled = middle / ((middle**2 * weight).sum(1, keepdim=True) + 1e-6).sqrt()
    expected = correlation_loss(layer.weight.detach().flatten(1).double() @ scaled, goal, weight)
    assert value == pytest.approx(expected, rel=1e-4)
    method.options.moments = "image"
    assert method(student, teacher, target, progress)["ft"].item() != pytest.approx(expected, rel=1e-3)


def test_the_weight_of_ft_goes_to_its_end_in_a_straight_line() -> None:
    method, fading = (
        create_method("kt", CLASSES, STUDENT, TEACHER, **ALONE, ft=2, **more) for more in ({}, {"ft_end": 0.5})
    )
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    for progress, factor in ((0.2, 0.9), (1.0, 0.5)):
        full = method(student, teacher, target, progress)["ft"].item()
        assert fading(student, teacher, target, progress)["ft"].item() == pytest.approx(factor * full)


@PHASES
def test_a_trained_recombination_learns(progress: float) -> None:
    method = create_method("kt", CLASSES, STUDENT, TEACHER, recombination="trained", tailors="none", **ALONE)
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
    method = create_method("kt", CLASSES, STUDENT, TEACHER, recombination="trained", tailors="frozen", contrastive=0)
    trained = {name.split(".")[-2] for name, value in method.named_parameters() if value.requires_grad}
    assert trained == {"student_to_teacher_recombination", "teacher_to_student_recombination"}
    assert method.phases
    none = create_method("kt", CLASSES, STUDENT, TEACHER, recombination="trained", tailors="none", contrastive=0)
    assert len(none.state_dict()) == 2
    assert set(create_method("kt", CLASSES, STUDENT, TEACHER, tailors="none").state_dict()) == {
        "tailoring.decoder.student_projector.weight"
    }


def agreeing() -> Method:
    return create_method("kt", CLASSES, STUDENT, TEACHER, switch="agreement", **{**ALONE, "ft": 1})


def test_the_agreement_moves_by_the_early_correlation_and_mixes_the_phases() -> None:
    method, fixed = agreeing(), create_method("kt", CLASSES, STUDENT, TEACHER, **{**ALONE, "ft": 1})
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    early, late = (fixed(student, teacher, target, progress)["ft"].item() for progress in (EARLY, LATE))
    agreement, expected = method.agreements["decoder"].value, 0.0
    for progress in (LATE, EARLY, LATE):
        value = method(student, teacher, target, progress)["ft"]
        value.backward()
        assert value.item() == pytest.approx((1 - expected) * early + expected * late, rel=1e-5)
        expected = 0.99 * expected + 0.01 * (1 - early)
        assert agreement.item() == pytest.approx(expected, rel=1e-5)
    assert method.couples_images


def test_the_agreement_rests_in_evaluation_and_passes_void_images_over() -> None:
    method, student, teacher = agreeing(), output(STUDENT), output(TEACHER, seed=2)
    agreement = method.agreements["decoder"].value
    with torch.no_grad():
        method(student, teacher, labels(), EARLY)
    method.eval()(student, teacher, labels(), EARLY)
    method.train()(student, teacher, torch.full((2, 46, 63), 255), EARLY)
    assert agreement.item() == 0
    target = labels()
    target[1] = 255
    method(student, teacher, target, EARLY)
    alone = agreeing()
    for item in (student, teacher):
        assert item.feature is not None
        item.logits, item.aux_logits, item.feature = item.logits[:1], None, item.feature[:1]
    alone(student, teacher, target[:1], EARLY)
    torch.testing.assert_close(agreement, alone.agreements["decoder"].value)


def test_the_agreement_resumes() -> None:
    def steps(method: Method, numbers: range) -> list[float]:
        return [
            method(output(STUDENT, seed=n), output(TEACHER, seed=-n), labels(), EARLY)["ft"].item() for n in numbers
        ]

    whole, first, second = agreeing(), agreeing(), agreeing()
    values = steps(whole, range(1, 6))
    steps(first, range(1, 4))
    second.load_state_dict(first.state_dict())
    assert steps(second, range(4, 6)) == values[3:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recombination": "trained"}, "'recombination': .*set contrastive: 0"),
        ({"switch": "agreement", "ft": 0}, "'switch': .*measured by ft"),
        ({"variant": "published", "recombination": "trained", "contrastive": 0}, "'recombination': .*variant: clean"),
        ({"variant": "published", "tailors": "none"}, "'tailors': .*variant: clean"),
        ({"variant": "published", "switch": "agreement"}, "'switch': .*variant: clean"),
        ({"variant": "published", "moments": "batch"}, "'moments': .*variant: clean"),
        ({"variant": "published", "ft_end": 0}, "'ft_end': .*variant: clean"),
        ({"variant": "published", "boundary": 1}, "'boundary': .*variant: clean"),
        ({"variant": "published", "boundary_width": 5}, "'boundary_width': .*variant: clean"),
        ({"variant": "published", "balance": "gradient"}, "'balance': .*variant: clean"),
    ],
)
def test_options_that_do_not_go_together_are_refused_in_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as error:
        check_options("kt", options)
    assert "\n" not in str(error.value)


def test_published_takes_what_changes_nothing() -> None:
    options = {"recombination": "correlation", "switch": "fixed", "boundary": 0, "balance": "none"}
    assert check_options("kt", {"variant": "published", **options}) == check_options("kt", {"variant": "published"})
