from __future__ import annotations

import torch

from segtailor import losses
from segtailor.losses import (
    Step,
    channel_divergence,
    channel_kl,
    class_counts,
    cross_entropy,
    pixel_kl,
    standardize,
    to_grid,
    valid_counts,
)


def test_every_public_loss_has_an_example() -> None:
    public = [item for name, item in vars(losses).items() if name[0] != "_" and callable(item)]
    own = [item for item in public if getattr(item, "__module__", "") == losses.__name__]
    missing = [item for item in own if ">>>" not in (item.__doc__ or "")]
    assert len(own) > 10
    assert not missing


def valid(target: torch.Tensor) -> torch.Tensor:
    return (target != 255).sum()


def test_counts_equal_a_loop_for_sizes_that_do_not_divide() -> None:
    target = torch.randint(0, 5, (2, 11, 13), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    target[target == 4] = 255
    expected = torch.zeros(2, 4, 3, 4, dtype=torch.int32)
    for image in range(2):
        for i in range(11):
            for j in range(13):
                label = min(int(target[image, i, j]), 3)
                expected[image, label, i * 3 // 11, j * 4 // 13] += 1
    # Three classes: label 3 is out of range, and so counted with void.
    assert torch.equal(class_counts(target, 3, (3, 4)), expected.flatten(2))
    assert torch.equal(valid_counts(target, (3, 4)).long().sum(), valid(target))


def test_cross_entropy_equals_the_mean_over_valid_pixels() -> None:
    logits = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, 4, (2, 5, 6)).to(torch.uint8)
    target[0, :2] = 255
    expected = torch.nn.functional.cross_entropy(logits, target.long(), ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits, target, Step()), expected)


def test_cross_entropy_of_a_wholly_void_batch_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(1, 4, 5, 6, requires_grad=True)
    value = cross_entropy(logits, torch.full((1, 5, 6), 255, dtype=torch.uint8), Step())
    value.backward()
    assert value == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_micro_batches_average_to_the_mean_over_all() -> None:
    logits = torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, 3, (4, 4, 4)).to(torch.uint8)
    target[0] = 255
    parts = list(zip(logits.split(1), target.split(1), strict=True))
    step = Step(targets=[part for _, part in parts])
    average = sum(cross_entropy(*part, step) for part in parts) / len(parts)
    torch.testing.assert_close(average, cross_entropy(logits, target, Step()))


def test_channel_divergence_passes_gradcheck_with_and_without_multiplicity() -> None:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(2, 3, 7, dtype=torch.float64, generator=generator).requires_grad_()
    teacher = torch.randn(2, 3, 7, dtype=torch.float64, generator=generator)
    counts = torch.randint(0, 3, (2, 3, 7), generator=generator).double()
    counts[0, 0] = 0
    for multiplicity in (None, counts, counts[:, :1]):
        assert torch.autograd.gradcheck(lambda own, m=multiplicity: channel_divergence(own, teacher, 3, m), student)


def test_multiplicity_counts_positions_as_repeats() -> None:
    student, teacher = torch.randn(2, 1, 2, 3).unbind(0)
    repeats = torch.tensor([2, 0, 3])
    repeated = [value.repeat_interleave(repeats, -1) for value in (student, teacher)]
    expected = channel_divergence(*repeated, 2)
    torch.testing.assert_close(channel_divergence(student, teacher, 2, repeats.view(1, 1, 3)), expected)


def test_channel_kl_ignores_a_shift_of_a_whole_channel_and_is_half_the_variance_at_high_temperature() -> None:
    student, teacher = torch.randn(2, 2, 3, 8, 8, dtype=torch.float64).unbind(0)
    shifted = student + torch.randn(2, 3, 1, 1, dtype=torch.float64)
    torch.testing.assert_close(channel_kl(shifted, teacher, 4), channel_kl(student, teacher, 4))
    variance = (student - teacher).flatten(2).var(2, unbiased=False).mean() / 2
    torch.testing.assert_close(channel_kl(student, teacher, 1e4), variance, rtol=1e-3, atol=0)


def test_half_precision_inputs_are_compared_in_float32_and_get_their_own_gradient_type() -> None:
    student = torch.randn(1, 2, 3, 3).bfloat16().requires_grad_()
    teacher = torch.randn(1, 2, 3, 3).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        values = channel_kl(student, teacher, 4), pixel_kl(student, teacher)
    for value, function in zip(values, (lambda *pair: channel_kl(*pair, 4), pixel_kl), strict=True):
        torch.testing.assert_close(value, function(student.float(), teacher.float()), rtol=1e-6, atol=0)
    (values[0] + values[1]).backward()
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16


def test_the_teacher_gets_no_gradient() -> None:
    student, teacher = (torch.randn(1, 2, 3, 3, requires_grad=True) for _ in range(2))
    (channel_kl(student, teacher) + pixel_kl(student, teacher)).backward()
    assert teacher.grad is None


def test_standardise_leaves_void_out_and_is_finite_for_flat_channels() -> None:
    values = torch.randn(2, 3, 4, 5)
    values[:, 2] = 7
    multiplicity = torch.ones(2, 20)
    multiplicity[0, 10:] = 0
    multiplicity[1] = 0
    values.requires_grad_()
    result = standardize(values, multiplicity)
    inside = result[0, :2].flatten(1)[:, :10]
    torch.testing.assert_close(inside.mean(1), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(inside.var(1, unbiased=False), torch.ones(2), atol=1e-4, rtol=0)
    assert not result[0].flatten(1)[:, 10:].any()
    assert not result[1].any()
    result.square().sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert not values.grad[1].any()


def test_standardise_passes_gradcheck() -> None:
    values = torch.randn(2, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    multiplicity = torch.randint(0, 3, (2, 8)).double()
    assert torch.autograd.gradcheck(lambda item: standardize(item, multiplicity), values)
    assert torch.autograd.gradcheck(standardize, values)


def test_to_grid_returns_equal_sizes_untouched() -> None:
    values = torch.randn(1, 2, 3, 4)
    assert to_grid(values, (3, 4)) is values
    assert to_grid(values.bfloat16(), (6, 8)).dtype == torch.float32
