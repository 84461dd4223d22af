from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from segtailor.errors import SegtailorError
from segtailor.methods import check_options, create_method

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .golden import CLASSES as GOLDEN_CLASSES
from .golden import STUDENT_WIDTH, TEACHER_WIDTH, assert_equals_golden, module_state
from .tester import MethodTester


class TestFitNet(MethodTester):
    name = "fitnet"
    terms = frozenset({"fitnet"})


class TestFitNetPublished(MethodTester):
    name = "fitnet"
    options: ClassVar = {"variant": "published"}
    void_matters = True
    terms = frozenset({"fitnet"})


def test_equals_the_golden_figure() -> None:
    method = create_method("fitnet", GOLDEN_CLASSES, STUDENT_WIDTH, TEACHER_WIDTH, variant="published")
    method.load_state_dict(module_state("fitnet."))
    assert_equals_golden("fitnet", method, "fitnet", scale=10)


@pytest.mark.parametrize("variant", ["published", "clean"])
def test_equals_plain_loops(variant: str) -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    torch.manual_seed(0)
    method = create_method("fitnet", CLASSES, STUDENT, TEACHER, variant=variant, fitnet=2.0)
    weight = method.get_parameter("projector.weight")[:, :, 0, 0]
    tap = "feature" if variant == "clean" else "classifier_input"
    own, guide = getattr(student, tap), getattr(teacher, tap)
    height, width = target.shape[1:]
    total, count = 0.0, 0
    for image in range(2):
        cells = [(i, j) for i in range(6) for j in range(8)]
        if variant == "clean":  # one cell for each valid label pixel
            pixels = [(i, j) for i in range(height) for j in range(width) if target[image, i, j] != 255]
            cells = [(i * 6 // height, j * 8 // width) for i, j in pixels]
        for i, j in cells:
            error = weight @ own[image, :, i, j] - guide[image, :, i, j]
            total += error.square().mean().item()
            count += 1
    value = method(student, teacher, target, 0.5)["fitnet"]
    torch.testing.assert_close(value.item(), 2 * total / count, rtol=1e-5, atol=0)


def test_equal_widths_have_a_projector_and_weight_0_has_none() -> None:
    assert create_method("fitnet", 4, 8, 8).get_parameter("projector.weight").shape == (8, 8, 1, 1)
    method = create_method("fitnet", CLASSES, {}, {}, fitnet=0)
    assert not list(method.parameters())
    assert not method.inputs
    assert method.labels == "unused"
    assert method(output(STUDENT), output(TEACHER), None, 0.5) == {}


def test_a_wrong_weight_is_one_line() -> None:
    with pytest.raises(SegtailorError, match=r"option 'fitnet': .*greater than or equal to 0"):
        check_options("fitnet", {"fitnet": -1})
