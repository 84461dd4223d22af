"""Plain vision transformers of timm under our heads: tokens to maps, any image size, finer maps for some heads."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from segtailor.errors import SegtailorError
from segtailor.models import create_model, inspect_model, list_models
from segtailor.models.vit_pyramid import TokenPyramid, evenly_spaced

TINY = "vit_tiny_patch16_224"
NOISE = torch.randint(0, 256, (2, 3, 70, 100), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def fitted(model: Any) -> torch.Tensor:
    """Noise at a size that the model takes, which is none that it was trained at."""
    height, width = model.preprocess.input_size((50, 80))
    return NOISE[..., :height, :width]


FAMILIES = [
    ("vit_tiny_patch16_224", 16),
    ("vit_small_patch14_dinov2", 14),
    ("vit_small_patch14_reg4_dinov2", 14),
    ("deit3_small_patch16_224", 16),
    ("eva02_tiny_patch14_224", 14),
]


@pytest.mark.parametrize(("backbone", "patch"), FAMILIES)
def test_the_maps_are_four_blocks_at_even_depths_whatever_the_image_size(backbone: str, patch: int) -> None:
    model = create_model(f"fcn-{backbone}", 3).eval()
    images = fitted(model)
    height, width = images.shape[-2:]
    assert (height, width) == (patch * -(-50 // patch), patch * -(-80 // patch))
    with torch.no_grad():
        output = model(images)
        inputs = model.preprocess(images)
        inner = model.backbone.net.model
        final, blocks = inner.forward_intermediates(inputs, indices=[2, 5, 8, 11], norm=True)
    assert output.logits.shape == (2, 3, height // patch, width // patch)
    for stage, block in zip(output.stages, blocks, strict=True):
        torch.testing.assert_close(stage, block)
    # rows and columns lie as in the image, behind whatever class and register tokens there are
    prefix = inner.num_prefix_tokens
    tokens = final[:, prefix:]
    torch.testing.assert_close(output.stages[-1].flatten(2).transpose(1, 2), tokens)
    assert model.stage_strides == (patch,) * 4
    assert model.preprocess.size_multiple == patch


@pytest.mark.parametrize("head", ["fcn", "deeplabv3", "pspnet"])
def test_heads_of_one_map_work_at_the_patch_stride_and_say_so(head: str) -> None:
    model = create_model(f"{head}-{TINY}", 3)
    assert "keeps its own stride 16" in model.note
    output = model(fitted(model))
    assert output.logits.shape[-2:] == output.aux_logits.shape[-2:] == (4, 5)


@pytest.mark.parametrize(
    ("name", "strides", "note"),
    [
        (f"deeplabv3plus-{TINY}", (4, 16, 16, 16), "its first maps are enlarged to 4"),
        (f"segformer-{TINY}", (4, 8, 16, 16), "its first maps are enlarged to 4 and 8"),
        ("deeplabv3plus-vit_small_patch14_dinov2", (7, 14, 14, 14), "its first maps are enlarged to 7"),
        ("segformer-vit_small_patch14_dinov2", (7, 7, 14, 14), "its first maps are enlarged to 7 and 7"),
    ],
)
def test_heads_that_want_fine_maps_get_them(name: str, strides: tuple[int, ...], note: str) -> None:
    model = create_model(name, 3)
    assert model.stage_strides == strides
    assert note in inspect_model(model, (64, 96)).note
    output = model(fitted(model))
    height, width = fitted(model).shape[-2:]
    for stage, stride, channels in zip(output.stages, strides, model.backbone.channels, strict=True):
        assert stage.shape[1:] == (channels, height // stride, width // stride)
    assert output.logits.shape[-2:] == (height // strides[0], width // strides[0])


@pytest.mark.parametrize("head", ["deeplabv3plus", "segformer", "fcn"])
def test_every_parameter_is_trained(head: str) -> None:
    """Data parallelism refuses a network with parameters that get no gradient."""
    model = create_model(f"{head}-{TINY}", 3)
    output = model(fitted(model))
    loss = output.logits.square().mean()
    if output.aux_logits is not None:
        loss = loss + output.aux_logits.square().mean()
    loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_trained_weights_are_those_of_the_whole_network(monkeypatch: pytest.MonkeyPatch) -> None:
    build, made = timm.create_model, []

    def online(*arguments: Any, pretrained: bool = False, **options: Any) -> Any:
        net = build(*arguments, pretrained=False, **options)
        if pretrained:
            made.append(net)
        return net

    monkeypatch.setattr(timm, "create_model", online)
    model = create_model(f"fcn-{TINY}", 3, pretrained=True)
    given = made[0].state_dict()
    own = model.backbone.net.model.state_dict()
    assert {"norm.weight", "pos_embed", "blocks.11.mlp.fc2.weight"} <= own.keys()
    assert all(torch.equal(value, given[name]) for name, value in own.items())
    assert "timm" in model.licenses["backbone"]


def test_the_spec_builds_the_same_network() -> None:
    model = create_model(f"deeplabv3plus-{TINY}", 3).eval()
    again = create_model(**model.spec()).eval()
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(model(fitted(model)).logits, again(fitted(again)).logits)


def test_a_pyramid_does_not_go_finer_than_stride_4() -> None:
    assert TokenPyramid(16, 8, 4).strides == [4, 4, 8, 8]
    assert TokenPyramid(16, 4, 4).strides == [4, 4, 4, 4]
    assert TokenPyramid(16, 15, 4).strides == [15, 15, 15, 15]
    assert TokenPyramid(16, 32, 2, fine=1).channels == [4, 16]
    assert evenly_spaced(24) == [5, 11, 17, 23]


def test_a_transformer_tied_to_one_size_is_refused() -> None:
    with pytest.raises(SegtailorError, match="works at one image size only"), torch.device("meta"):
        create_model("fcn-beit_base_patch16_224", 3)


def test_they_are_listed() -> None:
    assert {"fcn-vit_small_patch14_dinov2", "segformer-vit_small_patch14_dinov2"} <= set(list_models())
