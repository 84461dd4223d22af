from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.methods import Method, create_method
from segtailor.methods.dist import NEGLIGIBLE, correlation, intra_by_image, probabilities

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .golden import CLASSES as GOLDEN_CLASSES
from .golden import STUDENT_WIDTH, TEACHER_WIDTH, assert_equals_golden
from .processes import step_gradients
from .test_closed_form import close, wave
from .tester import MethodTester


class TestDIST(MethodTester):
    name = "dist"
    minimal: ClassVar = frozenset({"inter", "inter_aux", "intra", "intra_aux"})
    terms = frozenset({"inter", "intra", "inter_aux", "intra_aux"})


class TestDISTPublished(MethodTester):
    name = "dist"
    minimal: ClassVar = frozenset({"inter", "inter_aux", "intra", "intra_aux"})
    couples_images = True
    options: ClassVar = {"variant": "published"}
    void_matters = True
    terms = frozenset({"inter", "intra", "inter_aux", "intra_aux"})


class TestDISTStandardised(MethodTester):
    name = "dist"
    minimal: ClassVar = frozenset({"inter", "intra"})
    options: ClassVar = {"standardise": True, "temperature": 2, "aux": 0}
    terms = frozenset({"inter", "intra"})


class TestDISTOfPixelsAlone(MethodTester):
    name = "dist"
    minimal: ClassVar = frozenset({"inter"})
    options: ClassVar = {"variant": "published", "intra": 0, "aux": 0}
    void_matters = True
    terms = frozenset({"inter"})


class Sum(torch.nn.Module):
    """Both terms of the main logits as one, which is what the golden file holds."""

    def __init__(self, method: Method) -> None:
        super().__init__()
        self.method = method

    def forward(self, *inputs: Any) -> dict[str, Tensor]:
        terms = self.method(*inputs)
        return {"dist": terms["inter"] + terms["intra"]}


def test_equals_the_golden_figure() -> None:
    method = create_method("dist", GOLDEN_CLASSES, STUDENT_WIDTH, TEACHER_WIDTH, variant="published", aux=0)
    assert_equals_golden("dist", Sum(method), "dist")  # type: ignore[arg-type]


def test_equals_the_closed_form_figures() -> None:
    shape = (2, 5, 4, 8)
    own, guide = probabilities(3 * wave(shape, 0.23, "cos") + 0.5), probabilities(4 * wave(shape, 0.37, "sin"))
    close(1 - correlation(own, guide, 1).mean(), 1.000536722615)
    close(1 - correlation(own, guide, (0, 2)).mean(), 1.007533829624)


def pearson(first: Tensor, second: Tensor, pseudo: float = 0.0) -> float:
    first, second = first - first.mean(), second - second.mean()
    top, square = (first * second).mean() + pseudo, (first.square().mean() + pseudo) * (second.square().mean() + pseudo)
    return (top / square.sqrt()).item()


def test_clean_equals_plain_loops_over_valid_pixels() -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    with torch.no_grad():  # what the teacher never sees, and what it sees only in image 0
        teacher.logits[:, 4] = -40
        teacher.logits[1, 3] = -8
    own, guide = ((values.logits.double() / 2).softmax(1) for values in (student, teacher))
    height, width = target.shape[1:]
    inter, count, intra = 0.0, 0, 0.0
    for image in range(2):
        pixels = [
            (i * 6 // height, j * 8 // width) for i in range(height) for j in range(width) if target[image, i, j] != 255
        ]
        inter += sum(1 - pearson(own[image, :, i, j], guide[image, :, i, j]) for i, j in pixels)
        count += len(pixels)
        rows, columns = torch.tensor(pixels).T
        total, shares = 0.0, 0.0
        for label in range(CLASSES):
            first, second = own[image, label, rows, columns], guide[image, label, rows, columns]
            variance = second.var(correction=0).item()
            share = variance / (variance + NEGLIGIBLE)
            assert (share < 1e-6) == (label == 4)
            total += share * (1 - pearson(first, second, NEGLIGIBLE))
            shares += share
        intra += total / shares / 2
    method = create_method("dist", CLASSES, STUDENT, TEACHER, temperature=2, inter=3, intra=5, aux=0)
    terms = method(student, teacher, target, 0.5)
    torch.testing.assert_close(terms["inter"].item(), 3 * inter / count, rtol=1e-5, atol=0)
    torch.testing.assert_close(terms["intra"].item(), 5 * intra, rtol=1e-5, atol=0)


def test_a_wholly_void_image_adds_nothing_and_the_mean_counts_it() -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    own, guide = probabilities(student.logits), probabilities(teacher.logits)
    valid = torch.ones(2, 48)
    valid[1] = 0
    rows = intra_by_image(own, guide, valid)
    assert rows[0] > 0.5
    assert rows[1] == 0
    target[1] = 255
    create_method("dist", CLASSES, STUDENT, TEACHER)(student, teacher, target, 0.5)["intra"].backward()
    assert student.logits.grad is not None
    assert student.logits.grad[0].any()
    assert not student.logits.grad[1].any()


def test_auxiliary_terms_are_weighted_and_go_where_a_network_has_no_auxiliary_logits() -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    method = create_method("dist", CLASSES, STUDENT, TEACHER, aux=0.25, intra=0)
    student.logits, teacher.logits = student.aux_logits, teacher.aux_logits  # type: ignore[assignment]
    terms = method(student, teacher, target, 0.5)
    torch.testing.assert_close(terms["inter_aux"], 0.25 * terms["inter"])
    student.aux_logits = None
    assert set(method(student, teacher, target, 0.5)) == {"inter"}


def test_of_the_published_terms_only_intra_couples_images() -> None:
    for intra in (0, 1):
        options = {"variant": "published", "intra": intra}
        alone, parts = (step_gradients("dist", options, 0.5, labels(4), count) for count in (1, 2))
        assert all(torch.allclose(parts[key], alone[key], rtol=1e-4, atol=1e-5) for key in alone) == (not intra)


@pytest.mark.parametrize("name", ["dist", "kd"])
def test_standardizing_two_classes_is_refused(name: str) -> None:
    with pytest.raises(SegtailorError, match=f"^method '{name}', option 'standardise': two classes.*set it to false$"):
        create_method(name, 2, STUDENT, TEACHER, standardise=True)
