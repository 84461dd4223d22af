"""What the clean variant promises beyond what every method does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from segtailor.losses import standardize
from segtailor.methods import create_method
from segtailor.methods._kt_terms import FeatureTailoring, matching, mixing_weights, recombine

from .cases import CLASSES, EVERY_TERM, STUDENT, TEACHER, labels, output, tensors
from .tester import EARLY, LATE, PHASES

VALID = torch.ones(2, 48)


def features() -> tuple[Tensor, Tensor]:
    student, teacher = output(STUDENT).feature, output(TEACHER, seed=2).feature
    assert student is not None
    assert teacher is not None
    return student, teacher


@pytest.mark.parametrize("early", [True, False])
def test_a_tailor_cannot_make_the_term_small_by_a_constant_output(early: bool) -> None:
    student, teacher = features()
    mixing, _ = mixing_weights(student, teacher, VALID, early, 0.1)

    def cancel(mixing: Tensor, feature: Tensor) -> Tensor:
        return 3 - recombine(mixing, feature)

    assert matching(student, teacher, VALID, cancel, mixing, early) > 0.49


@pytest.mark.parametrize("early", [True, False])
def test_mixing_weights_are_convex_constant_and_favour_the_correlated_channel(early: bool) -> None:
    student, teacher = features()
    similar, different = mixing_weights(student, teacher, VALID, early, 0.1)
    rows, columns = (teacher, student) if early else (student, teacher)
    for weights in (similar, different):
        assert not weights.requires_grad
        assert weights.shape == (2, rows.shape[1], columns.shape[1])
        torch.testing.assert_close(weights.sum(2), torch.ones(2, rows.shape[1]))
    stacked = [torch.corrcoef(torch.cat((a.flatten(1), b.flatten(1)))) for a, b in zip(rows, columns, strict=True)]
    correlation = torch.stack(stacked)[:, : rows.shape[1], rows.shape[1] :]
    assert torch.equal(similar.argmax(2), correlation.argmax(2))
    assert torch.equal(different.argmax(2), correlation.argmin(2))


def test_an_exact_copy_of_the_teacher_matches_perfectly_with_an_idle_tailor() -> None:
    _, teacher = features()

    def idle(mixing: Tensor, feature: Tensor) -> Tensor:
        return torch.zeros(feature.shape[0], mixing.shape[1], *feature.shape[2:])

    for early in (True, False):
        mixing, _ = mixing_weights(teacher, teacher, VALID, early, 0.001)
        assert matching(3 * teacher + 1, teacher, VALID, idle, mixing, early) < 1e-4


@PHASES
def test_the_triplet_moves_the_anchor_and_never_the_goals(progress: float) -> None:
    method = create_method("kt", CLASSES, STUDENT, TEACHER, **EVERY_TERM, margin=2.0)
    student = output(STUDENT)
    method(student, output(TEACHER, seed=2), labels(), progress)["contrastive"].backward()
    module = method.tailoring["decoder"]
    assert isinstance(module, FeatureTailoring)
    assert student.feature is not None
    assert student.feature.grad is not None
    assert student.feature.grad.any()
    assert all(value.grad is None for value in module.student_to_teacher_tailor.parameters())
    assert all(value.grad is None for value in module.teacher_to_student_tailor.parameters())
    assert (module.student_projector.weight.grad is not None) == (progress == EARLY)


def test_scale_and_offset_of_either_feature_do_not_matter() -> None:
    method = create_method("kt", CLASSES, STUDENT, TEACHER, **EVERY_TERM, margin=2.0)
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    for progress in (EARLY, LATE):
        expected = method(student, teacher, labels(), progress)
        moved = output(STUDENT), output(TEACHER, seed=2)
        for item in moved:
            assert item.feature is not None
            item.feature = 5 * item.feature + 2
        values = method(*moved, labels(), progress)
        for term in ("ft", "contrastive"):
            torch.testing.assert_close(values[term], expected[term], rtol=1e-3, atol=1e-5)


@PHASES
@pytest.mark.parametrize("options", [{"variant": "published"}, EVERY_TERM], ids=["published", "clean"])
def test_nothing_large_is_kept_for_backward(progress: float, options: dict[str, Any]) -> None:
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


def test_standardised_features_of_wholly_void_images_cost_nothing() -> None:
    student, teacher = features()
    void = torch.zeros(2, 48)
    mixing, _ = mixing_weights(student, teacher, void, True, 0.1)
    assert matching(student, teacher, void, recombine, mixing, True) == 0
    assert not standardize(student, void).any()
