"""The parts of DiffKD: schedule and sampler against closed forms, the networks' shapes, the mixing of noise."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segtailor.losses import Step
from segtailor.methods import create_method
from segtailor.methods.diffkd import (
    AutoEncoder,
    BatchNorm,
    Bottleneck,
    Denoiser,
    DiffKDOptions,
    DiffusedPair,
    NoiseAdapter,
    alpha_bars,
    chain_times,
    chain_times_from,
    ddim_step,
    denoise,
    distance,
    noised,
    time_of,
)

from .cases import CLASSES, STUDENT, TEACHER, labels, output


def maps(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_alpha_bars_are_the_published_ones() -> None:
    table = alpha_bars()
    assert table.shape == (1000,)
    for time, expected in ((400, 0.193572), (300, 0.394011), (200, 0.656347), (100, 0.895142), (0, 0.999900)):
        assert table[time].item() == pytest.approx(expected, abs=5e-7)
    product = 1.0
    for time in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * time / 999)
        assert table[time].item() == pytest.approx(product, rel=1e-12)


@pytest.mark.parametrize(
    ("steps", "expected"), [(5, [400, 300, 200, 100, 0]), (1, [0]), (2, [250, 0]), (4, [375, 250, 125, 0])]
)
def test_times_are_the_last_half_of_a_grid(steps: int, expected: list[int]) -> None:
    assert chain_times(steps) == expected


def test_the_chain_equals_the_closed_form() -> None:
    index = torch.arange(2 * 6 * 4 * 8, dtype=torch.float64)
    feature = (0.11 * index).sin().relu().view(2, 6, 4, 8)
    times = torch.tensor(chain_times(5)).unsqueeze(1).expand(-1, 2)

    def predict(noisy: Tensor, time: Tensor) -> Tensor:
        return 0.3 * noisy + 0.00001 * time.double().view(-1, 1, 1, 1)

    result = denoise(0.7 * feature - 0.2, predict, alpha_bars(), times)
    # The collected sum reads 16.684849749, one 9 short of this one, which a sum in plain floats confirms.
    assert result.sum().item() == pytest.approx(16.684849974919, abs=1e-9)
    assert result.norm().item() == pytest.approx(8.044055888, abs=1e-9)
    assert result[0, 0, 0, 5].item() == pytest.approx(0.244710259, abs=1e-9)


def test_the_true_noise_leads_back_to_the_clean_map_in_one_step_or_many() -> None:
    clean, noise, table = maps(2, 3, 4, 5).double(), maps(2, 3, 4, 5, seed=1).double(), alpha_bars()
    one = torch.ones((), dtype=torch.float64)
    torch.testing.assert_close(ddim_step(noised(clean, noise, table[400]), noise, table[400], one), clean)
    for steps in (1, 3, 5):
        times = chain_times_from(torch.tensor([400, 7]), steps)
        noisy = noised(clean, noise, table[times[0]].view(-1, 1, 1, 1))
        torch.testing.assert_close(denoise(noisy, lambda noisy, time: noise, table, times), clean)


def test_gradient_passes_every_step() -> None:
    scale, noisy = torch.tensor(0.3, requires_grad=True), maps(1, 2, 3, 3).double().requires_grad_()
    times = torch.tensor(chain_times(5)).unsqueeze(1)
    denoise(noisy, lambda noisy, time: scale * noisy, alpha_bars(), times).sum().backward()
    factor, slope, levels = 1.0, 0.0, [*alpha_bars()[chain_times(5)].tolist(), 1.0]
    for now, after in pairwise(levels):
        step = math.sqrt(after) * (1 - math.sqrt(1 - now) * 0.3) / math.sqrt(now) + math.sqrt(1 - after) * 0.3
        change = math.sqrt(1 - after) - math.sqrt(after) * math.sqrt(1 - now) / math.sqrt(now)
        factor, slope = factor * step, slope * step + factor * change
    assert noisy.grad is not None
    assert scale.grad is not None
    torch.testing.assert_close(noisy.grad, torch.full_like(noisy, factor), rtol=1e-6, atol=0)
    assert scale.grad.item() == pytest.approx(slope * noisy.sum().item(), rel=1e-5)


def test_a_level_is_found_among_the_times() -> None:
    table = alpha_bars()
    assert time_of(table[[0, 399, 999]], table).tolist() == [0, 399, 999]
    assert time_of(torch.tensor([1.0, 0.0]), table).tolist() == [0, 999]


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("channels", [2, 6, 19])
def test_the_denoiser_keeps_the_shape_and_reads_each_images_time(channels: int, kernel: Any) -> None:
    torch.manual_seed(0)
    denoiser, noisy = Denoiser(channels, kernel), maps(2, channels, 5, 7)
    result = denoiser(noisy, torch.tensor([3, 900]))
    assert result.shape == noisy.shape
    other = denoiser(noisy, torch.tensor([3, 901]))
    assert not torch.allclose(result[1], other[1])
    assert denoiser.times.weight.shape == (1280, channels)
    # Batch norm couples all positions in any case, so the convolutions are asked whether they see neighbours.
    mixes = any(isinstance(part, torch.nn.Conv2d) and part.kernel_size == (3, 3) for part in denoiser.modules())
    assert mixes == (kernel == 3)


def test_the_bottleneck_adds_to_its_input() -> None:
    torch.manual_seed(0)
    bottleneck, values = Bottleneck(8), maps(2, 8, 4, 5)
    weights = [part.weight for part in bottleneck.layers if isinstance(part, torch.nn.Conv2d)]
    assert [tuple(weight.shape) for weight in weights] == [(2, 8, 1, 1), (2, 2, 3, 3), (8, 2, 1, 1)]
    for norm in (part for part in bottleneck.layers if isinstance(part, BatchNorm)):
        torch.nn.init.uniform_(norm.bias)

    def normed(values: Tensor, norm: Any) -> Tensor:
        variance, mean = torch.var_mean(values, (0, 2, 3), correction=0, keepdim=True)
        shift, scale = norm.bias.view(1, -1, 1, 1), norm.weight.view(1, -1, 1, 1)
        return (values - mean) / (variance + 1e-5).sqrt() * scale + shift

    expected, layers = values, bottleneck.layers
    for index, weight in enumerate(weights):
        expected = normed(F.conv2d(expected, weight, padding=weight.shape[-1] // 2), layers[3 * index + 1])
        expected = expected.relu() if index < 2 else expected
    torch.testing.assert_close(bottleneck(values), values + expected, rtol=1e-4, atol=1e-5)
    assert bottleneck(values).min() < 0  # no ReLU after the sum


def test_the_adapter_narrows_by_at_most_eight() -> None:
    inner = {channels: NoiseAdapter(channels, 3).layers.layers[0].out_channels for channels in (2, 8, 19, 64, 256)}  # type: ignore[union-attr, index]
    assert inner == {2: 2, 8: 8, 19: 9, 64: 8, 256: 32}


@pytest.mark.parametrize("kernel", [1, 3])
def test_the_adapter_gives_one_share_for_each_image_whatever_lies_in_void(kernel: Any) -> None:
    torch.manual_seed(0)
    adapter, values, valid = NoiseAdapter(6, kernel), maps(3, 6, 4, 5), torch.ones(3, 20)
    whole = adapter(values, None)
    assert whole.shape == (3,)
    assert ((whole > 0) & (whole < 1)).all()
    torch.testing.assert_close(adapter(values, valid), whole)
    torch.testing.assert_close(adapter(values, 7 * valid), whole)
    valid[0] = 0  # wholly void: finite
    assert adapter(values, valid).isfinite().all()


def test_the_auto_encoder_narrows_and_rebuilds() -> None:
    code, rebuilt = AutoEncoder(10, 4)(maps(2, 10, 3, 3))
    assert (tuple(code.shape), tuple(rebuilt.shape)) == ((2, 4, 3, 3), (2, 10, 3, 3))


def test_batch_norm_takes_a_single_position() -> None:
    norm = BatchNorm(3)
    with torch.no_grad():
        norm.weight.fill_(2)
        norm.bias.fill_(1)
    values = maps(1, 3, 1, 1)
    torch.testing.assert_close(norm(values), 2 * values + 1)
    assert not list(norm.buffers())
    several = norm(maps(2, 3, 4, 4))
    torch.testing.assert_close(several.mean((0, 2, 3)), torch.ones(3))


def pair_with_share(gamma: float, **settings: Any) -> DiffusedPair:
    """Return a pair of equal widths whose adapter says ``gamma``, and whose projector changes nothing."""
    torch.manual_seed(0)
    pair = DiffusedPair(4, 4, DiffKDOptions(**{"mixing": "linear", **settings}))
    with torch.no_grad():
        pair.adapter.gates.weight.zero_()
        pair.adapter.gates.bias.copy_(torch.tensor([gamma, 1 - gamma]).log())
        pair.projector.weight.copy_(torch.eye(4).view(4, 4, 1, 1))
        pair.projector.bias.zero_()  # type: ignore[union-attr]
    return pair


@pytest.mark.parametrize(("mixing", "spread"), [("linear", math.sqrt(0.3**2 + 0.7**2)), ("variance_preserving", 1.0)])
def test_mixing_keeps_the_variance_or_does_not(mixing: str, spread: float) -> None:
    pair, values = pair_with_share(0.3, mixing=mixing), maps(1, 4, 64, 64)
    noisy, times = pair._mixed(values, torch.tensor([0.3]))
    assert noisy.std().item() == pytest.approx(spread, rel=0.03)
    assert times.flatten().tolist() == [400, 300, 200, 100, 0]
    correlation = torch.corrcoef(torch.stack((noisy.flatten(), values.flatten())))[0, 1].item()
    assert correlation == pytest.approx(0.3 / math.sqrt(0.3**2 + 0.7**2), abs=0.03)


def test_the_chain_can_start_where_the_noise_says() -> None:
    pair = pair_with_share(0.5, start="from_noise", mixing="variance_preserving")
    gamma = torch.tensor([0.25, 0.5, 1.0])
    _, times = pair._mixed(maps(3, 4, 2, 2), gamma)
    level = gamma.square() / (gamma.square() + (1 - gamma).square())
    expected = [next(time for time, value in enumerate(alpha_bars().tolist()) if value <= item) for item in level[:2]]
    assert times[0].tolist() == [*expected, 0]
    assert times[-1].tolist() == [0, 0, 0]
    assert times.shape == (5, 3)


def test_no_noise_mixed_in_leaves_the_student_almost_as_it_is() -> None:
    pair, student = pair_with_share(1.0, start="from_noise"), maps(2, 4, 6, 6)
    refined = pair(student, maps(2, 4, 6, 6, seed=1), None).refined
    torch.testing.assert_close(refined, pair.refiner(student), rtol=0, atol=0.1)
    fixed = pair_with_share(1.0)
    assert not torch.allclose(fixed(student, student, None).refined, fixed.refiner(student), atol=0.1)


def test_the_goal_is_the_teacher_or_its_code() -> None:
    student, teacher = maps(2, 3, 4, 4), maps(2, 8, 4, 4, seed=1)
    plain = DiffusedPair(3, 8, DiffKDOptions())(student, teacher, None)
    assert plain.goal is teacher
    assert plain.rec is None
    pair = DiffusedPair(3, 8, DiffKDOptions(), encoder_width=5)
    coded = pair(student, teacher, None)
    assert coded.goal.shape == coded.refined.shape == (2, 5, 4, 4)
    assert not coded.goal.requires_grad
    assert pair.auto_encoder is not None
    code, rebuilt = pair.auto_encoder(teacher)
    torch.testing.assert_close(coded.goal, code)
    torch.testing.assert_close(coded.rec, (teacher - rebuilt).square().mean(1))
    assert coded.ddim is not None
    pair.options = DiffKDOptions(ddim=0)
    frozen = pair(student, teacher, None, train_encoder=False)
    assert frozen.rec is None
    assert frozen.ddim is None
    torch.testing.assert_close(frozen.goal, code)


def test_a_denoiser_learns_to_find_the_noise_in_the_teacher() -> None:
    torch.manual_seed(0)
    pair = DiffusedPair(4, 4, DiffKDOptions(kernel=1))
    teacher = 3 * maps(1, 4, 1, 1).expand(4, 4, 8, 8)
    optimizer = torch.optim.Adam(pair.denoiser.parameters(), 0.01)
    errors = []
    for _ in range(60):
        optimizer.zero_grad()
        error = pair(teacher, teacher, None).ddim.mean()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert sum(errors[-10:]) / 10 < 0.75  # guessing none gives 1


def test_distances_of_all_positions_equal_the_closed_forms() -> None:
    index = torch.arange(2 * 5 * 4 * 8, dtype=torch.float64).view(2, 5, 4, 8)
    student, teacher = 3 * (0.23 * index).cos() + 0.5, 4 * (0.37 * index).sin()
    assert distance("dist", student, teacher, None, Step()).item() == pytest.approx(2.008070552239, abs=1e-9)
    assert distance("kl", student, teacher, None, Step()).item() == pytest.approx(2.304662163900, abs=1e-9)
    pairs = zip(student.flatten().tolist(), teacher.flatten().tolist(), strict=True)
    assert distance("mse", student, teacher, None, Step()).item() == pytest.approx(
        sum((a - b) ** 2 for a, b in pairs) / index.numel()
    )


def test_distances_of_valid_pixels_weigh_each_cell_by_them() -> None:
    student, teacher, target = output(STUDENT).logits.detach(), output(TEACHER, seed=2).logits.detach(), labels()
    as_method = create_method("dist", CLASSES, STUDENT, TEACHER, aux=0)(
        output(STUDENT), output(TEACHER, seed=2), target, 0.5
    )
    torch.testing.assert_close(
        distance("dist", student, teacher, target, Step()), as_method["inter"] + as_method["intra"]
    )
    sums, count = {"kl": 0.0, "mse": 0.0}, 0
    for image, i, j in (target != 255).nonzero().tolist():
        own, guide = (value[image, :, i * 6 // 46, j * 8 // 63] for value in (student, teacher))
        chances = guide.softmax(0)
        sums["kl"] += (chances * (chances.log() - own.log_softmax(0))).sum().item()
        sums["mse"] += (own - guide).square().mean().item()
        count += 1
    assert distance("kl", student, teacher, target, Step()).item() == pytest.approx(sums["kl"] / count, rel=1e-5)
    assert distance("mse", student, teacher, target, Step()).item() == pytest.approx(sums["mse"] / count, rel=1e-5)
