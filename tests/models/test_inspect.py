from __future__ import annotations

from functools import cache

import pytest
import torch

from segtailor.models import (
    count_multiply_adds,
    count_parameters,
    create_model,
    inspect_model,
    list_models,
    published_multiply_adds,
)

from .family import LAYOUTS

SIZE = (512, 1024)


@cache
def on_meta(name: str, classes: int = 19) -> torch.nn.Module:
    with torch.device("meta"):
        return create_model(name, classes)


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_parameters_and_true_multiply_adds_are_exact(name: str) -> None:
    model = on_meta(name)
    assert count_parameters(model) == LAYOUTS[name]["parameters"]
    assert count_multiply_adds(model, SIZE) == LAYOUTS[name]["multiply_adds_512x1024"]


@pytest.mark.parametrize(
    ("name", "millions", "small", "large", "square"),
    [
        ("deeplabv3-resnet101", "61.1", "687.8", "2371.7", "384.4"),
        ("deeplabv3-resnet18", "13.6", "159.0", "572.0", "86.0"),
        ("pspnet-resnet18", "12.9", "131.7", "507.4", "67.5"),
        ("pspnet-resnet101", "68.1", "554.3", "2193.8", "279.2"),
        ("deeplabv3-mobilenetv2", "3.2", "39.2", "128.9", "22.6"),
        ("pspnet-mobilenetv2", "2.7", "21.4", "85.7", "10.7"),
    ],
)
def test_the_published_counter_gives_the_published_digits(
    name: str, millions: str, small: str, large: str, square: str
) -> None:
    model = on_meta(name)
    assert f"{count_parameters(model) / 1e6:.1f}" == millions
    assert f"{published_multiply_adds(model, SIZE) / 1e9:.1f}" == small
    for size, figure in (((1024, 2048), large), ((512, 512), square)):
        # Looser: PSPNet-R18's 507.4 was rounded twice (507.346, 507.35, 507.4).
        assert published_multiply_adds(model, size) / 1e9 == pytest.approx(float(figure), abs=0.06)


def test_counting_leaves_the_model_as_it_was() -> None:
    model = create_model("fcn-lcnet_050", 3).train()
    model.head.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_multiply_adds(model, (64, 64))
    published_multiply_adds(model, (64, 64))
    assert model.training
    assert model.backbone.training
    assert not model.head.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_convolution_is_counted_by_hand() -> None:
    model = create_model("fcn-lcnet_050", 3)
    whole, half = count_multiply_adds(model, (128, 128)), count_multiply_adds(model, (64, 128))
    # Squeeze-and-excite layers see one cell whatever the size; all else is proportional to the area.
    assert whole == pytest.approx(2 * half, rel=0.01)


def test_inspection_lists_taps_with_shape_and_stride() -> None:
    found = inspect_model(on_meta("deeplabv3-resnet18"), SIZE)
    taps = {tap.name: (tap.shape, tap.stride) for tap in found.taps}
    assert taps["stages.0"] == ((64, 128, 256), 4)
    assert taps["feature"] == ((128, 64, 128), 8)
    assert taps["aux_logits"] == ((19, 64, 128), 8)
    text = found.text()
    assert "13.608 M" in text
    assert "129.37 G" in text
    assert "159.0 G" in text
    assert text.splitlines()[-1].startswith("Methods use the tap 'feature'")
    assert max(map(len, text.splitlines())) <= 110


def test_inspection_at_a_size_that_strides_do_not_divide() -> None:
    taps = {tap.name: tap.stride for tap in inspect_model(create_model("deeplabv3plus-lcnet_050", 11), (180, 236)).taps}
    assert [taps[f"stages.{index}"] for index in range(4)] == [4, 8, 16, 16]
    assert (taps["feature"], taps["aux_logits"]) == (4, 16)


def test_inspection_says_when_a_backbone_cannot_dilate_and_pads() -> None:
    found = inspect_model(create_model("fcn-efficientvit_b0", 3), (60, 90))
    assert found.size == (64, 96)
    assert found.published_multiply_adds is None
    assert "keeps its own stride 32" in found.text()


def test_the_inspected_tap_exists_in_every_head() -> None:
    for name in ("deeplabv3-lcnet_050", "deeplabv3plus-lcnet_050", "fcn-lcnet_050", "pspnet-lcnet_050"):
        assert name in list_models()
        assert "feature" in {tap.name for tap in inspect_model(on_meta(name), (64, 64)).taps}
