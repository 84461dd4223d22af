"""Networks of segmentation_models_pytorch: every decoder, as teacher and as student."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from models.foreign import CLASSES, CNN, SMALL, photo, smp_net
from segtailor import create_model, load_model
from segtailor.errors import SegtailorError
from segtailor.models import save_model
from segtailor.models.licenses import use_of

smp = pytest.importorskip("segmentation_models_pytorch")
hub = pytest.importorskip("huggingface_hub")

MULTIPLES = {"Unet": 1, "PSPNet": 8, "DeepLabV3": 8, "PAN": 16, "DeepLabV3Plus": 16}


def unreachable(*_: Any, **__: Any) -> str:
    raise hub.errors.LocalEntryNotFoundError("not cached and no connection")


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks the hub gets an error."""
    monkeypatch.setattr(hub, "hf_hub_download", unreachable)
    monkeypatch.setattr(smp.encoders, "hf_hub_download", unreachable)


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("architecture", SMALL)
def test_a_saved_teacher_gives_what_smp_itself_gives(architecture: str, tmp_path: Path) -> None:
    net = smp_net(architecture)
    net.save_pretrained(tmp_path)
    teacher = load_model(f"smp:{tmp_path}")
    multiple = teacher.preprocess.size_multiple
    assert multiple == MULTIPLES.get(architecture, 32)
    height, width = (150, 200) if multiple == 1 else (128, 192)
    images = photo(height, width)
    # smp's own pipeline: its function for one image of height, width, channels
    prepare = smp.encoders.get_preprocessing_fn("tu-test_vit" if architecture == "DPT" else CNN)
    inputs = torch.from_numpy(prepare(images[0].permute(1, 2, 0).double().numpy())).permute(2, 0, 1)[None].float()
    with torch.no_grad():
        expected = net(inputs)
        output = teacher(images)
    scale = float(expected.abs().max())
    found = teacher.upsample(output.logits, (height, width))
    torch.testing.assert_close(found, expected, atol=1e-5 * max(scale, 1.0), rtol=1e-5)
    assert output.feature is not None
    classifier = net.get_submodule(str(teacher.classifier))
    torch.testing.assert_close(classifier(output.feature), output.logits, atol=1e-4, rtol=1e-4)
    channels = [width for width in net.encoder.out_channels if width][-len(output.stages) :]
    assert [stage.shape[1] for stage in output.stages] == channels
    assert len(output.stages) == (2 if architecture == "PSPNet" else 4)
    assert teacher.name == f"smp:{architecture}/{'tu-test_vit' if architecture == 'DPT' else CNN}"


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("architecture", SMALL)
def test_a_student_is_trained_stored_and_loaded_without_the_hub(architecture: str, tmp_path: Path) -> None:
    encoder = "tu-test_vit" if architecture == "DPT" else CNN
    student = create_model(f"smp:{architecture}/{encoder}", CLASSES, config={**SMALL[architecture]})
    size = student.preprocess.input_size((128, 128))
    output = student.train()(photo(*size, count=2))
    output.logits.square().mean().backward()
    assert all(value.grad is not None for value in student.encoder_parameters()[:3])
    save_model(student, tmp_path / "student.safetensors")
    again = load_model(tmp_path / "student.safetensors", CLASSES)
    with torch.no_grad():
        torch.testing.assert_close(again(photo(*size)).logits, student.eval()(photo(*size)).logits)
    assert again.tap_channels == student.tap_channels


def test_sizes_and_statistics_are_the_encoders_own() -> None:
    assert create_model("smp:Unet/tu-test_resnet", 2).preprocess.spec()["mean"] == [0.5, 0.5, 0.5]
    xception = create_model("smp:FPN/xception", 2).preprocess.spec()
    assert xception["mean"] == xception["std"] == [0.5, 0.5, 0.5]
    assert create_model("smp:Linknet/resnet18", 2).preprocess.spec()["mean"] == [0.485, 0.456, 0.406]
    given = create_model("smp:Linknet/resnet18", 2, preprocess={"channel_order": "bgr"}).preprocess
    assert given.channel_order == "bgr"
    assert given.size_multiple == 32


def test_a_transformer_of_one_size_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segtailor.models.adapters.smp.ANY_SIZE", ({},))  # as timm's BEiT, which takes no option for it
    student = create_model("smp:DPT/tu-test_vit", 2, config=SMALL["DPT"]).eval()
    assert student.preprocess.size == (160, 160)
    with torch.no_grad():
        assert student(photo(96, 128)).logits.shape[-2:] == (80, 80)


def test_letters_of_the_architecture_do_not_matter() -> None:
    assert create_model(f"smp:linknet/{CNN}", 2).name == f"smp:Linknet/{CNN}"


