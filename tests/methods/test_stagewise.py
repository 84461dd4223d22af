from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.losses import channel_kl, standardize, valid_counts
from segtailor.methods import create_method
from segtailor.methods.stagewise import CHUNK, regression

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .tester import MethodTester


class TestStagewise(MethodTester):
    name = "stagewise"
    minimal: ClassVar = frozenset({"kd"})
    terms = frozenset({"kd", "regression.feature", "regression.stages.0", "regression.stages.1"})


def correlation_loss(first: Tensor, second: Tensor, weight: Tensor) -> float:
    """Return 1 - correlation of two maps (C,n), averaged over channels; ``weight`` (n) sums to 1."""
    total = 0.0
    for a, b in zip(first.double(), second.double(), strict=True):
        a, b = a - (a * weight).sum(), b - (b * weight).sum()
        spread = ((a * a * weight).sum() * (b * b * weight).sum()).sqrt()
        total += 1 - ((a * b * weight).sum() / spread).item()
    return total / len(first)


def test_terms_by_hand() -> None:
    method = create_method("stagewise", CLASSES, STUDENT, TEACHER, taps=["feature"], regression=3, kd=2, temperature=5)
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    terms = method(student, teacher, target, 0.5)
    valid = valid_counts(target, (6, 8))
    close = pytest.approx(2 * channel_kl(student.logits, teacher.logits, 5, valid.unsqueeze(1)).item())
    assert terms["kd"].item() == close
    assert student.feature is not None
    assert teacher.feature is not None
    (layer,) = method.projectors  # type: ignore[misc]
    matrix, expected = layer.weight.detach().flatten(1), 0.0
    for own, guide, counts in zip(standardize(student.feature, valid).detach(), teacher.feature, valid, strict=True):
        expected += correlation_loss(matrix @ own.flatten(1), guide.detach().flatten(1), counts / counts.sum()) / 2
    assert terms["regression"].item() == pytest.approx(3 * expected, rel=1e-4)


def by_maps(student: Tensor, teacher: Tensor, valid: Tensor, matrix: Tensor) -> Tensor:
    projected = torch.einsum("dc,bchw->bdhw", matrix, standardize(student, valid))
    weight = (valid / valid.sum(1, keepdim=True).clamp(min=1)).view(len(valid), 1, *student.shape[2:])
    squares = (standardize(projected, valid) - standardize(teacher, valid)).square()
    return (squares * weight).sum((2, 3)).mean() / 2


@pytest.mark.parametrize("width", [7, CHUNK + 3])
@pytest.mark.parametrize("cells", [(4, 6), (1, 5)], ids=["covariances", "maps"])
def test_the_regression_and_its_gradient_are_those_of_projected_maps(width: int, cells: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(3, 5, *cells, generator=generator, dtype=torch.float64).add_(2).requires_grad_()
    teacher = torch.randn(3, width, *cells, generator=generator, dtype=torch.float64) * 3 - 1
    teacher[1, 2] = 4.0  # a constant channel
    valid = torch.randint(0, 3, (3, cells[0] * cells[1]), generator=generator).double()
    valid[2] = 0
    matrix = torch.randn(width, 5, generator=generator, dtype=torch.float64).requires_grad_()
    found, expected = (compute(student, teacher, valid, matrix) for compute in (regression, by_maps))
    torch.testing.assert_close(found, expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, [student, matrix]), torch.autograd.grad(expected, [student, matrix]), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_regression_keeps_nothing_of_the_teachers_width() -> None:
    student, teacher = torch.randn(2, 4, 30, 40, requires_grad=True), torch.randn(2, 64, 30, 40).bfloat16()
    matrix, valid = torch.randn(64, 4, requires_grad=True), torch.ones(2, 1200)
    known = {student.data_ptr(), matrix.data_ptr(), valid.data_ptr()}
    kept: dict[int, int] = {}

    def pack(value: torch.Tensor) -> torch.Tensor:
        if value.data_ptr() not in known:
            kept[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        regression(student, teacher, valid, matrix).backward()
    assert sum(kept.values()) < teacher.numel() / 6


@pytest.mark.parametrize(
    ("student", "teacher", "taps"),
    [
        (STUDENT, TEACHER, ["feature", "stages.0", "stages.1"]),
        ({"feature": 4, "stages.0": 3}, TEACHER, ["feature", "stages.0"]),
        ({"feature": 4}, TEACHER, ["feature"]),
        ({"stages.1": 4, "stages.10": 5, "stages.2": 6}, {"stages.2": 4, "stages.10": 5}, ["stages.2", "stages.10"]),
    ],
)
def test_all_taps_are_those_that_both_networks_have(
    student: dict[str, int], teacher: dict[str, int], taps: list[str]
) -> None:
    method = create_method("stagewise", CLASSES, student, teacher)
    assert method.taps == taps
    assert method.inputs - {"logits"} == set(taps)


def test_networks_without_any_tap_are_one_line_and_logits_alone_need_none() -> None:
    with pytest.raises(SegtailorError, match="the teacher") as error:
        create_method("stagewise", CLASSES, {"feature": 4}, {})
    assert "\n" not in str(error.value)
    assert create_method("stagewise", CLASSES, {}, {}, regression=0).inputs == {"logits"}


def test_the_regression_learns() -> None:
    method = create_method("stagewise", CLASSES, STUDENT, TEACHER, kd=0)
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    optimizer, values = torch.optim.Adam(method.parameters(), 0.02), []
    for _ in range(60):
        optimizer.zero_grad()
        value = torch.stack(tuple(method(student, teacher, target, 0.5).values())).sum()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < values[0] - 0.4
