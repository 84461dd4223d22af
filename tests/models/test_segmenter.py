from __future__ import annotations

import pytest
import torch

from segtailor.errors import SegtailorError
from segtailor.models import Segmenter, create_model, list_models
from segtailor.models.backbones import is_timm_name
from segtailor.models.heads import HEADS
from segtailor.models.mit import MIT_SIZES
from segtailor.models.segmenter import is_published

IMAGES = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

# name, stride of the logits, width of the feature, auxiliary head, channels of the stages
FAMILIES = [
    ("deeplabv3-resnet18", 8, 128, True, (64, 128, 256, 512)),
    ("deeplabv3-mobilenetv2", 8, 128, False, (24, 32, 96, 320)),
    ("pspnet-resnet18", 8, 128, True, (64, 128, 256, 512)),
    ("deeplabv3plus-tf_efficientnet_lite0", 4, 128, True, (24, 40, 112, 320)),
    ("deeplabv3plus-lcnet_050", 4, 128, True, (32, 64, 128, 256)),
    ("fcn-lcnet_050", 8, 64, True, (32, 64, 128, 256)),
    ("segformer-mit_b0", 4, 256, False, (32, 64, 160, 256)),
    ("segformer-lcnet_050", 4, 256, False, (32, 64, 128, 256)),
]


@pytest.mark.parametrize(("name", "stride", "width", "aux", "channels"), FAMILIES)
def test_every_family_gives_its_taps(name: str, stride: int, width: int, aux: bool, channels: tuple[int, ...]) -> None:
    model = create_model(name, 5).eval()
    with torch.no_grad():
        output = model(IMAGES)
    grid = (64 // stride, 96 // stride)
    assert output.logits.shape == (2, 5, *grid)
    assert output.feature.shape == output.classifier_input.shape == (2, width, *grid)
    assert model.has_aux == aux == (output.aux_logits is not None)
    assert tuple(stage.shape[1] for stage in output.stages) == channels
    sizes = [stage.shape[-1] for stage in output.stages]
    assert sizes == sorted(sizes, reverse=True)
    for tap, count in model.tap_channels.items():
        assert output.tap(tap).shape[1] == count
    assert model.feature_channels == width
    assert model.upsample(output.logits, (64, 96)).shape == (2, 5, 64, 96)
    if aux:
        assert output.aux_logits.shape[-2:] == output.stages[-2].shape[-2:]


def test_the_same_spec_builds_the_same_network() -> None:
    model = create_model("deeplabv3plus-lcnet_050", 4, output_stride=8, head_width=24)
    spec = model.spec()
    again = create_model(**spec)
    assert again.spec() == spec
    assert again.feature_channels == 24
    assert again.backbone.strides[-1] == 8
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model.eval()(IMAGES).logits, again.eval()(IMAGES).logits)


def test_preprocessing_is_the_families_own() -> None:
    published = create_model("pspnet-mobilenetv2", 3).preprocess
    red = torch.tensor([200.0, 0.0, 0.0]).view(1, 3, 1, 1)
    expected = torch.tensor([0 - 104.00698793, 0 - 116.66876762, 200 - 122.67891434])
    torch.testing.assert_close(published(red).flatten(), expected)
    lite = create_model("fcn-tf_efficientnet_lite0", 3).preprocess
    torch.testing.assert_close(lite(red).flatten(), torch.tensor([200 / 127.5 - 1, -1.0, -1.0]))


def test_raw_bytes_and_floats_give_the_same_and_normalized_input_skips_preprocessing() -> None:
    model = create_model("fcn-lcnet_050", 3).eval()
    with torch.no_grad():
        expected = model(IMAGES).logits
        assert torch.equal(model(IMAGES.float()).logits, expected)
        assert torch.equal(model.forward_normalized(model.preprocess(IMAGES)).logits, expected)


