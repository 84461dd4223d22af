from __future__ import annotations

import json

import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from segtailor.evaluation import calibration
from segtailor.evaluation.calibration import Agreement, Calibration


def _outputs(classes=4, size=(3, 11, 9)):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(size[0], classes, *size[1:], generator=generator)
    target = torch.randint(0, classes, size, generator=generator).to(torch.uint8)
    target[0, :4] = 255
    return logits, target


def _measure(logits, target):
    measure = Calibration(logits.shape[1])
    measure.update(logits, target)
    return measure.result()


def test_ece_equals_torchmetrics():
    logits, target = _outputs()
    valid = target != 255
    flat = logits.movedim(1, -1)[valid].softmax(-1)
    expected = multiclass_calibration_error(flat, target[valid].long(), 4, n_bins=15, norm="l1")
    result = _measure(logits, target)
    assert result["ece"] == pytest.approx(float(expected), abs=1e-6)
    assert result["pixels"] == int(valid.sum())


def test_figures_equal_plain_loops():
    logits, target = _outputs()
    bins = [[0, 0, 0.0] for _ in range(15)]
    brier = count = 0
    for image, y, x in torch.ones_like(target).nonzero().tolist():
        truth = int(target[image, y, x])
        if truth == 255:
            continue
        share = logits[image, :, y, x].double().softmax(0).tolist()
        best = max(range(4), key=share.__getitem__)
        place = next(b for b in range(15) if share[best] <= (b + 1) / 15)
        bins[place][0] += 1
        bins[place][1] += best == truth
        bins[place][2] += share[best]
        brier += sum((share[k] - (k == truth)) ** 2 for k in range(4))
        count += 1
    result = _measure(logits, target)
    assert result["brier"] == pytest.approx(brier / count, abs=1e-6)
    assert result["ece"] == pytest.approx(sum(abs(right - total) for _, right, total in bins) / count, abs=1e-6)
    assert [row["pixels"] for row in result["bins"]] == [number for number, _, _ in bins]
    for row, (number, right, total) in zip(result["bins"], bins, strict=True):
        assert row["accuracy"] == (pytest.approx(right / number) if number else None)
        assert row["confidence"] == (pytest.approx(total / number, abs=1e-6) if number else None)


def test_a_sure_and_right_model_is_best_and_a_sure_and_wrong_one_worst():
    target = torch.tensor([[[0, 1, 255]]], dtype=torch.uint8)
    sure = torch.nn.functional.one_hot(torch.tensor([[[0, 1, 1]]]), 2).movedim(-1, 1) * 100.0
    assert (_measure(sure, target)["ece"], _measure(sure, target)["brier"]) == (0, 0)
    assert (_measure(-sure, target)["ece"], _measure(-sure, target)["brier"]) == (1, 2)


def test_chunks_and_batches_do_not_matter(monkeypatch):
    logits, target = _outputs()
    whole = _measure(logits, target)
    monkeypatch.setattr(calibration, "CHUNK", 80)
    measure = Calibration(4)
    for image in (2, 0, 1):
        measure.update(logits[image : image + 1], target[image : image + 1])
    assert measure.result() == whole


def test_only_void_gives_no_figures():
    result = _measure(torch.randn(1, 3, 2, 2), torch.full((1, 2, 2), 255, dtype=torch.uint8))
    assert (result["ece"], result["brier"], result["pixels"]) == (None, None, 0)
    json.dumps(result, allow_nan=False)


def test_agreement_counts_by_hand():
    target = torch.tensor([[[0, 0, 1, 1, 1, 2, 255, 255]]], dtype=torch.uint8)
    teacher = torch.tensor([[[0, 0, 1, 0, 0, 1, 1, 0]]])
    student = torch.tensor([[[0, 1, 1, 0, 1, 0, 1, 1]]])
    agreement = Agreement(3)
    agreement.update(student, target, teacher)
    assert agreement.result() == {
        "agreement": 3 / 6,
        "teacher_accuracy": 3 / 6,
        "agreement_where_teacher_is_right": 2 / 3,
        "agreement_where_teacher_is_wrong": 1 / 3,
        "student_right_where_teacher_is_wrong": 1 / 3,
        "pixels": 6,
    }


def test_agreement_equals_a_loop_and_has_none_for_a_perfect_teacher():
    generator = torch.Generator().manual_seed(1)
    student, teacher, target = torch.randint(0, 3, (3, 2, 8, 9), generator=generator)
    target[0, :2] = 255
    agreement = Agreement(3)
    agreement.update(student, target.to(torch.uint8), teacher)
    triples = zip(student.flatten().tolist(), teacher.flatten().tolist(), target.flatten().tolist(), strict=True)
    kept = [triple for triple in triples if triple[2] != 255]
    mistakes = [(s, t) for s, t, y in kept if t != y]
    result = agreement.result()
    assert result["agreement"] == sum(s == t for s, t, _ in kept) / len(kept)
    assert result["agreement_where_teacher_is_wrong"] == sum(s == t for s, t in mistakes) / len(mistakes)
    perfect = Agreement(3)
    perfect.update(student, target, torch.where(target == 255, 0, target))
    assert perfect.result()["agreement_where_teacher_is_wrong"] is None
