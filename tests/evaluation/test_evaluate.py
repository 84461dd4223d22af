from __future__ import annotations

import pytest
import torch

from segtailor.errors import SegtailorError
from segtailor.evaluation import evaluate_model, predict_logits
from segtailor.models.network import SegOutput
from segtailor.models.teacher import Teacher

from .fakes import TinyData, TinyModel

SIZES = [(8, 10), (7, 9), (8, 10), (8, 10), (7, 9)]


def _by_hand(model, data, mask_size=None):
    """The confusion matrix, image by image and pixel by pixel."""
    confusion = torch.zeros(3, 3, dtype=torch.int64)
    for sample in data.items:
        size = tuple(sample.target.shape)
        with torch.no_grad():
            labels = predict_logits(model, sample.image[None], size, fill=data.mean_color)[0].argmax(0)
        for row, column in zip(sample.target.flatten().tolist(), labels.flatten().tolist(), strict=True):
            if row != 255:
                confusion[row, column] += 1
    return confusion


def test_equals_a_loop_over_images_of_different_sizes():
    model, data = TinyModel(), TinyData(SIZES)
    result = evaluate_model(model, data, batch=2)
    assert torch.equal(result.confusion, _by_hand(model, data))
    assert result.images == 5
    assert result.void_pixels == sum(int((item.target == 255).sum()) for item in data.items)
    assert max(shape[0] for shape in model.seen[:3]) == 2  # equal sizes went together


def test_scores_at_the_masks_own_size():
    model, data = TinyModel(), TinyData([(8, 10)] * 2, mask_sizes=[(15, 21), (16, 20)])
    result = evaluate_model(model, data)
    assert torch.equal(result.confusion, _by_hand(model, data))
    assert int(result.confusion.sum()) + result.void_pixels == 15 * 21 + 16 * 20


def test_batch_and_reader_threads_do_not_matter():
    model, data = TinyModel(), TinyData(SIZES)
    first = evaluate_model(model, data, batch=1).confusion
    assert torch.equal(first, evaluate_model(model, data, batch=3, workers=3).confusion)


def test_limit_takes_the_first_images():
    model, data = TinyModel(), TinyData(SIZES)
    result = evaluate_model(model, data, limit=2)
    assert torch.equal(result.confusion, evaluate_model(model, TinyData(SIZES[:2])).confusion)
    assert result.images == 2


def test_each_modules_mode_is_put_back():
    model = TinyModel().train()
    model.net.eval()
    evaluate_model(model, TinyData(SIZES))
    assert model.training
    assert not model.net.training


def test_teacher_sees_the_target():
    class Reader(TinyModel):
        def forward(self, images):
            raise AssertionError("a teacher is called with its target")

    class Cheat(Teacher):
        def forward(self, images, target):
            assert target.shape == (images.shape[0], *images.shape[-2:])
            labels = target.long().clamp(max=2)
            return SegOutput(torch.nn.functional.one_hot(labels, 3).permute(0, 3, 1, 2).float())

        def upsample(self, logits, size):
            return torch.nn.functional.interpolate(logits, size)

    data = TinyData([(8, 10)] * 2)
    assert evaluate_model(Cheat(Reader()), data).miou == 1.0


def test_another_class_count_is_an_error():
    with pytest.raises(SegtailorError, match="the model has 5 classes but the data set has 3"):
        evaluate_model(TinyModel(num_classes=5), TinyData(SIZES))


def test_wrong_mask_value_names_the_image():
    data = TinyData([(8, 10)])
    data.items[0].target[5, 5] = 9
    with pytest.raises(SegtailorError, match=r"mask value 9 \(1 pixels\) in image 0"):
        evaluate_model(TinyModel(), data)


def test_empty_split_is_an_error():
    with pytest.raises(SegtailorError, match="no images"):
        evaluate_model(TinyModel(), TinyData([]))
