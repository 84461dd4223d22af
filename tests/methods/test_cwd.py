from __future__ import annotations

from typing import ClassVar

import torch

from segtailor.methods import create_method

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .tester import MethodTester


class TestChannelWise(MethodTester):
    name = "cwd"
    minimal: ClassVar = frozenset({"cwd_logits"})
    terms = frozenset({"cwd_logits", "cwd_feature"})


class TestChannelWisePublished(MethodTester):
    name = "cwd"
    minimal: ClassVar = frozenset({"cwd_logits"})
    options: ClassVar = {"variant": "published"}
    void_matters = True
    terms = frozenset({"cwd_logits", "cwd_feature"})


class TestChannelWiseOnLogits(MethodTester):
    name = "cwd"
    minimal: ClassVar = frozenset({"cwd_logits"})
    options: ClassVar = {"feature": 0}
    terms = frozenset({"cwd_logits"})


def test_equals_plain_loops_over_valid_cells() -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    height, width = target.shape[1:]
    total = 0.0
    for image in range(2):
        for channel in range(CLASSES):
            pixels = [
                (i * 6 // height, j * 8 // width)
                for i in range(height)
                for j in range(width)
                if target[image, i, j] != 255
            ]
            rows, columns = torch.tensor(pixels).T
            own = (student.logits[image, channel, rows, columns] / 2).log_softmax(0)
            guide = (teacher.logits[image, channel, rows, columns] / 2).log_softmax(0)
            total += 4 * (guide.exp() * (guide - own)).sum().item() / (2 * CLASSES)
    method = create_method("cwd", CLASSES, STUDENT, TEACHER, logits=1, feature=0, temperature=2)
    value = method(student, teacher, target, 0.5)["cwd_logits"]
    torch.testing.assert_close(value.item(), total, rtol=1e-5, atol=0)


def test_without_a_feature_term_there_is_no_projector() -> None:
    assert not list(create_method("cwd", 4, {}, {}, feature=0).parameters())


def test_equal_widths_need_no_projector() -> None:
    assert not list(create_method("cwd", 4, 8, 8).parameters())
