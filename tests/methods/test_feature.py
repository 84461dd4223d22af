from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from segtailor.errors import SegtailorError
from segtailor.methods import create_method

from .cases import CLASSES, STUDENT, TEACHER, changed, labels, output
from .tester import MethodTester


class TestFeature(MethodTester):
    name = "feature"
    terms = frozenset({"feature"})


class TestFeatureAtUnitNorm(MethodTester):
    name = "feature"
    options: ClassVar = {"normalise": "unit"}
    terms = frozenset({"feature"})


class TestRawFeature(MethodTester):
    name = "feature"
    options: ClassVar = {"normalise": "none", "feature": 3}
    terms = frozenset({"feature"})


class TestFeatureOfAStage(MethodTester):
    name = "feature"
    options: ClassVar = {"tap": "stages.0"}
    terms = frozenset({"feature"})


class TestFeatureOff(MethodTester):
    name = "feature"
    options: ClassVar = {"feature": 0}
    terms = frozenset()


def valid_cells(image: torch.Tensor) -> list[tuple[int, int]]:
    """Return the cell of the 6x8 grid that each valid label pixel falls into."""
    height, width = image.shape
    return [(i * 6 // height, j * 8 // width) for i in range(height) for j in range(width) if image[i, j] != 255]


@pytest.mark.parametrize("normalise", ["standardised", "unit", "none"])
def test_equals_plain_loops(normalise: str) -> None:
    student, teacher, target = output(STUDENT, batch=3), output(TEACHER, batch=3, seed=2), labels(3)
    target[1, :20] = 255
    target[2] = 255  # a wholly void image
    method = create_method("feature", CLASSES, STUDENT, TEACHER, feature=2.0, normalise=normalise)
    assert student.feature is not None
    assert teacher.feature is not None
    lifted = torch.einsum("oc,bchw->bohw", next(method.parameters())[:, :, 0, 0], student.feature).detach()
    total, pixels, images = 0.0, 0, 0.0
    for image in range(3):
        cells = valid_cells(target[image])
        if not cells:
            continue
        rows, columns = torch.tensor(cells).T
        own, guide = lifted[image, :, rows, columns], teacher.feature[image, :, rows, columns].detach()
        if normalise == "standardised":
            for channel in range(10):
                first, second = (
                    (values[channel] - values[channel].mean()) / values[channel].var(correction=0).add(1e-6).sqrt()
                    for values in (own, guide)
                )
                images += sum(((a - b) ** 2).item() for a, b in zip(first, second, strict=True)) / len(cells) / 10
        for index in range(len(cells)):
            a, b = own[:, index], guide[:, index]
            if normalise == "unit":
                total += ((a / a.norm() - b / b.norm()) ** 2).sum().item()
            else:
                total += ((a - b) ** 2).mean().item()
        pixels += len(cells)
    expected = 2 * (images / 3 if normalise == "standardised" else total / pixels)
    value = method(student, teacher, target, 0.5)["feature"]
    torch.testing.assert_close(value.item(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(("normalise", "indifferent"), [("standardised", True), ("unit", False), ("none", False)])
def test_scale_and_offset_of_a_teachers_channel_matter_unless_standardised(normalise: str, indifferent: bool) -> None:
    method = create_method("feature", CLASSES, STUDENT, TEACHER, normalise=normalise)
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    scale = torch.linspace(1, 3, 10).view(-1, 1, 1)
    other = changed(teacher, lambda tensor: tensor * scale + 2 if tensor.shape[1] == 10 else tensor)
    values = [method(student, guide, labels(), 0.5)["feature"] for guide in (teacher, other)]
    assert torch.allclose(values[0], values[1], rtol=1e-3) == indifferent


def test_equal_widths_have_a_projector_unless_told_otherwise() -> None:
    assert [value.shape for value in create_method("feature", CLASSES, 8, 8).parameters()] == [(8, 8, 1, 1)]
    assert not list(create_method("feature", CLASSES, 8, 8, projector="none").parameters())


@pytest.mark.parametrize("normalise", ["standardised", "unit", "none"])
def test_without_a_projector_the_teachers_feature_is_the_minimum(normalise: str) -> None:
    method = create_method("feature", CLASSES, STUDENT, STUDENT, projector="none", normalise=normalise)
    teacher = output(STUDENT, seed=2)
    equal = changed(teacher, lambda tensor: tensor)
    value = method(equal, teacher, labels(), 0.5)["feature"]
    value.backward()
    assert value == 0
    assert equal.feature is not None
    assert equal.feature.grad is not None
    assert not equal.feature.grad.any()
    assert method(output(STUDENT), teacher, labels(), 0.5)["feature"] > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"projector": "none"}, "'projector': 'feature' has 6 channels in the student and 10 in the teacher"),
        ({"tap": "stages.7"}, "unknown tap of the student 'stages.7'; nearest: stages"),
        ({"normalise": "batch"}, "option 'normalise': .*'standardised', 'unit' or 'none'"),
        ({"feature": -1}, "option 'feature': .*greater than or equal to 0"),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as error:
        create_method("feature", CLASSES, STUDENT, TEACHER, **options)
    assert "\n" not in str(error.value)
