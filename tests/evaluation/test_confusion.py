from __future__ import annotations

import json

import pytest
import torch
from torchmetrics.classification import MulticlassConfusionMatrix

from segtailor.errors import SegtailorError
from segtailor.evaluation.confusion import EvaluationResult, check_counts, count_images

CLASSES = ("road", "pole", "sky", "tram")


def _random_masks(num_classes=4, size=(2, 9, 7)):
    generator = torch.Generator().manual_seed(0)
    prediction = torch.randint(0, num_classes, size, generator=generator)
    target = torch.randint(0, num_classes, size, generator=generator).to(torch.uint8)
    target[0, :3] = 255
    return prediction, target


def _result(prediction, target, num_classes=4):
    counts = count_images(prediction.reshape(1, 1, -1), target.reshape(1, 1, -1), num_classes)[0]
    return EvaluationResult(counts[: num_classes**2].view(num_classes, num_classes), CLASSES[:num_classes])


def _loops(prediction, target, num_classes):
    """IoU and Dice of each class, recomputed pixel by pixel."""
    iou, dice = [], []
    pairs = [(p, t) for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist(), strict=True) if t != 255]
    for k in range(num_classes):
        both = sum(p == k and t == k for p, t in pairs)
        either = sum(p == k or t == k for p, t in pairs)
        total = sum(p == k for p, _ in pairs) + sum(t == k for _, t in pairs)
        iou.append(both / either if either else None)
        dice.append(2 * both / total if total else None)
    return iou, dice, sum(p == t for p, t in pairs) / len(pairs)


def test_figures_equal_plain_loops():
    prediction, target = _random_masks()
    result = _result(prediction, target)
    iou, dice, accuracy = _loops(prediction, target, 4)
    assert result.iou == pytest.approx(iou)
    assert result.dice == pytest.approx(dice)
    assert result.miou == pytest.approx(sum(iou) / 4)
    assert result.mean_dice == pytest.approx(sum(dice) / 4)
    assert result.pixel_accuracy == pytest.approx(accuracy)


def test_confusion_equals_torchmetrics():
    prediction, target = _random_masks()
    reference = MulticlassConfusionMatrix(4, ignore_index=255)
    reference.update(prediction, target.long())
    result = _result(prediction, target)
    assert result.confusion.dtype == torch.int64
    assert torch.equal(result.confusion, reference.compute())


def test_a_class_absent_from_both_is_left_out_and_one_only_predicted_counts_zero():
    target = torch.tensor([0, 0, 1, 1], dtype=torch.uint8)
    prediction = torch.tensor([0, 0, 1, 2])
    result = _result(prediction, target)
    assert result.iou == [1.0, 0.5, 0.0, None]
    assert result.miou == pytest.approx(0.5)
    assert result.miou_all == pytest.approx(1.5 / 4)
    assert result.accuracy == [1.0, 0.5, None, None]
    assert result.mean_accuracy == pytest.approx(0.75)


def test_only_void_gives_zeros_and_no_nan():
    result = _result(torch.zeros(5, dtype=torch.long), torch.full((5,), 255, dtype=torch.uint8))
    assert (result.miou, result.miou_all, result.pixel_accuracy) == (0.0, 0.0, 0.0)
    assert result.iou == [None] * 4


def test_dictionary_is_json_and_says_the_rule():
    values = json.loads(json.dumps(_result(*_random_masks()).to_dict(), allow_nan=False))
    assert len(values["confusion"]) == 4
    assert "left out" in values["rule"]


def test_a_value_outside_the_classes_is_named_with_its_count():
    counts = count_images(
        torch.zeros(1, 1, 4, dtype=torch.long), torch.tensor([[[0, 7, 7, 255]]], dtype=torch.uint8), 3
    )[0]
    with pytest.raises(SegtailorError, match=r"mask value 7 \(2 pixels\) in a\.png is outside the 3 classes"):
        check_counts(counts, 3, "a.png")
