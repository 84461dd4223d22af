"""What counts how much: pixels near a boundary, and terms by the length of their gradients."""

from __future__ import annotations

import doctest
import importlib
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segtailor.methods import Method, create_method
from segtailor.methods.tailoring.balance import cell_cross_entropy
from segtailor.methods.tailoring.boundary import boundary_band

from .cases import CLASSES, STUDENT, TEACHER, changed, labels, output
from .processes import Pair, TinyNet, step_gradients
from .tester import EARLY, LATE, PHASES, MethodTester, uneven_labels

LOGIT_TERMS = frozenset({"kd", "kd_aux", "lt_all", "lt_class", "lt_nonclass"})
BALANCED: dict[str, Any] = {"balance": "gradient", "margin": 2.0}
ALONE = dict.fromkeys((*LOGIT_TERMS, "ft", "contrastive"), 0)


class TestKTBalanced(MethodTester):
    phased = True
    name = "kt"
    options: ClassVar = {**BALANCED, "boundary": 3, "boundary_width": 2}
    terms = LOGIT_TERMS | {"ft", "contrastive"}

    def test_two_processes_equal_one_in_their_first_step(self, progress: float, pair: Pair) -> None:
        # Beyond what it declares: the measured lengths are those of the global batch.
        alone = step_gradients(self.name, self.options, progress, uneven_labels(), 1)
        shared = pair.step(self.name, self.options, progress, uneven_labels(), 1)
        for key, value in alone.items():
            torch.testing.assert_close(shared[key], value, rtol=1e-4, atol=1e-5, msg=key)


def test_the_band_is_what_a_search_finds() -> None:
    target = labels(2, (20, 24))
    target[:, 8:10, 5:15] = 255
    target[0, 3, 3] = 17  # no class
    for width in (1, 3):
        band = boundary_band(target, CLASSES, width)
        for image, found in zip(target.tolist(), band.tolist(), strict=True):
            for row in range(20):
                for column in range(24):
                    window = {
                        image[y][x]
                        for y in range(max(0, row - width), min(20, row + width + 1))
                        for x in range(max(0, column - width), min(24, column + width + 1))
                        if image[y][x] < CLASSES
                    }
                    own = image[row][column]
                    assert found[row][column] == (own if own < CLASSES and len(window) > 1 else 255)


def repeated_pixels(image: Tensor, band: Tensor, times: int) -> list[tuple[int, int]]:
    """Return (cell, class) of every valid pixel, those of the band ``times`` times."""
    pixels = []
    height, width = image.shape
    for row in range(height):
        for column in range(width):
            if image[row, column] != 255:
                cell = row * 6 // height * 8 + column * 8 // width
                count = times if band[row, column] != 255 else 1
                pixels += [(cell, int(image[row, column]))] * count
    return pixels


def kl(own: Tensor, guide: Tensor) -> Tensor:
    """KL(guide || own) between softmaxes over the only axis."""
    return (guide.softmax(0) * (guide.log_softmax(0) - own.log_softmax(0))).sum()


def test_boundary_pixels_count_as_if_they_were_there_several_times() -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    one = dict.fromkeys(LOGIT_TERMS, 1)
    method = create_method("kt", CLASSES, STUDENT, TEACHER, **{**ALONE, **one}, boundary=2, boundary_width=2)
    values = method(student, teacher, target, EARLY)
    band = boundary_band(target, CLASSES, 2)
    expected = dict.fromkeys(sorted(LOGIT_TERMS), 0.0)
    for image in range(2):
        pixels = repeated_pixels(target[image], band[image], 3)
        cells = torch.tensor([cell for cell, _ in pixels])
        classes = torch.tensor([label for _, label in pixels])
        maps = {
            key: value[image].detach().double().flatten(1)[:, cells]
            for key, value in (("s", student.logits), ("t", teacher.logits))
        }
        for one_class in range(CLASSES):
            own, guide, inside = maps["s"][one_class], maps["t"][one_class], classes == one_class
            expected["kd"] += kl(own, guide).item() / CLASSES / 2
            tailored = guide.clone()
            right = inside & (maps["t"].argmax(0) == one_class)
            if inside.any():
                mean = guide[right if right.any() else inside].mean()
                tailored[inside] = guide[inside].clamp(min=mean)
                present = len(classes.unique())
                expected["lt_class"] += kl(own[inside], tailored[inside]).item() / present / 2
            tailored[~inside] = guide[~inside].clamp(max=guide[~inside].mean())
            expected["lt_all"] += kl(own, tailored).item() / CLASSES / 2
            expected["lt_nonclass"] += kl(own[~inside], tailored[~inside]).item() / CLASSES / 2
    for term in ("kd", "lt_all", "lt_class", "lt_nonclass"):
        assert values[term].item() == pytest.approx(expected[term], rel=1e-4), term


@PHASES
def test_no_boundary_leaves_every_value_as_it_is(progress: float) -> None:
    terms = [
        create_method("kt", CLASSES, STUDENT, TEACHER, **options)(
            output(STUDENT), output(TEACHER, seed=2), labels(), progress
        )
        for options in ({}, {"boundary": 0, "boundary_width": 7}, {"boundary": 5})
    ]
    torch.testing.assert_close(terms[1], terms[0], rtol=0, atol=0)
    for term, value in terms[0].items():
        assert torch.equal(terms[2][term], value) == (term in ("ft", "contrastive")), term


