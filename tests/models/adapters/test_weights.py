"""Weights files of other projects beside a network's name, in the forms in which training code writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models.segmentation import deeplabv3_mobilenet_v3_large, lraspp_mobilenet_v3_large

from models.foreign import CLASSES, photo, shuffled, smp_net
from segtailor.config import ModelConfig, TeacherConfig
from segtailor.errors import SegtailorError
from segtailor.models import load_model, save_model
from segtailor.models.store import build_network, load_teacher

smp = pytest.importorskip("segmentation_models_pytorch")

NAME = "smp:Linknet/tu-test_resnet"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def net() -> nn.Module:
    found: nn.Module = smp_net("Linknet")
    return found


def teacher_config(path: Path, name: str = NAME, **more: Any) -> TeacherConfig:
    return TeacherConfig(model=name, weights=str(path), **more)


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": value for name, value in state.items()}


FORMS: dict[str, Any] = {
    "plain": lambda state: state,
    "beside an optimizer": lambda state: {"model_state_dict": state, "optimizer_state_dict": {"state": {}}, "epoch": 7},
    "wrapped": lambda state: {"state_dict": state, "epoch": 7},
    "lightning": lambda state: {"state_dict": {**under("model.", state), "loss.weight": torch.ones(3)}, "epoch": 7},
    "data parallel": lambda state: under("module.", state),
    "compiled in data parallel": lambda state: {"model": under("module._orig_mod.", state)},
    "without counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
}


def test_a_state_dict_alone_names_the_network_that_belongs_beside_it(net: nn.Module, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "a.pth")
    for uri in (f"{tmp_path}/a.pth", f"published:{tmp_path}/a.pth"):
        with pytest.raises(SegtailorError, match=r"teacher.model: smp:Unet/resnet18 beside the weights$"):
            load_teacher(teacher_config(Path(uri), ""), CLASSES)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("suffix", [".pth", ".ckpt"])
def test_a_file_fills_the_teacher_whatever_wraps_its_tensors(
    form: str, suffix: str, net: nn.Module, tmp_path: Path
) -> None:
    path = tmp_path / f"weights{suffix}"
    torch.save(FORMS[form](net.state_dict()), path)
    teacher = load_teacher(teacher_config(path), CLASSES).eval()
    images = photo(64, 96)
    with torch.no_grad():
        found = teacher.upsample(teacher(images).logits, (64, 96))
        torch.testing.assert_close(found, net(teacher.preprocess(images)))


def test_safetensors_and_students_are_filled_alike(net: nn.Module, tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, tmp_path / "w.safetensors")
    student = build_network(ModelConfig(model=NAME, weights=str(tmp_path / "w.safetensors")), CLASSES)
    for name, value in net.state_dict().items():
        assert torch.equal(student.state_dict()[f"net.{name}"], value)
    save_model(student, tmp_path / "own.safetensors")  # a file of ours of the same suffix is recognized by its card
    assert build_network(ModelConfig(model=NAME, weights=str(tmp_path / "own.safetensors")), CLASSES).name == NAME


def test_other_class_counts_are_refused_and_a_class_map_takes_them(net: nn.Module, tmp_path: Path) -> None:
    torch.save(net.state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        SegtailorError, match=r"w.pth has 3 classes where 5 are asked for; .* for a teacher a class_map$"
    ):
        load_teacher(teacher_config(tmp_path / "w.pth"), 5)
    mapped = load_teacher(teacher_config(tmp_path / "w.pth", class_map={"0": 0, "others": 1}), 2)
    assert mapped.num_classes == CLASSES


def test_one_class_by_a_sigmoid_becomes_two(tmp_path: Path) -> None:
    net = smp_net("Linknet", classes=1)
    torch.save(under("model.", net.state_dict()), tmp_path / "w.pth")
    images = photo(64, 96)
    for config in (teacher_config(tmp_path / "w.pth"), teacher_config(tmp_path / "w.pth", class_map={"others": 0})):
        teacher = load_teacher(config, 2).eval()
        assert teacher.num_classes == 2
        with torch.no_grad():
            found = teacher.upsample(teacher(images).logits, (64, 96)).softmax(1)[:, 1]
            torch.testing.assert_close(found, net(teacher.preprocess(images)).sigmoid()[:, 0])
    with pytest.raises(SegtailorError, match="has 1 classes where 4 are asked for"):
        load_teacher(teacher_config(tmp_path / "w.pth"), 4)


def test_summed_classifiers_of_one_class_become_two(tmp_path: Path) -> None:
    net = shuffled(lraspp_mobilenet_v3_large(weights_backbone=None, num_classes=1))
    torch.save(net.state_dict(), tmp_path / "w.pth")
    teacher = load_teacher(teacher_config(tmp_path / "w.pth", "torchvision:lraspp_mobilenet_v3_large"), 2).eval()
    images = photo(64, 96)
    with torch.no_grad():
        found = teacher.upsample(teacher(images).logits, (64, 96)).softmax(1)[:, 1]
        expected = net(teacher.preprocess(images))["out"].sigmoid()[:, 0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_file_without_an_auxiliary_classifier_takes_it_from_the_network(tmp_path: Path) -> None:
    name = "torchvision:deeplabv3_mobilenet_v3_large"
    net = shuffled(deeplabv3_mobilenet_v3_large(weights_backbone=None, num_classes=CLASSES))
    torch.save({"model": net.state_dict(), "epoch": 3}, tmp_path / "w.pth")
    student = build_network(ModelConfig(model=name, weights=str(tmp_path / "w.pth")), CLASSES).eval()
    assert not student.has_aux
    images = photo(64, 96)
    with torch.no_grad():
        output = student(images)
        expected = net(student.preprocess(images))["out"]
        torch.testing.assert_close(student.upsample(output.logits, (64, 96)), expected)
    assert output.aux_logits is None
    save_model(student, tmp_path / "s.safetensors")
    assert not load_model(tmp_path / "s.safetensors").has_aux


def test_names_of_older_versions_are_known(tmp_path: Path) -> None:
    net = smp_net("DeepLabV3", decoder_channels=256)
    old = {"decoder.aspp.": "decoder.0.", "decoder.conv.": "decoder.1.", "decoder.bn.": "decoder.2."}
    state = net.state_dict()
    for new, before in old.items():
        state = {name.replace(new, before) if name.startswith(new) else name: value for name, value in state.items()}
    assert "decoder.1.weight" in state
    torch.save(state, tmp_path / "w.pth")
    teacher = load_teacher(teacher_config(tmp_path / "w.pth", "smp:DeepLabV3/tu-test_resnet"), CLASSES)
    assert torch.equal(teacher.state_dict()["net.decoder.conv.weight"], net.state_dict()["decoder.conv.weight"])


def test_misfits_are_counted_and_the_first_five_are_named(net: nn.Module, tmp_path: Path) -> None:
    state = dict(net.state_dict())
    gone = [name for name in state if name.startswith("encoder.model.layer1") and name.endswith("weight")]
    for name in gone:
        del state[name]
    state |= {"extra.weight": torch.ones(1), "segmentation_head.0.bias": torch.zeros(CLASSES)}
    state["encoder.model.layer2.0.conv1.weight"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(SegtailorError) as raised:
        load_teacher(teacher_config(tmp_path / "w.pth"), CLASSES)
    text = str(raised.value)
    assert f"{len(gone)} missing ({', '.join(gone[:5])}" in text
    assert "1 unexpected (extra.weight); 1 of another shape (encoder.model.layer2.0.conv1.weight)" in text
    assert text.endswith("save it with its save_pretrained and give the folder as weights: smp:FOLDER")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("names", "hint"),
    [
        (["backbone.layer1.0.conv1.weight", "decode_head.conv_seg.weight"], "look like mmsegmentation: build that"),
        (["segformer.encoder.x", "decode_head.classifier.weight"], "a transformers SegFormer: give its folder as hf:"),
        (["pretrained.conv1.weight", "head.aspp.b0.0.weight"], "the published benchmark: give it as published:FILE"),
        (["backbone.conv1.weight", "classifier.4.weight"], "look like torchvision: name the model torchvision:NAME"),
    ],
)
def test_the_nearest_layout_is_proposed(names: list[str], hint: str, tmp_path: Path) -> None:
    torch.save({name: torch.zeros(1) for name in names}, tmp_path / "w.pth")
    with pytest.raises(SegtailorError, match=f"its names look like .*{hint.removeprefix('look like ')}"):
        load_teacher(teacher_config(tmp_path / "w.pth"), CLASSES)


def spoil(kind: str, path: Path) -> None:
    if kind == "pickle":
        torch.save({"state_dict": {}, "model": nn.Linear(1, 1)}, path)
    elif kind == "damaged":
        path.write_bytes(b"PK\x03\x04 cut short")
    elif kind == "safetensors":
        path.with_suffix(".safetensors").write_bytes(b"\x10\x00 cut short")
    elif kind == "numbers":
        torch.save({"epoch": 7, "loss": 0.5}, path)


@pytest.mark.parametrize(
    ("kind", "suffix", "message"),
    [
        ("pickle", ".pth", r"w.pth is refused: it holds pickled objects beside tensors"),
        ("damaged", ".pth", r"w.pth cannot be read \("),
        ("safetensors", ".safetensors", r"w.safetensors is damaged or no safetensors file \("),
        ("numbers", ".pth", r"w.pth holds more than tensors: 2 other entries \(epoch, loss\)"),
        ("none", ".pth", r"^no such file: .*w.pth$"),
        ("none", ".safetensors", r"^no such file: .*w.safetensors$"),
    ],
)
def test_what_is_no_file_of_tensors_is_refused(kind: str, suffix: str, message: str, tmp_path: Path) -> None:
    spoil(kind, tmp_path / "w.pth")
    with pytest.raises(SegtailorError, match=message) as raised:
        load_teacher(teacher_config(tmp_path / f"w{suffix}"), CLASSES)
    assert "\n" not in str(raised.value)
