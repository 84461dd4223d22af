from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from segtailor.data import VOID, Sample
from segtailor.data.augment import augment, draw_window

MEAN = (10, 130, 250)


def make(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    target = torch.randint(0, 20, size, generator=generator, dtype=torch.uint8)
    return Sample(image, target, "x")


def whole_frame(sample, rng, crop, scale, flip):
    """Resize the whole frame, pad, crop, flip: what the window must equal."""
    window = draw_window(tuple(sample.target.shape), rng, crop, scale, flip)
    image = F.interpolate(sample.image[None].float(), window.frame, mode="bilinear", align_corners=False)[0]
    target = F.interpolate(sample.target[None, None].float(), window.frame, mode="nearest-exact")[0, 0]
    below, beside = (max(wanted - have, 0) for wanted, have in zip(crop, window.frame, strict=True))
    mean = torch.tensor(MEAN, dtype=torch.float32).view(3, 1, 1)
    image = F.pad(image - mean, (0, beside, 0, below)) + mean
    target = F.pad(target, (0, beside, 0, below), value=VOID)
    rows, columns = slice(window.top, window.top + crop[0]), slice(window.left, window.left + crop[1])
    image, target = image[:, rows, columns], target[rows, columns]
    if window.flip:
        image, target = image.flip(-1), target.flip(-1)
    return image, target


@pytest.mark.parametrize("size", [(37, 53), (64, 96), (101, 45)])
@pytest.mark.parametrize("crop", [(32, 48), (64, 96), (75, 31), (128, 128)])
def test_equals_resizing_the_whole_frame(size, crop):
    sample = make(size)
    for seed in range(40):
        result = augment(sample, np.random.default_rng(seed), crop, (0.5, 2.0), 0.5, MEAN)
        image, target = whole_frame(sample, np.random.default_rng(seed), crop, (0.5, 2.0), 0.5)
        assert result.image.shape == (3, *crop)
        assert torch.equal(result.target.float(), target)
        assert (result.image.float() - image.round()).abs().max() <= 2


def test_handles_the_strided_views_that_decoders_give():
    sample = make((37, 53))
    strided = sample._replace(image=sample.image.permute(1, 2, 0).contiguous().permute(2, 0, 1))
    for seed in range(8):
        results = [augment(s, np.random.default_rng(seed), (32, 32), (0.5, 2.0)) for s in (sample, strided)]
        assert torch.equal(results[0].image, results[1].image)
        assert results[1].image.is_contiguous()


def test_leaves_the_frame_alone_when_nothing_is_to_be_drawn():
    sample = make((24, 30))
    result = augment(sample, np.random.default_rng(0), (24, 30), (1.0, 1.0), 0.0)
    assert torch.equal(result.image, sample.image)
    assert torch.equal(result.target, sample.target)


def test_scales_are_the_sixteen_tenths_and_offsets_cover_the_frame():
    rng = np.random.default_rng(0)
    windows = [draw_window((100, 100), rng, (100, 100), (0.5, 2.0), 0.25) for _ in range(4000)]
    assert {window.frame[0] for window in windows} == {50 + 10 * step for step in range(16)}
    largest = [window for window in windows if window.frame[0] == 110]
    assert {window.top for window in largest} == set(range(11))
    assert np.mean([window.flip for window in windows]) == pytest.approx(0.25, abs=0.03)


def test_padding_is_mean_color_and_void_at_bottom_and_right():
    result = augment(make((20, 20)), np.random.default_rng(0), (24, 26), (1.0, 1.0), 0.0, MEAN)
    assert (result.target[20:] == VOID).all()
    assert (result.target[:, 20:] == VOID).all()
    assert (result.target[:20, :20] != VOID).all()
    assert result.image[:, 22, 23].tolist() == list(MEAN)


def test_a_crop_that_is_void_throughout_is_allowed():
    sample = make((20, 20))._replace(target=torch.full((20, 20), VOID, dtype=torch.uint8))
    assert (augment(sample, np.random.default_rng(0), (16, 16)).target == VOID).all()


def test_a_window_of_one_column_is_flipped():
    """NumPy takes one column for contiguous at any stride, and torch refuses a negative one."""
    column = augment(make((8, 6)), np.random.default_rng(0), (4, 1), scale=(1, 1), flip=1, mean_color=MEAN)
    assert column.image.shape == (3, 4, 1)