@pytest.mark.parametrize(("name", "align"), [("deeplabv3-lcnet_050", True), ("segformer-lcnet_050", False)])
def test_logits_are_enlarged_by_the_families_corner_rule(name: str, align: bool) -> None:
    model = create_model(name, 2)
    logits = torch.randn(1, 2, 3, 4)
    expected = torch.nn.functional.interpolate(logits, (9, 12), mode="bilinear", align_corners=align)
    assert torch.equal(model.upsample(logits, (9, 12)), expected)


def test_a_backbone_that_cannot_dilate_keeps_its_stride_and_says_so() -> None:
    model = create_model("fcn-efficientvit_b0", 3).eval()
    assert model.backbone.strides[-1] == 32
    assert "keeps its own stride 32" in model.backbone.note
    with torch.no_grad():
        assert model(IMAGES).logits.shape[-2:] == (2, 3)
    with pytest.raises(SegtailorError, match="cannot have output stride 8"):
        create_model("fcn-efficientvit_b0", 3, output_stride=8)


@pytest.mark.parametrize("name", ["fcn-vit_tiny_patch16_224", "segformer-swin_tiny_patch4_window7_224"])
def test_transformers_take_any_size_that_their_patches_divide(name: str) -> None:
    model = create_model(name, 3).eval()
    multiple = model.preprocess.size_multiple
    assert 64 % multiple == 0
    assert multiple > 1
    with torch.no_grad():
        output = model(IMAGES)
    assert [stage.shape[1] for stage in output.stages] == list(model.backbone.channels)


@pytest.mark.parametrize("name", ["fcn-levit_128s", "fcn-botnet26t_256"])
def test_a_backbone_tied_to_one_image_size_is_refused_when_built(name: str) -> None:
    with pytest.raises(SegtailorError, match="one image size only") as caught:
        create_model(name, 3)
    assert "\n" not in str(caught.value)


def test_mit_refuses_another_stride() -> None:
    with pytest.raises(SegtailorError, match="output_stride"):
        create_model("segformer-mit_b0", 3, output_stride=8)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("deeplabv3-resnet81", "deeplabv3-resnet18"),
        ("deeplab-resnet18", "deeplabv3-resnet18"),
        ("segformer-mit_b9", "segformer-mit_b5"),
        ("fcn-lcnet_055", "fcn-lcnet_050"),
        ("pspnet", "pspnet-resnet50"),
    ],
)
def test_unknown_names_list_the_nearest(wrong: str, near: str) -> None:
    with pytest.raises(SegtailorError, match=f"unknown model '{wrong}'") as caught:
        create_model(wrong, 3)
    listed = str(caught.value).split("nearest: ")[1].split(", ")
    assert len(listed) == 5
    assert near in listed


@pytest.mark.parametrize("count", [0, -1, 256])
def test_class_counts_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(SegtailorError, match="num_classes"):
        create_model("fcn-lcnet_050", count)


def test_the_list_names_what_can_be_built() -> None:
    names = list_models()
    assert names == sorted(set(names))
    assert {"deeplabv3-resnet101", "pspnet-resnet18", "deeplabv3-mobilenetv2", "segformer-mit_b5"} <= set(names)
    for name in names:
        head, _, backbone = name.partition("-")
        assert head in HEADS
        assert backbone in MIT_SIZES or backbone == "mobilenetv2" or is_timm_name(backbone)
    assert sum(map(is_published, names)) == 2 * 4 + 6


def test_a_file_of_imagenet_weights_is_for_the_published_family_alone(tmp_path) -> None:
    with pytest.raises(SegtailorError, match="published family"):
        create_model("fcn-lcnet_050", 3, pretrained=str(tmp_path / "a.pth"))
    with pytest.raises(SegtailorError, match="no such file"):
        create_model("deeplabv3-resnet18", 3, pretrained=str(tmp_path / "a.pth"))


def test_gradients_reach_every_parameter() -> None:
    model: Segmenter = create_model("deeplabv3plus-lcnet_050", 3)
    output = model(IMAGES)
    (output.logits.square().mean() + output.aux_logits.square().mean()).backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []
