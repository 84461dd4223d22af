from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.methods import check_options, create_method
from segtailor.methods.skd import pair_differences, pooled_units
from segtailor.models.network import SegOutput

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .golden import CLASSES as GOLDEN_CLASSES
from .golden import STUDENT_WIDTH, TEACHER_WIDTH, assert_equals_golden
from .tester import MethodTester, NoSyncNoFullSize


class TestPairwise(MethodTester):
    name = "skd"
    minimal: ClassVar = frozenset({"pairwise"})
    terms = frozenset({"pairwise"})


class TestPairwisePublished(MethodTester):
    name = "skd"
    minimal: ClassVar = frozenset({"pairwise"})
    options: ClassVar = {"variant": "published"}
    void_matters = True
    terms = frozenset({"pairwise"})


class TestPairwiseUnpooled(MethodTester):
    name = "skd"
    minimal: ClassVar = frozenset({"pairwise"})
    options: ClassVar = {"pool": 1}
    terms = frozenset({"pairwise"})


class TestPairwiseOfFewNodes(MethodTester):
    name = "skd"
    minimal: ClassVar = frozenset({"pairwise"})
    options: ClassVar = {"nodes": 2, "pairwise": 100}
    size_matters = True  # a larger crop has larger windows
    terms = frozenset({"pairwise"})


def test_equals_the_golden_figure() -> None:
    options = {"variant": "published", "pairwise": 1}
    method = create_method("skd", GOLDEN_CLASSES, STUDENT_WIDTH, TEACHER_WIDTH, **options)
    assert_equals_golden("skd.pairwise", method, "pairwise")


def windows_of(size: tuple[int, int], window: tuple[int, int]) -> list[list[tuple[int, int]]]:
    """Return the cells of each window, the last ones cut off at the edge."""
    rows, columns = (math.ceil(side / step) for side, step in zip(size, window, strict=True))
    return [
        [
            (i, j)
            for i in range(row * window[0], min(size[0], (row + 1) * window[0]))
            for j in range(column * window[1], min(size[1], (column + 1) * window[1]))
        ]
        for row in range(rows)
        for column in range(columns)
    ]


@pytest.mark.parametrize("variant", ["published", "clean"])
@pytest.mark.parametrize(
    ("options", "window"), [({}, (2, 2)), ({"pool": 3}, (3, 3)), ({"nodes": 2}, (3, 3)), ({"nodes": 9}, (1, 1))]
)
def test_equals_plain_loops(variant: str, options: dict[str, Any], window: tuple[int, int]) -> None:
    size = (7, 6)
    student, teacher = output(STUDENT, size=size), output(TEACHER, size=size, seed=2)
    target = labels(size=(47, 45))
    target[0, :14, :16] = 255  # a window of 2 x 2 with nothing valid, and void cells beside valid ones
    target[0, 27, 30] = 255
    tap = "feature" if variant == "clean" else "classifier_input"
    total = 0.0
    for image in range(2):
        inside = {(i * 7 // 47, j * 6 // 45) for i in range(47) for j in range(45) if target[image, i, j] != 255}
        nodes = windows_of(size, window)
        if variant == "clean":
            assert 0 < len(inside) < 42
            nodes = [kept for cells in nodes if (kept := [cell for cell in cells if cell in inside])]
        units: list[list[Tensor]] = []
        for network in (student, teacher):
            feature = getattr(network, tap)[image].detach().double()
            pooled = [torch.stack([feature[:, i, j] for i, j in cells]).max(0).values for cells in nodes]
            units.append([vector / vector.norm().clamp(min=1e-4) for vector in pooled])
        errors = [
            (units[0][i] @ units[0][j] - units[1][i] @ units[1][j]).item() ** 2
            for i in range(len(nodes))
            for j in range(len(nodes))
        ]
        total += sum(errors) / len(errors) / 2
    method = create_method("skd", CLASSES, STUDENT, TEACHER, variant=variant, **options)
    value = method(student, teacher, target, 0.5)["pairwise"]
    torch.testing.assert_close(value.item(), 10 * total, rtol=1e-5, atol=0)


@pytest.mark.parametrize("rows", [512, 7])
def test_blocks_of_rows_give_the_value_and_gradient_of_the_whole(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    student = torch.randn(2, 3, 1300, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(2, 5, 1300, dtype=torch.float64)
    weight = torch.tensor([1.0, -2.0], dtype=torch.float64)
    whole = (student.mT @ student - teacher.mT @ teacher).square().sum((1, 2))
    if rows < 512:
        monkeypatch.setattr("segtailor.methods.skd.ENTRIES", 2 * rows * 1300)
    with NoSyncNoFullSize(2 * rows * 1300 + 1):
        blocks = pair_differences(student, teacher)
    torch.testing.assert_close(blocks, whole)
    gradients = [torch.autograd.grad((weight * value).sum(), student)[0] for value in (blocks, whole)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("variant", ["published", "clean"])
def test_no_tensor_holds_all_pairs(variant: str) -> None:
    size = (64, 64)
    student, teacher = (output({**STUDENT, "feature": 4}, 1, size, seed) for seed in (1, 2))
    method = create_method("skd", CLASSES, 4, 4, variant=variant)
    target = labels(1, size)
    with NoSyncNoFullSize(1024 * 1024):
        method(student, teacher, target, 0.5)["pairwise"].backward()


def test_a_small_difference_does_not_cancel() -> None:
    # The traces of Gram matrices would give 0 or less here in float32, since 1e-8 is lost beside 1e6.
    torch.manual_seed(0)
    units = pooled_units(torch.randn(1, 8, 32, 32), None, (1, 1), 1e-12)
    other = units + 1e-7 * torch.randn_like(units)
    exact = pair_differences(other.double(), units.double())
    torch.testing.assert_close(pair_differences(other, units).double(), exact, rtol=0.3, atol=0)


def test_a_rotation_of_the_student_does_not_matter() -> None:
    # Max pooling is no rotation's friend, hence `pool` 1.
    method = create_method("skd", CLASSES, STUDENT, STUDENT, pool=1)
    teacher = output(STUDENT).detach()
    assert teacher.feature is not None
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(0)))[0]
    rotated = SegOutput(teacher.logits, feature=torch.einsum("dc,bchw->bdhw", rotation, teacher.feature))
    assert method(rotated, teacher, labels(), 0.5)["pairwise"] < 1e-8
    shifted = SegOutput(teacher.logits, feature=teacher.feature + 1)
    assert method(shifted, teacher, labels(), 0.5)["pairwise"] > 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pairwise": -1}, "option 'pairwise': .*greater than or equal to 0"),
        ({"pool": 0}, "option 'pool': .*greater than 0"),
        ({"nodes": 0}, "option 'nodes': .*greater than 0"),
        ({"pol": 2}, "unknown option of method 'skd' 'pol'; nearest: pool"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as error:
        check_options("skd", options)
    assert "\n" not in str(error.value)


def test_a_teacher_without_a_feature_is_refused_and_weight_0_needs_none() -> None:
    with pytest.raises(SegtailorError, match="tap of the teacher"):
        create_method("skd", CLASSES, 8, {"stages.0": 8})
    method = create_method("skd", CLASSES, {}, {}, pairwise=0)
    assert not method.inputs
    assert method.labels == "unused"
    assert method(output(STUDENT), output(TEACHER), None, 0.5) == {}