def pretend_hub(folder: Path, settings: dict[str, Any], encoder: str) -> Any:
    """Write what the hub has of ``encoder``, and return a function that finds it."""
    torch.manual_seed(7)
    state = {name: torch.randn_like(value) if value.is_floating_point() else value for name, value in
             smp.encoders.get_encoder(encoder, weights=None).state_dict().items()}  # fmt: skip
    save_file(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "README.md").write_text("---\nlicense: bsd-3-clause\n---\n")
    return lambda repository, filename, **_: str(folder / filename)


def test_pretrained_takes_the_encoders_weights_statistics_and_license(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"mean": [103.0, 116.0, 123.0], "std": [1, 1, 1], "input_space": "BGR", "input_range": [0, 255]}
    find = pretend_hub(tmp_path, settings, "mobilenet_v2")
    monkeypatch.setattr(smp.encoders, "hf_hub_download", find)
    monkeypatch.setattr(hub, "hf_hub_download", find)
    student = create_model("smp:Unet/mobilenet_v2", 2, pretrained=True)
    spec = student.preprocess.spec()
    assert (spec["channel_order"], spec["scale"], spec["mean"]) == ("bgr", 1.0, [103.0, 116.0, 123.0])
    raw = torch.full((1, 3, 2, 2), 10.0)
    raw[:, 2] = 110.0  # blue comes first, in 0..255
    assert student.preprocess(raw)[0, :, 0, 0].tolist() == [7.0, -106.0, -113.0]
    assert student.licenses == {"encoder": "bsd-3-clause (smp-hub/mobilenet_v2.imagenet)"}
    from safetensors.torch import load_file

    stored = load_file(tmp_path / "model.safetensors")
    state = student.net.encoder.state_dict()  # type: ignore[union-attr,operator]
    assert all(torch.equal(value, stored[name]) for name, value in state.items())


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("encoder", ["resnet18", "tu-resnet18"])
def test_pretrained_without_a_connection_says_so(encoder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import timm.models._hub

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", unreachable)
    with pytest.raises(
        SegtailorError, match=r"not in the local cache, and there is no connection; connect once, or give"
    ):
        create_model(f"smp:Unet/{encoder}", 2, pretrained=True)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(SegtailorError, match=r"offline mode is on \(HF_HUB_OFFLINE\)"):
        create_model(f"smp:Unet/{encoder}", 2, pretrained=True)


def test_weights_that_smp_does_not_have_list_the_nearest() -> None:
    with pytest.raises(SegtailorError, match=r"unknown weights of smp's encoder resnet18 'noisy'; nearest: .*swsl"):
        create_model("smp:Unet/resnet18", 2, pretrained="noisy")


def test_mix_transformers_carry_their_license() -> None:
    licenses = create_model("smp:Segformer/mit_b0", 2).licenses
    assert use_of(licenses["encoder"]) == "restricted"
    assert create_model("smp:Linknet/resnet18", 2).licenses == {}


@pytest.mark.usefixtures("no_hub")
def test_one_class_by_a_sigmoid_becomes_two_by_a_softmax(tmp_path: Path) -> None:
    net = smp_net("FPN", classes=1, activation="sigmoid")
    net.save_pretrained(tmp_path)
    teacher = load_model(f"smp:{tmp_path}", 2)
    images = photo(64, 96)
    with torch.no_grad():
        expected = net(teacher.preprocess(images))[:, 0]
        found = teacher.upsample(teacher(images).logits, (64, 96)).softmax(1)[:, 1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_sigmoids_of_many_classes_are_noted(tmp_path: Path) -> None:
    smp_net("FPN", activation="sigmoid").save_pretrained(tmp_path)
    assert "sigmoid" in load_model(f"smp:{tmp_path}").note


def test_an_activation_and_a_classifier_of_images_are_left_out(tmp_path: Path) -> None:
    net = smp_net("FPN", activation="softmax2d", aux_params={"classes": 4})
    net.save_pretrained(tmp_path)
    teacher = load_model(f"smp:{tmp_path}")
    images = photo(64, 96)
    with torch.no_grad():
        expected = net(teacher.preprocess(images))[0]
        found = teacher.upsample(teacher(images).logits, (64, 96)).softmax(1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_a_student_starts_from_a_saved_network(tmp_path: Path) -> None:
    net = smp_net("FPN")
    net.save_pretrained(tmp_path)
    same = create_model(f"smp:{tmp_path}", CLASSES, pretrained=True)
    other = create_model(f"smp:{tmp_path}", CLASSES + 2, pretrained=True)
    state = net.state_dict()
    for student, count in ((same, CLASSES), (other, CLASSES + 2)):
        found = student.state_dict()
        assert found["net.segmentation_head.0.weight"].shape[0] == count
        assert torch.equal(found["net.encoder.model.conv1.0.weight"], state["encoder.model.conv1.0.weight"])
    assert torch.equal(same.state_dict()["net.segmentation_head.0.bias"], state["segmentation_head.0.bias"])


def test_a_network_that_holds_weights_is_never_built_without_them(tmp_path: Path) -> None:
    smp_net("FPN").save_pretrained(tmp_path)
    with pytest.raises(SegtailorError, match="holds trained weights: give it as `weights`"):
        create_model(f"smp:{tmp_path}", CLASSES)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smp:Unnet/resnet18", r"unknown architecture .* 'Unnet'; nearest: Unet, "),
        ("smp:Unet/resnet81", r"unknown encoder .* 'resnet81'; nearest: resnet18, "),
        ("smp:Unet/tu-resnet81", r"unknown encoder .* 'tu-resnet81'; nearest: tu-resnet18"),
        ("smp:Unet", r"names no encoder; write smp:Unet/resnet18"),
        ("smp:Linknet/mit_b0", r"cannot be built or read \(Encoder `mit_b0` is not supported for Linknet\)"),
    ],
)
def test_wrong_names_list_the_nearest(name: str, message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as raised:
        create_model(name, 2)
    assert "\n" not in str(raised.value)


def test_an_architecture_alone_cannot_be_loaded() -> None:
    with pytest.raises(SegtailorError, match="is an architecture without weights"):
        load_model("smp:Unet/resnet18")


def break_folder(kind: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    if kind == "no config":
        (folder / "config.json").unlink()
    elif kind == "no weights":
        (folder / "model.safetensors").unlink()
    elif kind == "another library":
        (folder / "config.json").write_text(json.dumps({"model_type": "segformer"}))
    elif kind == "no JSON":
        (folder / "config.json").write_text("{")
    elif kind == "four channels":
        (folder / "config.json").write_text(json.dumps({**config, "in_channels": 4}))
    elif kind == "unknown class":
        (folder / "config.json").write_text(json.dumps({**config, "_model_class": "Unett"}))
    elif kind == "other arguments":
        (folder / "config.json").write_text(json.dumps({**config, "decoder_pyramid_channels": 64}))
    elif kind == "pickle":
        (folder / "model.safetensors").unlink()
        torch.save({"model": Path("secret")}, folder / "pytorch_model.bin")
    elif kind == "gone":
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no config", r"has no config.json: it is no folder that smp's save_pretrained wrote"),
        ("no weights", r"has no weights: neither model.safetensors nor pytorch_model.bin"),
        ("another library", r"was not saved by segmentation_models_pytorch"),
        ("no JSON", r"config.json cannot be read"),
        ("four channels", r"takes 4 channels; only RGB networks are read"),
        ("unknown class", r"unknown architecture .* 'Unett'; nearest: Unet,"),
        (
            "other arguments",
            r"does not fit smp:FPN/tu-test_resnet: \d+ of another shape \(.*\); was it built with other",
        ),
        ("pickle", r"is refused: it holds pickled objects beside tensors"),
        ("gone", r"no such folder: "),
    ],
)
def test_a_broken_folder_gives_one_line(kind: str, message: str, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    smp_net("FPN").save_pretrained(folder)
    break_folder(kind, folder)
    with pytest.raises(SegtailorError, match=message) as raised:
        load_model(f"smp:{folder}")
    assert "\n" not in str(raised.value)


def test_weights_of_older_versions_are_read(tmp_path: Path) -> None:
    net = smp_net("FPN")
    net.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    state = load_model(f"smp:{tmp_path}").state_dict()
    assert torch.equal(state["net.segmentation_head.0.bias"], net.state_dict()["segmentation_head.0.bias"])


@pytest.mark.usefixtures("no_hub")
def test_a_repository_out_of_reach_says_so() -> None:
    with pytest.raises(SegtailorError, match=r"^smp:someone/network: .* not in the local cache, and there is no conn"):
        load_model("smp:someone/network")


def test_a_repository_of_the_hub_is_read_with_its_license(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = smp_net("FPN")
    net.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    monkeypatch.setattr(hub, "hf_hub_download", lambda repository, filename, **_: str(tmp_path / filename))
    teacher = load_model("smp:someone/network")
    assert use_of(teacher.licenses["model"]) == "restricted"


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(SegtailorError, match=r"^smp:Unet/resnet18 needs .*: pip install segmentation-models-pytorch$"):
        create_model("smp:Unet/resnet18", 2)
