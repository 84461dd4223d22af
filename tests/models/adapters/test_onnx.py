"""ONNX files as teachers: what they give is what ONNX Runtime and the network that was exported give."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.onnx_tiny import CLASSES, IMAGES, Tiny, write_onnx
from segtailor.errors import SegtailorError
from segtailor.models import Teacher, count_parameters, inspect_model, load_model
from segtailor.models.inspect import list_paths

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

ANY = {0: "batch", 2: "height", 3: "width"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that several tests read."""
    made = tmp_path_factory.mktemp("onnx")
    write_onnx(made / "any.onnx", Tiny(), free=ANY)
    write_onnx(made / "fixed.onnx", Tiny(), (2, 3, 64, 96))
    write_onnx(made / "feature.onnx", Tiny("feature"), free=ANY, outputs=("out", "inner"))
    return made


def normalized(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images.float() / 255 - mean) / std


def test_logits_are_those_of_onnx_runtime_and_of_the_network(folder: Path) -> None:
    import onnxruntime

    network = load_model(f"onnx:{folder / 'any.onnx'}")
    assert (network.num_classes, network.has_aux, network.stage_strides, network.trainable) == (
        CLASSES,
        False,
        (),
        False,
    )
    output = network(IMAGES)
    session = onnxruntime.InferenceSession(str(folder / "any.onnx"), providers=["CPUExecutionProvider"])
    direct = session.run(None, {"image": normalized(IMAGES).numpy()})[0]
    torch.testing.assert_close(output.logits, torch.from_numpy(direct), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.logits, Tiny()(normalized(IMAGES)).detach(), atol=1e-5, rtol=1e-4)
    assert output.feature is None
    assert network.note == "no feature is named"
    assert load_model(folder / "feature.onnx").note == "no feature is named; taps may be: inner"


def test_a_bare_path_means_the_same(folder: Path) -> None:
    network = load_model(folder / "any.onnx")
    assert torch.equal(network(IMAGES).logits, load_model(f"onnx:{folder / 'any.onnx'}")(IMAGES).logits)


def test_other_sizes_run_where_the_file_has_free_ones(folder: Path) -> None:
    network = load_model(folder / "any.onnx")
    small = IMAGES[:2, :, :40, :48]
    torch.testing.assert_close(network(small).logits, Tiny()(normalized(small)).detach(), atol=1e-5, rtol=1e-4)


def test_a_fixed_batch_is_met_in_parts_and_a_fixed_size_by_resizing(folder: Path) -> None:
    network = load_model(folder / "fixed.onnx")
    assert network.preprocess.size == (64, 96)
    torch.testing.assert_close(network(IMAGES).logits, Tiny()(normalized(IMAGES)).detach(), atol=1e-5, rtol=1e-4)
    large = nn.functional.interpolate(IMAGES.float(), (100, 120), mode="bilinear")
    output = network(large)
    assert output.logits.shape == (3, CLASSES, 64, 96)
    assert network.upsample(output.logits, (100, 120)).shape == (3, CLASSES, 100, 120)


