from __future__ import annotations

import torch

from segtailor.losses import pixel_kl
from segtailor.methods.kd import standardized

from .test_closed_form import close, wave


def test_pixel_kl_of_standardised_logits_equals_the_closed_form_figure() -> None:
    shape = (2, 5, 4, 8)
    student, teacher = 3 * wave(shape, 0.23, "cos") + 0.5, 4 * wave(shape, 0.37, "sin")
    close(pixel_kl(standardized(student), standardized(teacher), 2), 0.746512308539)


def test_every_cell_has_mean_0_and_deviation_1() -> None:
    values = standardized(7 + 3 * torch.randn(2, 5, 3, 4, dtype=torch.float64))
    for image in range(2):
        for row in range(3):
            for column in range(4):
                cell = values[image, :, row, column]
                assert abs(cell.mean()) < 1e-9
                assert abs(cell.square().sum() / 4 - 1) < 1e-6


def test_shift_and_scale_of_a_cell_do_not_matter() -> None:
    values = torch.randn(1, 5, 3, 4, dtype=torch.float64)
    shift, scale = torch.randn(2, 1, 1, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(standardized(values * scale.exp() + shift), standardized(values), rtol=1e-5, atol=1e-5)


def test_constant_cells_give_zeros_and_finite_gradients() -> None:
    values = torch.full((1, 4, 2, 2), 3.0, requires_grad=True)
    result = standardized(values)
    assert not result.any()
    (result * torch.randn(result.shape)).sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
