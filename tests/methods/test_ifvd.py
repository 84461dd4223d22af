from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.methods import check_options, create_method
from segtailor.models.network import SegOutput

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .golden import CLASSES as GOLDEN_CLASSES
from .golden import STUDENT_WIDTH, TEACHER_WIDTH, assert_equals_golden
from .tester import MethodTester


class TestClassVariation(MethodTester):
    name = "ifvd"
    minimal: ClassVar = frozenset({"ifvd"})
    terms = frozenset({"ifvd"})


class TestClassVariationPublished(MethodTester):
    name = "ifvd"
    minimal: ClassVar = frozenset({"ifvd"})
    options: ClassVar = {"variant": "published"}  # void forms no centre and adds nothing, also as published
    terms = frozenset({"ifvd"})


def test_equals_the_golden_figure() -> None:
    method = create_method("ifvd", GOLDEN_CLASSES, STUDENT_WIDTH, TEACHER_WIDTH, variant="published")
    assert_equals_golden("ifvd", method, "ifvd", scale=20)


def cosines(feature: Tensor, label: Tensor, eps: float) -> dict[tuple[int, int], Tensor]:
    """Return, by cell, the cosine to the mean of its class; ``feature`` (C,h,w), ``label`` (h,w)."""
    result = {}
    for k in range(CLASSES):
        cells = [(i, j) for i in range(label.shape[0]) for j in range(label.shape[1]) if label[i, j] == k]
        centre = sum((feature[:, i, j] for i, j in cells), torch.zeros(len(feature))) / (len(cells) + 1e-6)
        for i, j in cells:
            own = feature[:, i, j]
            result[i, j] = own @ centre / (own.norm().clamp(min=eps) * centre.norm().clamp(min=eps))
    return result


@pytest.mark.parametrize("variant", ["published", "clean"])
def test_equals_plain_loops(variant: str) -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    target[0, :20] = 255
    tap = "feature" if variant == "clean" else "classifier_input"
    eps = 1e-4 if variant == "clean" else 1e-8
    height, width = target.shape[1:]
    total, count = torch.zeros(()), 0
    for image in range(2):
        label = torch.tensor([[target[image, i * height // 6, j * width // 8] for j in range(8)] for i in range(6)])
        assert 5 not in label  # a class that is absent
        own, guide = (cosines(getattr(network, tap)[image], label, eps) for network in (student, teacher))
        for cell, value in own.items():
            total = total + (value - guide[cell].detach()) ** 2
        count += len(own) if variant == "clean" else 48
    method = create_method("ifvd", CLASSES, STUDENT, TEACHER, variant=variant)
    value = method(student, teacher, target, 0.5)["ifvd"]
    torch.testing.assert_close(value, 20 * total / count, rtol=1e-5, atol=0)
    leaf = getattr(student, tap)
    gradients = [torch.autograd.grad(item, leaf)[0] for item in (value, 20 * total / count)]
    torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-6)


def test_classes_are_not_compared_with_one_another() -> None:
    # Turning one class's vectors as a whole changes no cosine to the class's own mean.
    method = create_method("ifvd", 2, 2, 2)
    target = torch.arange(2).repeat(4).view(1, 2, 4)
    feature = torch.rand(1, 2, 2, 4, generator=torch.Generator().manual_seed(0))
    turned = torch.where(target.unsqueeze(1) == 1, torch.stack((-feature[:, 1], feature[:, 0]), 1), feature)
    outputs = [SegOutput(torch.zeros(1, 2, 2, 4), feature=value) for value in (feature, turned)]
    assert method(*outputs, target, 0.5)["ifvd"] < 1e-10
    assert method(*outputs, torch.zeros_like(target), 0.5)["ifvd"] > 0.1


def test_a_lone_pixel_of_a_class_adds_nothing() -> None:
    method = create_method("ifvd", 2, 2, 2)
    outputs = [SegOutput(torch.zeros(1, 2, 1, 2), feature=torch.randn(1, 2, 1, 2)) for _ in range(2)]
    assert method(*outputs, torch.tensor([[[0, 1]]]), 0.5)["ifvd"] < 1e-10


def test_bad_use_is_one_line() -> None:
    with pytest.raises(SegtailorError, match=r"option 'ifvd': .*greater than or equal to 0"):
        check_options("ifvd", {"ifvd": -1})
    with pytest.raises(SegtailorError, match="method ifvd needs labels"):
        create_method("ifvd", CLASSES, STUDENT, TEACHER)(output(STUDENT), output(TEACHER), None, 0.5)
    with pytest.raises(SegtailorError, match="tap of the teacher"):
        create_method("ifvd", CLASSES, 8, {"stages.0": 8})


def test_weight_0_needs_nothing() -> None:
    method = create_method("ifvd", CLASSES, {}, {}, ifvd=0)
    assert not method.inputs
    assert method.labels == "unused"
    assert method(output(STUDENT), output(TEACHER), None, 0.5) == {}