def test_outputs_named_in_taps_are_taps(folder: Path) -> None:
    network = load_model(folder / "feature.onnx", taps={"feature": "inner", "again": "inner"})
    assert network.tap_channels == {"feature": 12, "again": 12, "classifier_input": 12}
    output = network(IMAGES)
    expected = Tiny().features(normalized(IMAGES)).detach()
    torch.testing.assert_close(output.feature, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(output.taps["again"], expected, atol=1e-5, rtol=1e-4)
    assert network.note == ""


def test_the_output_with_the_logits_may_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load_model(folder / "feature.onnx").num_classes == CLASSES
    assert "2 outputs that may be its logits (out, inner); out is taken" in capsys.readouterr().err
    assert load_model(folder / "feature.onnx", classifier="inner").num_classes == 12
    first = write_onnx(folder / "first.onnx", Tiny("feature first"), free=ANY, outputs=("inner", "out"))
    assert load_model(first).num_classes == 12  # the first map; the recipe must say which
    assert load_model(first, classifier="out").num_classes == CLASSES
    assert load_model(first, taps={"feature": "inner"}).num_classes == CLASSES  # what is a tap is not taken


def test_bytes_are_given_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_onnx(tmp_path / "raw.onnx", Tiny("raw"), free=ANY, dtype=torch.uint8)
    network = load_model(path)
    assert "note" not in capsys.readouterr().err
    torch.testing.assert_close(network(IMAGES).logits, Tiny()(IMAGES.float() / 255).detach(), atol=1e-5, rtol=1e-4)
    assert torch.equal(network(IMAGES.float()).logits, network(IMAGES).logits)


def test_preprocessing_is_the_recipes_else_imagenets_with_a_note(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_model(folder / "any.onnx")
    note = capsys.readouterr().err
    assert note.count("\n") == 1
    assert "ImageNet's mean and std is taken; set teacher.preprocess" in note
    given = {"mean": (100.0, 110.0, 120.0), "std": (1.0, 1.0, 1.0), "scale": 1.0, "channel_order": "bgr"}
    network = load_model(folder / "any.onnx", preprocess=given)
    assert capsys.readouterr().err == ""
    fed = IMAGES.float().flip(1) - torch.tensor(given["mean"]).view(1, 3, 1, 1)
    torch.testing.assert_close(network(IMAGES).logits, Tiny()(fed).detach(), atol=1e-3, rtol=1e-4)


def test_channels_last_files_are_turned(tmp_path: Path) -> None:
    path = write_onnx(tmp_path / "last.onnx", Tiny("last"), (1, 64, 96, 3))
    network = load_model(path)
    assert network.preprocess.size == (64, 96)
    torch.testing.assert_close(
        network(IMAGES[:1]).logits, Tiny()(normalized(IMAGES[:1])).detach(), atol=1e-5, rtol=1e-4
    )


def test_probabilities_become_logits(tmp_path: Path) -> None:
    network = load_model(write_onnx(tmp_path / "softmax.onnx", Tiny("softmax"), free=ANY))
    assert "logarithm" in network.note
    expected = Tiny()(normalized(IMAGES)).detach().log_softmax(1)
    torch.testing.assert_close(network(IMAGES).logits, expected, atol=1e-4, rtol=1e-4)


def test_half_precision_files_run(tmp_path: Path) -> None:
    import onnx

    path = write_onnx(tmp_path / "half.onnx", Tiny().half(), free=ANY, dtype=torch.float16)
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
    output = load_model(path)(IMAGES)
    assert output.logits.dtype == torch.float32
    torch.testing.assert_close(output.logits, Tiny()(normalized(IMAGES)).detach(), atol=0.02, rtol=0.02)


def test_the_fingerprint_is_the_files(folder: Path, tmp_path: Path) -> None:
    def of(path: Path) -> str:
        return Teacher(load_model(path)).fingerprint()

    other = Tiny()
    with torch.no_grad():
        other.classifier.bias += 1
    copied = tmp_path / "copy.onnx"
    copied.write_bytes((folder / "any.onnx").read_bytes())
    assert of(folder / "any.onnx") == of(copied)
    assert of(folder / "any.onnx") != of(write_onnx(tmp_path / "other.onnx", other, free=ANY))


def test_weights_in_a_file_beside_it_belong_to_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(folder / "any.onnx")
    path = tmp_path / "split.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location="split.bin", size_threshold=0)
    before = Teacher(load_model(path)).fingerprint()
    data = bytearray((tmp_path / "split.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "split.bin").write_bytes(data)
    assert Teacher(load_model(path)).fingerprint() != before


def test_inspect_shows_what_is_known(folder: Path) -> None:
    network = load_model(folder / "feature.onnx", taps={"feature": "inner"})
    expected = sum(value.numel() for name, value in Tiny().named_parameters() if "norm" not in name)
    assert expected <= count_parameters(network) <= count_parameters(Tiny()) + 16  # batch norm may be folded
    text = inspect_model(network, (64, 96)).text()
    assert "multiply-adds   not counted" in text
    assert "feature           12 x 16 x 24" in text


def test_inspect_paths_lists_the_outputs(folder: Path) -> None:
    with pytest.raises(SegtailorError, match="shows no modules; its taps may be: out, inner"):
        list_paths(load_model(folder / "feature.onnx"), (64, 96))


def test_it_cannot_be_stored(folder: Path) -> None:
    with pytest.raises(SegtailorError, match="cannot be stored"):
        load_model(folder / "any.onnx").spec()


@pytest.mark.parametrize("ending", ["argmax", "argmax plane"])
def test_class_indices_are_refused(tmp_path: Path, ending: str) -> None:
    path = write_onnx(tmp_path / "indices.onnx", Tiny(ending), free=ANY)
    with pytest.raises(SegtailorError, match=r"gives class indices and no logits .*without its final argmax") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


class Grey(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return torch.cat([inputs, -inputs], 1)


class TwoInputs(nn.Module):
    def forward(self, image: Tensor, other: Tensor) -> Tensor:
        return image + other


def test_files_of_another_kind_are_refused(tmp_path: Path) -> None:
    pooled = write_onnx(tmp_path / "pooled.onnx", Tiny("pooled"), free=ANY)
    with pytest.raises(SegtailorError, match="gives no map of class logits"):
        load_model(pooled)
    grey = write_onnx(tmp_path / "grey.onnx", Grey(), (1, 1, 64, 96))
    with pytest.raises(SegtailorError, match="no batch of RGB images"):
        load_model(grey)
    two = tmp_path / "two.onnx"
    torch.onnx.export(TwoInputs(), (torch.zeros(1, 3, 8, 8),) * 2, two, input_names=["a", "b"], dynamo=False)
    with pytest.raises(SegtailorError, match=r"takes 2 inputs \(a, b\)"):
        load_model(two)
    side = write_onnx(tmp_path / "side.onnx", Tiny(), free={0: "batch", 3: "width"})
    with pytest.raises(SegtailorError, match="one side is fixed"):
        load_model(side)


def test_a_missing_or_damaged_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(SegtailorError, match="no such file"):
        load_model(tmp_path / "none.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(SegtailorError, match="ONNX Runtime cannot load") as caught:
        load_model(tmp_path / "bad.onnx")
    assert "\n" not in str(caught.value)


def test_wrong_names_list_the_nearest(folder: Path) -> None:
    with pytest.raises(SegtailorError, match=r"unknown output of .* for 'feature' 'iner'; nearest: inner"):
        load_model(folder / "feature.onnx", taps={"feature": "iner"})
    with pytest.raises(SegtailorError, match=r"unknown output of .* for its logits 'outt'"):
        load_model(folder / "feature.onnx", classifier="outt")
    with pytest.raises(SegtailorError, match="takes images of 64 x 96 only"):
        load_model(folder / "fixed.onnx", preprocess={"size": (32, 32)})


def test_other_classes_propose_a_class_map(folder: Path) -> None:
    with pytest.raises(SegtailorError, match=r"has 5 classes where 11 are asked for.*class_map"):
        load_model(folder / "any.onnx", 11)


def test_a_size_that_the_file_cannot_take_says_what_to_set(folder: Path) -> None:
    with pytest.raises(SegtailorError, match=r"does not run on an image of 0 x 0 .*set preprocess.size") as caught:
        load_model(folder / "any.onnx").forward_normalized(torch.zeros(1, 3, 0, 0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx"])
def test_without_the_extra_one_line_says_what_to_install(
    folder: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SegtailorError, match=r"pip install onnx onnxruntime"):
        load_model(folder / "any.onnx")
