from __future__ import annotations

import warnings

import pytest
import torch

from segtailor.errors import SegtailorError
from segtailor.models import create_model, heads
from segtailor.models.heads import HEADS, atrous_rates

CHANNELS, STRIDES = (8, 12, 16, 24), (4, 8, 8, 8)


def maps(batch: int) -> list[torch.Tensor]:
    return [
        torch.randn(batch, count, 64 // stride, 96 // stride) for count, stride in zip(CHANNELS, STRIDES, strict=True)
    ]


@pytest.mark.parametrize("name", sorted(HEADS))
@pytest.mark.parametrize("batch", [1, 2])
def test_a_head_trains_on_one_image_as_on_two(name: str, batch: int) -> None:
    head = HEADS[name](CHANNELS, STRIDES, num_classes=3, width=10).train()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logits, feature, classifier_input = head(maps(batch))
    assert feature.shape[1] == classifier_input.shape[1] == 10
    assert logits.shape == (batch, 3, *feature.shape[-2:])
    logits.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in head.parameters())


@pytest.mark.parametrize("name", ["deeplabv3", "deeplabv3plus", "pspnet", "fcn"])
def test_the_feature_is_tapped_before_dropout(name: str) -> None:
    head = HEADS[name](CHANNELS, STRIDES, num_classes=3, width=40).train()
    _, feature, after = head(maps(2))
    dropped = (after == 0) & (feature != 0)
    assert 0.05 < dropped.float().sum() / (feature != 0).sum() < 0.15
    torch.testing.assert_close(after[~dropped], feature[~dropped] / 0.9)
    _, feature, after = head.eval()(maps(2))
    assert torch.equal(feature, after)


def test_segformer_drops_nothing() -> None:
    head = HEADS["segformer"](CHANNELS, STRIDES, num_classes=3, width=10).train()
    _, feature, after = head(maps(2))
    assert torch.equal(feature, after)


def test_one_value_per_channel_uses_running_statistics_and_is_announced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "_warned_about_single_values", False)
    norm = heads.PooledBatchNorm2d(4)
    norm.running_mean.fill_(2.0)
    norm.running_var.fill_(4.0)
    x = torch.randn(1, 4, 1, 1)
    with pytest.warns(UserWarning, match="one image per device"):
        found = norm.train()(x)
    torch.testing.assert_close(found, (x - 2) / 2, atol=1e-4, rtol=1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        norm(x)
        two = torch.randn(2, 4, 1, 1)
        assert torch.equal(heads.PooledBatchNorm2d(4)(two), torch.nn.BatchNorm2d(4)(two))


@pytest.mark.parametrize("name", sorted(HEADS))
def test_a_map_of_one_cell_trains_alone(name: str) -> None:
    head = HEADS[name](CHANNELS, STRIDES, num_classes=3, width=8).train()
    logits, *_ = head([torch.randn(1, count, 1, 1) for count in CHANNELS])
    assert torch.isfinite(logits).all()


def test_a_backbone_that_cannot_train_on_a_tiny_crop_says_what_to_set() -> None:
    model = create_model("fcn-lcnet_050", 3).train()
    with pytest.raises(SegtailorError, match=r"1 image of 8 x 8 .*; set a larger data.crop or train.batch"):
        model(torch.zeros(1, 3, 8, 8))


def test_atrous_rates_cover_the_same_pixels_at_every_stride() -> None:
    assert atrous_rates(8) == (12, 24, 36)
    assert {tuple(rate * stride for rate in atrous_rates(stride)) for stride in (8, 16, 32)} == {(96, 192, 288)}


def test_a_wide_backbone_gets_the_published_width() -> None:
    with torch.device("meta"):
        assert create_model("deeplabv3-resnet101", 2).feature_channels == 256
        assert create_model("pspnet-resnet101", 2).feature_channels == 512
        assert create_model("segformer-mit_b2", 2).feature_channels == 768
