"""What is found out about a foreign network by trying it: classifier, feature, corner rule, maps."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.foreign import photo
from segtailor.errors import SegtailorError
from segtailor.models import Preprocess, inspect_model
from segtailor.models.adapters.discovery import find_maps
from segtailor.models.adapters.wrapper import Adapted
from segtailor.models.taps import layout_of, trace


class Backbone(nn.Module):
    """Four maps at strides 4 to 32, or dilated to ``stride``."""

    def __init__(self, stride: int = 32) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, 2, 1)
        steps = [2 if 4 * 2**index <= stride else 1 for index in range(4)]
        for index, step in enumerate(steps):
            block = nn.Sequential(nn.Conv2d(6 + 2 * index, 8 + 2 * index, 3, step, 1), nn.BatchNorm2d(8 + 2 * index))
            setattr(self, f"layer{index}", block)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = [self.stem(x)]
        for index in range(4):
            maps.append(getattr(self, f"layer{index}")(maps[-1]).relu())
        return maps[1:]


class Segmentation(nn.Module):
    """A head on the last map, in the variants that exist."""

    def __init__(self, corners: bool = False, ends: str = "conv", stride: int = 32) -> None:
        super().__init__()
        self.corners, self.ends = corners, ends
        self.backbone = Backbone(stride)
        self.head = nn.Sequential(nn.Conv2d(14, 10, 1), nn.ReLU(), nn.Dropout(0.5))
        self.classifier: nn.Module = nn.Conv2d(10, 4, 1)
        if ends == "linear":
            self.classifier = nn.Linear(10, 4)
        self.low = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.backbone(x)
        value = self.head(maps[-1])
        if self.ends == "linear":
            value = self.classifier(value.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        else:
            value = self.classifier(value)
        if self.ends == "sum":
            value = F.interpolate(value, maps[0].shape[-2:]) + self.low(maps[0])
        if self.ends == "small":
            return value
        mode = "nearest" if self.ends == "nearest" else "bilinear"
        corners = None if mode == "nearest" else self.corners
        return F.interpolate(value, x.shape[-2:], mode=mode, align_corners=corners)


def adapted(net: nn.Module, num_classes: int = 4, multiple: int = 32, **options: Any) -> Adapted:
    return Adapted("module:mine:net", num_classes, net, Preprocess(size_multiple=multiple), **options)


@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("ends", ["conv", "linear", "small"])
def test_the_logits_are_the_classifiers_and_are_enlarged_as_the_network_does(corners: bool, ends: str) -> None:
    torch.manual_seed(0)
    net = Segmentation(corners, ends).eval()
    network = adapted(net).eval()
    images = photo(96, 160)
    with torch.no_grad():
        output, full = network(images), net(network.preprocess(images))
    assert network.classifier == "classifier"
    assert output.logits.shape == (1, 4, 3, 5)
    if ends != "small":
        torch.testing.assert_close(network.upsample(output.logits, (96, 160)), full)
        assert network.align_corners == corners
    assert output.feature is not None
    assert output.feature.shape == (1, 10, 3, 5)


def test_the_feature_is_before_dropout_and_the_classifiers_input_after_it() -> None:
    network = adapted(Segmentation()).train()
    output = network(photo(96, 160, count=2))
    assert output.feature is not None
    assert output.classifier_input is not None
    dropped = (output.classifier_input == 0) & (output.feature != 0)
    assert dropped.any()
    kept = output.classifier_input != 0
    torch.testing.assert_close(output.classifier_input[kept], 2 * output.feature[kept])


def test_maps_are_the_backbones_finest_first() -> None:
    network = adapted(Segmentation())
    assert network.stage_strides == (4, 8, 16, 32)
    assert [network.tap_channels[f"stages.{index}"] for index in range(4)] == [8, 10, 12, 14]
    assert adapted(Segmentation(stride=8)).stage_strides == (4, 8, 8, 8)
    mapped = adapted(Segmentation(stride=16))
    assert mapped.stage_strides[:2] == (4, 8)
    assert mapped.tap_sources["stages.0"].path == "backbone.layer0"
    parameters = {id(value) for value in network.encoder_parameters()}
    assert parameters == {id(value) for value in network.get_submodule("net.backbone").parameters()}


@pytest.mark.parametrize("ends", ["sum", "nearest"])
def test_a_network_without_one_classifier_gives_its_own_logits_and_says_so(ends: str) -> None:
    net = Segmentation(ends=ends).eval()
    network = adapted(net).eval()
    with torch.no_grad():
        output = network(photo(96, 160))
        torch.testing.assert_close(output.logits, net(network.preprocess(photo(96, 160))))
    assert output.feature is None
    assert "feature" not in network.tap_channels
    assert network.note == "it gives logits alone and no feature"
    assert "It gives no feature" in inspect_model(network, (96, 160)).text()
    named = adapted(Segmentation(ends=ends), taps={"feature": "head.1"})
    output = named(photo(96, 160))
    assert output.feature is output.classifier_input
    assert named.tap_channels["classifier_input"] == 10
    assert named.note == ""


class Tokens(nn.Module):
    """A plain transformer's shapes: tokens with two in front that have no position."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 16, 16)
        self.extra = nn.Parameter(torch.randn(1, 2, 6))
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(8))
        self.classifier = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.patches(x)
        tokens = torch.cat([self.extra.expand(len(x), -1, -1), grid.flatten(2).transpose(1, 2)], dim=1)
        for block in self.blocks:
            tokens = tokens + block(tokens)
        logits = self.classifier(tokens)[:, 2:]
        small = logits.transpose(1, 2).reshape(len(x), 4, *grid.shape[-2:])
        return F.interpolate(small, scale_factor=16, mode="bilinear")


