from __future__ import annotations

import pytest
import torch

from segtailor.config import DataConfig, EvaluateConfig
from segtailor.errors import SegtailorError
from segtailor.evaluation import inference_settings, predict_logits

from .fakes import TinyModel

FILL = (10, 20, 30)


def _images(height, width):
    return torch.randint(0, 256, (2, 3, height, width), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)


def _window_loop(model, images, window, stride):
    """Average of the windows' logits, computed pixel by pixel from a list of windows."""
    height, width = images.shape[-2:]
    tops = sorted({min(top, height - window[0]) for top in range(0, height, stride[0])})
    lefts = sorted({min(left, width - window[1]) for left in range(0, width, stride[1])})
    parts = []
    for top in tops:
        for left in lefts:
            crop = images[:, :, top : top + window[0], left : left + window[1]]
            parts.append((top, left, model.upsample(model(crop).logits, window)))
    out = torch.zeros(images.shape[0], model.num_classes, height, width)
    for y in range(height):
        for x in range(width):
            values = [
                part[:, :, y - top, x - left]
                for top, left, part in parts
                if top <= y < top + window[0] and left <= x < left + window[1]
            ]
            out[:, :, y, x] = torch.stack(values).mean(0)
    return out


@torch.no_grad()
@pytest.mark.parametrize(("window", "stride"), [((8, 8), (4, 4)), ((8, 8), (5, 7)), ((8, 12), (8, 12))])
def test_sliding_equals_a_loop(window, stride):
    model, images = TinyModel(), _images(14, 19)
    logits = predict_logits(model, images, (14, 19), mode="slide", window=window, stride=stride)
    torch.testing.assert_close(logits, _window_loop(model, images, window, stride))


@torch.no_grad()
def test_one_window_as_large_as_the_image_is_the_whole_image():
    model, images = TinyModel(), _images(8, 12)
    whole = predict_logits(model, images, (16, 24))
    slide = predict_logits(model, images, (8, 12), mode="slide", window=(8, 12))
    torch.testing.assert_close(slide, predict_logits(model, images, (8, 12)))
    assert whole.shape == (2, 3, 16, 24)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["whole", "slide"])
def test_padding_is_the_mean_colour_and_is_cropped(mode):
    model, images = TinyModel(size_multiple=8), _images(5, 6)
    logits = predict_logits(model, images, (5, 6), mode=mode, window=(8, 8), fill=FILL)
    padded = torch.tensor(FILL, dtype=torch.uint8).view(1, 3, 1, 1).repeat(2, 1, 8, 8)
    padded[:, :, :5, :6] = images
    torch.testing.assert_close(logits, predict_logits(model, padded, (8, 8))[:, :, :5, :6])


@torch.no_grad()
def test_sliding_window_that_is_no_multiple_is_padded_itself():
    model = TinyModel(size_multiple=8)
    predict_logits(model, _images(20, 20), (20, 20), mode="slide", window=(12, 12), stride=(6, 6))
    assert {shape[-2:] for shape in model.seen} == {(16, 16)}


def test_sliding_needs_a_window_and_no_gaps():
    with pytest.raises(SegtailorError, match="needs its size"):
        predict_logits(TinyModel(), _images(8, 8), (8, 8), mode="slide")
    with pytest.raises(SegtailorError, match="would leave gaps"):
        inference_settings(EvaluateConfig(mode="slide", stride=(6, 4)), DataConfig(crop=(4, 4)))


def test_settings_fall_back_on_the_training_window():
    evaluate = EvaluateConfig(mode="slide")
    assert inference_settings(evaluate, DataConfig(crop=(32, 48)))["window"] == (32, 48)
    with pytest.raises(SegtailorError, match="needs a window"):
        inference_settings(evaluate, DataConfig())
