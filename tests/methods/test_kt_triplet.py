"""The clean triplet against the formula in plain autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segtailor.losses import standardize
from segtailor.methods._kt_terms import channel_squares, triplet

MARGIN = 0.1


def case() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return a student, a projector, both goals and the weights; void positions, and one image that is all void."""
    generator = torch.Generator().manual_seed(3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    valid = torch.tensor([[4, 4, 0, 2, 4, 4], [1, 0, 3, 4, 4, 4], [0] * 6], dtype=torch.float64)
    near, far = (standardize(draw(3, 5, 2, 3), valid) for _ in range(2))
    return draw(3, 4, 2, 3).requires_grad_(), draw(5, 4).requires_grad_(), near, far, valid


def plain(student: Tensor, projector: Tensor | None, near: Tensor, far: Tensor, valid: Tensor) -> Tensor:
    anchor = student if projector is None else torch.einsum("dc,bchw->bdhw", projector, student)
    anchor = standardize(anchor, valid)
    to_near, to_far = ((channel_squares(anchor, goal, valid) + 1e-6).sqrt() for goal in (near, far))
    hinge = (to_near - to_far + MARGIN).relu()
    assert (hinge[:2] > 0).any()
    assert (hinge[:2] == 0).any()
    return (hinge * (valid.sum(1, keepdim=True) > 0)).mean()


@pytest.mark.parametrize("projected", [True, False])
def test_value_and_gradients_are_the_formulas(projected: bool) -> None:
    student, projector, near, far, valid = case()
    if not projected:
        near, far = near[:, :4], far[:, :4]
    given = (student, projector) if projected else (student,)
    matrix = projector if projected else None
    expected, value = plain(student, matrix, near, far, valid), triplet(student, matrix, near, far, valid, MARGIN)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * value, given), torch.autograd.grad(3 * expected, given))


def test_a_frozen_projector_has_no_gradient_and_the_student_the_same() -> None:
    student, projector, near, far, valid = case()
    (expected,) = torch.autograd.grad(triplet(student, projector, near, far, valid, MARGIN), student)
    value = triplet(student, projector.detach(), near, far, valid, MARGIN)
    torch.testing.assert_close(torch.autograd.grad(value, student)[0], expected)


def test_channels_that_do_not_vary_and_wholly_void_images_are_finite() -> None:
    student, projector, near, far, valid = case()
    flat = torch.zeros_like(student).requires_grad_()
    for weights in (valid, torch.zeros_like(valid)):
        value = triplet(flat, projector, near, far, weights, MARGIN)
        for gradient in torch.autograd.grad(value, (flat, projector)):
            assert gradient.isfinite().all()
    assert triplet(student, projector, near, far, torch.zeros_like(valid), MARGIN) == 0
