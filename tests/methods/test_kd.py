from __future__ import annotations

from typing import ClassVar

import pytest
import torch

from segtailor.methods import create_method

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .tester import MethodTester


class TestPixelKD(MethodTester):
    name = "kd"
    minimal: ClassVar = frozenset({"kd"})
    options: ClassVar = {"temperature": 2}
    terms = frozenset({"kd"})


class TestPixelKDPublished(MethodTester):
    name = "kd"
    minimal: ClassVar = frozenset({"kd"})
    options: ClassVar = {"variant": "published"}
    void_matters = True
    terms = frozenset({"kd"})


class TestPixelKDStandardised(MethodTester):
    name = "kd"
    minimal: ClassVar = frozenset({"kd"})
    options: ClassVar = {"temperature": 2, "standardise": True}
    terms = frozenset({"kd"})


def test_equals_plain_loops_over_standardised_cells() -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    target[target == 4] = 255
    height, width = target.shape[1:]
    values = []
    for image, i, j in (target != 255).nonzero().tolist():
        logs = []
        for logits in (student.logits, teacher.logits):
            cell = logits[image, :, i * 6 // height, j * 8 // width].double()
            logs.append(((cell - cell.mean()) / cell.std() / 2).log_softmax(0))
        values.append(4 * (logs[1].exp() * (logs[1] - logs[0])).sum().item())
    method = create_method("kd", CLASSES, STUDENT, TEACHER, temperature=2, standardise=True)
    value = method(student, teacher, target, 0.5)["kd"]
    torch.testing.assert_close(value.item(), sum(values) / len(values), rtol=1e-5, atol=0)


def test_a_weight_of_0_drops_the_term() -> None:
    assert not create_method("kd", CLASSES, STUDENT, TEACHER, kd=0)(output(STUDENT), output(TEACHER), labels(), 0.5)


@pytest.mark.parametrize("variant", ["published", "clean"])
def test_equals_plain_loops(variant: str) -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    height, width = target.shape[1:]
    total, count = 0.0, 0
    for image in range(2):
        cells = [
            (i * 6 // height, j * 8 // width) for i in range(height) for j in range(width) if target[image, i, j] != 255
        ]
        for row, column in cells if variant == "clean" else [(i, j) for i in range(6) for j in range(8)]:
            own = (student.logits[image, :, row, column] / 3).log_softmax(0)
            guide = (teacher.logits[image, :, row, column] / 3).log_softmax(0)
            total += 9 * (guide.exp() * (guide - own)).sum().item()
            count += 1
    method = create_method("kd", CLASSES, STUDENT, TEACHER, variant=variant, temperature=3, kd=2.0)
    value = method(student, teacher, target, 0.5)["kd"]
    torch.testing.assert_close(value.item(), 2 * total / count, rtol=1e-5, atol=0)
