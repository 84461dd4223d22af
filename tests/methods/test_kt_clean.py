"""What clean KT promises beyond what every method does: components, growth, and little memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segtailor.losses import Step, standardize, valid_counts
from segtailor.methods import create_method
from segtailor.methods._kt_terms import Components

from .cases import CLASSES, STUDENT, TEACHER, labels, output, tensors
from .test_kt import fix_components
from .tester import PHASES

VALID = torch.ones(2, 48)


def maps(channels: dict[str, int], seed: int) -> Tensor:
    feature = output(channels, seed=seed).feature
    assert feature is not None
    return feature


@pytest.mark.parametrize("parts", [1, 2])
def test_the_components_are_those_of_the_channels_correlation(parts: int) -> None:
    module = Components(6, 10).train()
    total, positions = np.zeros((10, 10)), valid_counts(labels(), (6, 8))
    for seed in range(Components.STEPS + 3):
        teacher, step = maps(TEACHER, seed).detach(), Step()
        for part in range(parts):
            rows = slice(part, None, parts)
            module(maps(STUDENT, 1)[rows], teacher[rows], positions[rows], 1.0, step)
        if seed < Components.STEPS:
            for image, weight in zip(
                standardize(teacher, positions).flatten(2).numpy(), positions.numpy(), strict=True
            ):
                total += (image * weight / weight.sum()) @ image.T / 2
    values, vectors = np.linalg.eigh(total / Components.STEPS)
    for index in range(6):
        assert abs(module.basis[:, index].numpy() @ vectors[:, -1 - index]) == pytest.approx(1, abs=1e-3)
    shares = module.shares / module.shares[0]
    assert shares.tolist() == pytest.approx((values[::-1][:6] / values[-1]).tolist(), rel=1e-3)


def test_the_term_by_hand() -> None:
    method = create_method("kt", CLASSES, STUDENT, TEACHER, ft=2, feature_taps="decoder")
    fix_components(method)
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    value = method(student, teacher, target, 0.5)["ft"].item()
    module, valid = method.tailoring["decoder"], valid_counts(target, (6, 8))
    assert isinstance(module, Components)
    assert student.feature is not None
    assert teacher.feature is not None
    own, guide = (standardize(feature.detach(), valid).flatten(2) for feature in (student.feature, teacher.feature))
    expected, shares = 0.0, (module.shares / module.shares.sum()).tolist()
    for image in range(2):
        weight = (valid[image] / valid[image].sum()).double().numpy()
        projected = module.projector.weight.detach().flatten(1).double().numpy() @ own[image].double().numpy()
        components = module.basis.double().numpy().T @ guide[image].double().numpy()
        for share, a, b in zip(shares, projected, components, strict=True):
            a, b = a - a @ weight, b - b @ weight
            expected += share * (1 - (a * b) @ weight / np.sqrt((a * a) @ weight * ((b * b) @ weight))) / 2
    assert value == pytest.approx(2 * expected, rel=1e-4)


def test_components_join_until_the_tuning_point() -> None:
    wide = {"feature": 20}
    method = create_method("kt", CLASSES, wide, {"feature": 30}, tuning_point=0.5, feature_taps="decoder").eval()
    module = method.tailoring["decoder"]
    student = torch.randn(2, 20, 6, 8, requires_grad=True)
    teacher = torch.randn(2, 30, 6, 8)
    used = []
    for progress in (0.001, 0.25, 0.49, 0.5, 1.0):
        grown = progress / 0.5 if progress < 0.5 else 1.0
        (gradient,) = torch.autograd.grad(module(student, teacher, VALID, grown, Step()), module.projector.weight)
        used.append(int(gradient.flatten(1).any(1).sum()))
    assert used == [8, 14, 19, 20, 20]


def test_what_is_learned_is_part_of_the_state() -> None:
    first, second = Components(4, 6).train(), Components(4, 6)
    for seed in range(5):
        guide = torch.randn(2, 6, 6, 8, generator=torch.Generator().manual_seed(seed))
        first(torch.randn(2, 4, 6, 8), guide, VALID, 1.0, Step())
    second.load_state_dict(first.state_dict())
    assert second.seen == 5
    student, teacher = torch.randn(2, 4, 6, 8), torch.randn(2, 6, 6, 8)
    assert first.eval()(student, teacher, VALID, 1.0, Step()) == second.eval()(student, teacher, VALID, 1.0, Step())
    first(student, teacher, VALID, 1.0, Step())
    assert first.seen == 5


def test_scale_and_offset_of_either_feature_do_not_matter() -> None:
    module = Components(6, 10).eval()
    student, teacher = maps(STUDENT, 1), maps(TEACHER, 2)
    expected = module(student, teacher, VALID, 1.0, Step())
    torch.testing.assert_close(
        module(5 * student + 2, 3 * teacher - 1, VALID, 1.0, Step()), expected, rtol=1e-3, atol=1e-5
    )


def test_float64_passes_and_void_images_cost_nothing() -> None:
    module = Components(6, 10).double().eval()
    value = module(maps(STUDENT, 1).double(), maps(TEACHER, 2).double(), VALID, 1.0, Step())
    assert value.dtype == torch.float64
    assert module(maps(STUDENT, 1).double(), maps(TEACHER, 2).double(), torch.zeros(2, 48), 1.0, Step()) == 0


@PHASES
@pytest.mark.parametrize("variant", ["published", "clean"])
def test_nothing_large_is_kept_for_backward(progress: float, variant: str) -> None:
    options: dict[str, Any] = {"variant": variant, "feature_taps": "decoder"}
    method = create_method("kt", CLASSES, STUDENT, TEACHER, **options)
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    known = {value.data_ptr() for value in (*tensors(student).values(), *tensors(teacher).values())}
    target = labels()
    known |= {value.data_ptr() for value in (target, *method.parameters())}
    kept: dict[int, int] = {}

    def pack(value: Tensor) -> Tensor:
        if value.data_ptr() not in known:
            kept[value.data_ptr()] = value.numel()
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        method(student, teacher, target, progress)
    # Less than one map of the teacher's width, and than a third of one for each class.
    assert sum(kept.values()) < 2 * 48 * TEACHER["feature"]


def test_of_a_fine_map_every_other_position_is_taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Components, "POSITIONS", 12)
    module, teacher = Components(6, 10).train(), maps(TEACHER, 2).detach()
    module(maps(STUDENT, 1), teacher, VALID, 1.0, Step())
    guide = standardize(teacher[:, :, ::2, ::2]).flatten(2)
    torch.testing.assert_close(module.correlation, (guide @ guide.mT).mean(0) / 12, rtol=1e-4, atol=1e-5)