def test_tokens_become_maps_whatever_the_proportions() -> None:
    torch.manual_seed(0)
    net = Tokens().eval()
    network = adapted(net, multiple=16).eval()
    images = photo(64, 144)
    with torch.no_grad():
        output = network(images)
        torch.testing.assert_close(network.upsample(output.logits, (64, 144)), net(network.preprocess(images)))
    assert output.feature is not None
    assert output.feature.shape == (1, 6, 4, 9)
    assert network.stage_strides == (16,) * 4
    grid = net.patches(network.preprocess(images))
    assert layout_of(torch.zeros(1, 38, 6), (64, 144)) == ("tokens:2", 6, 16)
    assert output.stages[0].shape == grid.shape


def test_the_module_of_each_map_is_found_by_its_values() -> None:
    torch.manual_seed(0)
    net = Segmentation().eval()
    steps, maps = trace(net.backbone, lambda: net.backbone(torch.randn(1, 3, 96, 128)))
    assert find_maps(steps, maps, (96, 128)) == [None] * 4  # relu is no module here
    before = [step.output for step in steps if step.path in ("layer0", "layer2")]
    assert find_maps(steps, [value for value in before if value is not None], (96, 128)) == ["layer0", "layer2"]


class Picky(nn.Module):
    """A network that runs at one size alone."""

    def __init__(self, size: tuple[int, int] = (40, 60)) -> None:
        super().__init__()
        self.size, self.conv = size, nn.Conv2d(3, 4, 3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != self.size:
            raise ValueError(f"size must be {self.size}\nfor the position embedding")
        return F.interpolate(self.conv(x), scale_factor=4, mode="bilinear")


def test_a_network_of_one_size_is_run_at_it_and_enlarges_in_two_steps() -> None:
    with pytest.raises(SegtailorError, match=r"does not run on an image of \d+ x \d+ \(size must be \(40, 60\)\); if"):
        adapted(Picky())
    net = Picky().eval()
    network = Adapted("module:mine:net", 4, net, Preprocess(size=(40, 60))).eval()
    images = photo(80, 90)
    with torch.no_grad():
        output = network(images)
        full = F.interpolate(net(network.preprocess(images)), (80, 90), mode="bilinear")
    assert output.logits.shape == (1, 4, 10, 15)
    torch.testing.assert_close(network.upsample(output.logits, (80, 90)), full)


def test_a_size_that_it_does_not_take_is_named_and_what_else_fails_is_not_hidden() -> None:
    network = Adapted("module:mine:net", 4, Picky(), Preprocess(size=(40, 60)))
    with pytest.raises(SegtailorError, match=r"does not run on an image of 64 x 96 \(size must be \(40, 60\)\); if it"):
        network.forward_normalized(torch.zeros(1, 3, 64, 96))
    network.get_submodule("net.conv").register_forward_hook(run_out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        network(photo(40, 60))


def run_out_of_memory(*_: Any) -> None:
    raise torch.OutOfMemoryError("out of memory")


def test_wrong_class_counts_and_paths_are_named() -> None:
    with pytest.raises(SegtailorError, match=r"gives logits of shape \[1, 4, 96, 128\] .*, not \(1,5,h,w\); check"):
        adapted(Segmentation(), num_classes=5)
    with pytest.raises(SegtailorError, match=r"unknown module .*'clasifier'; nearest: classifier, "):
        adapted(Segmentation(), classifier="clasifier")
    with pytest.raises(SegtailorError, match="the output of low, enlarged, is not the network's logits"):
        adapted(Segmentation(ends="sum"), classifier="low")
    with pytest.raises(SegtailorError, match=r"low of tap 'low' does not run in a forward"):
        adapted(Segmentation(), taps={"low": "low"})
    with pytest.raises(SegtailorError, match=r"gate gives a tensor of shape \[1, 3, 1, 1\], no map of the image"):
        adapted(Gated(), taps={"gate": "gate"})


class Gated(Segmentation):
    """A network with a module that gives no map."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.gate(x).sigmoid())


def test_one_image_in_a_batch_can_be_trained() -> None:
    class Pooled(Segmentation):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(14)

        def forward(self, x: Tensor) -> Tensor:
            maps = self.backbone(x)
            value = maps[-1] + self.norm(maps[-1].mean((2, 3), keepdim=True))
            return F.interpolate(self.classifier(self.head(value)), x.shape[-2:], mode="bilinear")

    network = adapted(Pooled()).train()
    network(photo(96, 128)).logits.sum().backward()
    assert network.get_submodule("net.norm").weight.grad is not None


def test_the_mode_of_every_module_is_put_back_after_the_trial() -> None:
    net = Segmentation().train()
    net.backbone.eval()
    adapted(net)
    assert net.training
    assert not net.backbone.layer0.training  # type: ignore[union-attr]
    assert net.head.training


def test_the_spec_says_what_was_chosen() -> None:
    network = adapted(Segmentation(), classifier="classifier", taps={"deep": "backbone.layer2"}, options={"config": {}})
    assert network.spec() == {
        "name": "module:mine:net",
        "num_classes": 4,
        "preprocess": Preprocess(size_multiple=32).spec(),
        "config": {},
        "classifier": "classifier",
        "taps": {"deep": "backbone.layer2"},
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ends", ["conv", "linear"])
def test_a_network_of_another_precision_keeps_it_and_gives_float32(dtype: torch.dtype, ends: str) -> None:
    torch.manual_seed(0)
    net = Segmentation(ends=ends)
    plain = Adapted("plain", 4, deepcopy(net), Preprocess())
    other = Adapted("other", 4, net.to(dtype), Preprocess())
    assert other.tap_sources == plain.tap_sources
    assert (other.tap_channels, other.align_corners) == (plain.tap_channels, plain.align_corners)
    output, expected = other.eval()(photo(96, 160)), plain.eval()(photo(96, 160))
    assert {value.dtype for value in (output.logits, output.feature, *output.stages)} == {torch.float32}
    near = 0.1 if dtype is torch.bfloat16 else 1e-4
    assert torch.allclose(output.logits, expected.logits, atol=near, rtol=near)
    assert {value.dtype for value in other.net.parameters()} == {dtype}
    output.logits.sum().backward()
    assert other.net.backbone.stem.weight.grad is not None
    assert set(inspect_model(other).taps) == set(inspect_model(plain).taps)
    assert other.float()(photo(96, 160)).logits.dtype == torch.float32


def test_a_network_without_values_is_refused() -> None:
    with torch.device("meta"):
        net = Segmentation()
    with pytest.raises(SegtailorError, match="shell is on the device meta, without values; give it weights first"):
        Adapted("shell", 4, net, Preprocess())