def test_boundaries_need_labels_for_more_than_void() -> None:
    only = {**ALONE, "kd": 1}
    assert create_method("kt", CLASSES, STUDENT, TEACHER, **only).void_only
    assert not create_method("kt", CLASSES, STUDENT, TEACHER, **only, boundary=1).void_only
    assert not create_method("kt", CLASSES, STUDENT, TEACHER, **only, balance="gradient").void_only


def test_the_measuring_cross_entropy_is_that_of_logits_enlarged_to_the_labels() -> None:
    logits, target = output(STUDENT).logits, labels()
    enlarged = F.interpolate(logits, size=(46, 63), mode="nearest")
    expected = F.cross_entropy(enlarged, target.long(), ignore_index=255)
    torch.testing.assert_close(cell_cross_entropy(logits, target), expected)
    assert cell_cross_entropy(logits, torch.full_like(target, 255)) == 0


def length(value: Tensor, place: Tensor) -> float:
    (gradient,) = torch.autograd.grad(value, place, retain_graph=True)
    return gradient.norm().item()


@PHASES
@pytest.mark.parametrize("switch", ["fixed", "agreement"])
def test_each_gradient_is_its_weight_times_the_cross_entropys(progress: float, switch: str) -> None:
    weights = {"kd": 2, "kd_aux": 0.5, "lt_all": 1, "lt_class": 0.3, "lt_nonclass": 0.2, "ft": 0.7, "contrastive": 0.1}
    options: dict[str, Any] = {**BALANCED, "switch": switch, "feature_taps": ["decoder", "stages.1"]}
    method = create_method("kt", CLASSES, STUDENT, TEACHER, **weights, **options)
    target = labels(2, (48, 64))
    images = torch.randn(2, 3, 48, 64, generator=torch.Generator().manual_seed(3))
    student, teacher = TinyNet(STUDENT, 1)(images), TinyNet(TEACHER, 4)(images)
    terms = method(student, teacher, target, progress)
    assert student.aux_logits is not None
    assert student.feature is not None
    main, aux = (
        F.cross_entropy(F.interpolate(logits, size=(48, 64)), target.long(), ignore_index=255)
        for logits in (student.logits, student.aux_logits)
    )
    for term, value in terms.items():
        place = student.aux_logits if term == "kd_aux" else student.logits
        if "." in term:
            place = student.feature if term.endswith("decoder") else student.stages[1]
        task = length(aux if term == "kd_aux" else main, place)
        assert length(value, place) == pytest.approx(weights[term.split(".")[0]] * task, rel=1e-3), term
    assert all(value.grad is None for value in method.parameters())


def kd_alone(**options: Any) -> Method:
    return create_method("kt", CLASSES, STUDENT, TEACHER, **{**ALONE, "kd": 1, **BALANCED, **options})


def test_the_factor_is_a_running_mean_that_rests_in_evaluation_and_resumes() -> None:
    method, target, expected = kd_alone(), labels(), 0.0
    for seed in range(1, 4):
        student, teacher = output(STUDENT, seed=seed), output(TEACHER, seed=9)
        plain = create_method("kt", CLASSES, STUDENT, TEACHER, **{**ALONE, "kd": 1})(student, teacher, target, EARLY)[
            "kd"
        ]
        ratio = length(cell_cross_entropy(student.logits, target), student.logits) / length(plain, student.logits)
        expected = ratio if seed == 1 else 0.9 * expected + 0.1 * ratio
        value = method(student, teacher, target, EARLY)["kd"]
        assert value.item() == pytest.approx(expected * plain.item(), rel=1e-4)
    resumed = kd_alone()
    resumed.load_state_dict(method.state_dict())
    with torch.no_grad():
        student = output(STUDENT, seed=7)
        values = [item(student, teacher, target, LATE)["kd"] for item in (method, resumed, method.eval())]
    assert values[0] == values[1] == values[2]
    assert method.eval()(student, teacher, target, LATE)["kd"] == values[0]
    assert method.balance.factor("kd").item() == pytest.approx(expected, rel=1e-4)


def test_what_cannot_be_measured_keeps_its_factor() -> None:
    method = create_method("kt", CLASSES, STUDENT, TEACHER, **BALANCED)
    plain = create_method("kt", CLASSES, STUDENT, TEACHER, margin=2.0)
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    terms, expected = (item(student, teacher, labels(), EARLY) for item in (method, plain))
    for term in ("ft", "contrastive"):  # leaves: the logits do not depend on the feature
        assert method.balance.factor(term) == 1
        assert torch.equal(terms[term], expected[term])
    assert method.balance.factor("kd") not in (0, 1)
    for case in ("void", "equal"):
        method = kd_alone()
        target = torch.full_like(labels(), 255) if case == "void" else labels()
        own = changed(teacher, lambda tensor: tensor) if case == "equal" else student
        assert method(own, teacher, target, EARLY)["kd"].item() == pytest.approx(0, abs=1e-6)
        assert method.balance.factor("kd") == 1


def test_an_overlong_ratio_is_cut() -> None:
    method, teacher = kd_alone(), output(STUDENT, seed=2)
    near = changed(teacher, lambda tensor: tensor + 1e-6 * torch.arange(tensor.shape[3]))
    method(near, teacher, labels(), EARLY)
    assert 1 < method.balance.factor("kd") <= 1e4


@pytest.mark.parametrize("module", ["balance", "boundary", "running"])
def test_examples_of_the_documentation(module: str) -> None:
    results = doctest.testmod(importlib.import_module(f"segtailor.methods.tailoring.{module}"))
    assert results.attempted > 0
    assert results.failed == 0
