"""Segmentation networks of torchvision: fresh, with ImageNet backbones, and with their COCO weights."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import get_model, get_model_weights, mobilenet_v3_large, resnet50
from torchvision.models.segmentation import lraspp_mobilenet_v3_large

from models.foreign import photo, shuffled
from segtailor import create_model, load_model
from segtailor.config import TeacherConfig
from segtailor.errors import SegtailorError
from segtailor.models import save_model
from segtailor.models.class_map import read_class_map
from segtailor.models.licenses import use_of
from segtailor.models.store import load_teacher

NAMES = [
    *("deeplabv3_mobilenet_v3_large", "deeplabv3_resnet50", "fcn_resnet50"),
    "lraspp_mobilenet_v3_large",
]
"""All of torchvision's but those of ResNet-101, which differ from ResNet-50's in the number of blocks alone."""
SMALLEST = "lraspp_mobilenet_v3_large"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torchvision's folder of weights, empty, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def put(cache: Path, url: str, net: nn.Module) -> dict[str, torch.Tensor]:
    """Lay random weights where torchvision looks for the file of ``url``."""
    state = shuffled(net, seed=5).state_dict()
    torch.save(state, cache / url.rpartition("/")[2])
    return state


@pytest.mark.parametrize("name", NAMES)
def test_a_loaded_teacher_gives_what_torchvision_itself_gives(name: str, cache: Path) -> None:
    weights: Any = get_model_weights(name).DEFAULT
    net = get_model(name, weights=None, weights_backbone=None, num_classes=21, **aux_of(name))
    put(cache, weights.url, net)
    teacher = load_model(f"torchvision:{name}")
    image = photo(97, 140)[0]
    transforms = weights.transforms(resize_size=None)
    with torch.no_grad():
        expected = net(transforms(image)[None])
        output = teacher(image[None])
        found = {"out": output.logits, "aux": output.aux_logits}
    for key, value in expected.items():
        enlarged = teacher.upsample(found[key], (97, 140))
        torch.testing.assert_close(enlarged, value, atol=1e-5 * max(1.0, float(value.abs().max())), rtol=1e-5)
    assert teacher.has_aux == ("aux" in expected)
    assert output.feature is not None
    if "resnet" in name:
        assert [stage.shape[1] for stage in output.stages] == [256, 512, 1024, 2048]
        assert teacher.stage_strides == (4, 8, 8, 8)
    else:
        assert teacher.stage_strides == (4, 8, 16)


def aux_of(name: str) -> dict[str, bool]:
    return {} if name == SMALLEST else {"aux_loss": True}


def test_a_loaded_teacher_knows_its_classes_and_license(cache: Path) -> None:
    put(cache, str(get_model_weights(SMALLEST).DEFAULT.url), lraspp_mobilenet_v3_large(weights_backbone=None))
    teacher = load_model(f"torchvision:{SMALLEST}", 21)
    assert teacher.classes[:3] == ("background", "aeroplane", "bicycle")
    assert use_of(teacher.licenses["model"]) == "permissive"
    mapped = read_class_map({"car": "vehicle", "bus": "vehicle", "others": "rest"}, teacher, ("rest", "vehicle"))
    torch.testing.assert_close(mapped(torch.zeros(1, 21, 1, 1)).softmax(1).flatten(), torch.tensor([19 / 21, 2 / 21]))
    with pytest.raises(SegtailorError, match="has 21 classes where 5 are asked for"):
        load_model(f"torchvision:{SMALLEST}", 5)


def test_a_teacher_section_that_names_it_loads_the_weights(cache: Path) -> None:
    state = put(cache, str(get_model_weights(SMALLEST).DEFAULT.url), lraspp_mobilenet_v3_large(weights_backbone=None))
    for key in ("model", "weights"):
        config = TeacherConfig(**{key: f"torchvision:{SMALLEST}", "class_map": {"car": 1, "others": 0}})
        teacher = load_teacher(config, 2)
        assert teacher.classes[7] == "car"
        bias = teacher.state_dict()["net.classifier.low_classifier.bias"]
        assert torch.equal(bias, state["classifier.low_classifier.bias"])


def test_the_feature_of_summed_classifiers_is_both_their_inputs() -> None:
    student = create_model(f"torchvision:{SMALLEST}", 4).eval()
    assert "sum of two classifiers" in student.note
    assert student.tap_channels["feature"] == 40 + 128
    head: Any = student.get_submodule("net.classifier")
    with torch.no_grad():
        output = student(photo(64, 96))
        assert output.feature is not None
        low, high = output.feature.split([40, 128], dim=1)
        torch.testing.assert_close(head.low_classifier(low) + head.high_classifier(high), output.logits)


@pytest.mark.parametrize("name", ["deeplabv3_mobilenet_v3_large", SMALLEST])
def test_a_student_is_trained_stored_and_loaded_without_a_network(name: str, cache: Path, tmp_path: Path) -> None:
    student = create_model(f"torchvision:{name}", 4).train()
    output = student(photo(64, 96, count=2))
    total = output.logits.square().mean()
    if output.aux_logits is not None:
        assert output.aux_logits.shape[1] == 4
        total = total + output.aux_logits.square().mean()
    total.backward()
    assert all(value.grad is not None for value in student.parameters())
    save_model(student, tmp_path / "student.safetensors")
    again = load_model(tmp_path / "student.safetensors", 4)
    with torch.no_grad():
        torch.testing.assert_close(again(photo(64, 96)).logits, student.eval()(photo(64, 96)).logits)


@pytest.mark.parametrize(
    ("name", "classifier"), [(SMALLEST, mobilenet_v3_large), ("fcn_resnet50", resnet50)], ids=["mobilenet", "resnet"]
)
def test_pretrained_fills_the_backbone(name: str, classifier: Any, cache: Path) -> None:
    url = {"fcn_resnet50": "resnet50-0676ba61.pth"}.get(name, "mobilenet_v3_large-8738ca79.pth")
    given = put(cache, url, classifier())
    student = create_model(f"torchvision:{name}", 4, pretrained=True)
    state = student.get_submodule("net.backbone").state_dict()
    prefix = "features." if "mobilenet" in name else ""
    assert len(state) > 100
    assert all(torch.equal(value, given[prefix + key]) for key, value in state.items())
    assert "IMAGENET1K_V1" in student.licenses["encoder"]


def test_weights_out_of_reach_say_where_to_put_them(cache: Path) -> None:
    with pytest.raises(
        SegtailorError, match=r"lraspp_mobilenet_v3_large-d234d4ea.pth is not in .* cannot be fetched \("
    ):
        load_model(f"torchvision:{SMALLEST}")
    with pytest.raises(SegtailorError, match=r"mobilenet_v3_large-8738ca79.pth is not in .*; connect once"):
        create_model(f"torchvision:{SMALLEST}", 4, pretrained=True)


def test_a_damaged_file_is_named_and_a_pickle_is_not_run(cache: Path) -> None:
    path = cache / "lraspp_mobilenet_v3_large-d234d4ea.pth"
    path.write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(SegtailorError, match=r"d234d4ea.pth cannot be read \(.*\); delete it") as raised:
        load_model(f"torchvision:{SMALLEST}")
    assert "\n" not in str(raised.value)
    torch.save({"weights": Path("secret")}, path)
    with pytest.raises(SegtailorError, match="cannot be read"):
        load_model(f"torchvision:{SMALLEST}")


def test_a_file_of_another_network_is_counted(cache: Path) -> None:
    put(cache, "lraspp_mobilenet_v3_large-d234d4ea.pth", nn.Linear(2, 2))
    with pytest.raises(SegtailorError, match=r"\d+ missing \(.*\); 2 unexpected \(weight, bias\)"):
        load_model(f"torchvision:{SMALLEST}")


def test_wrong_names_list_the_nearest() -> None:
    with pytest.raises(SegtailorError, match=r"unknown segmentation network .* nearest: deeplabv3_resnet101"):
        create_model("torchvision:deeplabv3_resnet110", 4)
    with pytest.raises(SegtailorError, match="a file is given as `weights`"):
        create_model("torchvision:fcn_resnet50", 4, pretrained="resnet50.pth")
