"""Exported programs as teachers: run from their graph alone, and equal to what `torch.export` itself runs."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.frozen_tiny import CLASSES, IMAGES, Tiny, write_pt2
from segtailor.errors import SegtailorError
from segtailor.models import Network, Teacher, count_multiply_adds, count_parameters, create_model, load_model

BATCH = torch.export.Dim("batch", min=1, max=64)
ANY = {0: BATCH, 2: 4 * torch.export.Dim("h", min=2, max=64), 3: 4 * torch.export.Dim("w", min=2, max=64)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that several tests read."""
    made = tmp_path_factory.mktemp("pt2")
    write_pt2(made / "any.pt2", Tiny(), free=ANY)
    write_pt2(made / "fixed.pt2", Tiny())
    write_pt2(made / "feature.pt2", Tiny("feature"), free=ANY)
    return made


def direct(path: Path, network: Network, images: Tensor) -> Any:
    """What PyTorch's own loader makes of the file."""
    with torch.no_grad():
        return torch.export.load(path).module()(network.preprocess(images))


def test_logits_are_those_of_torch_export(folder: Path) -> None:
    network = load_model(f"pt2:{folder / 'any.pt2'}")
    assert (network.num_classes, network.has_aux, network.trainable) == (CLASSES, False, False)
    assert network.preprocess.size_multiple == 4
    assert network.preprocess.size is None
    for images in (IMAGES, IMAGES[:1, :, :40, :48]):
        expected = direct(folder / "any.pt2", network, images)
        torch.testing.assert_close(network(images).logits, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(network(IMAGES).logits, Tiny()(network.preprocess(IMAGES)).detach())


@pytest.mark.parametrize(
    ("name", "decomposed"), [("deeplabv3plus-lcnet_035", False), ("fcn-vit_tiny_patch16_224", True)]
)
def test_whole_networks_run(name: str, decomposed: bool, tmp_path: Path) -> None:
    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = create_model(name, CLASSES)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.net.forward_normalised(inputs).logits

    torch.manual_seed(0)
    program = torch.export.export(Logits().eval(), (torch.zeros(2, 3, 64, 96),), dynamic_shapes=({0: BATCH},))
    path = tmp_path / "net.pt2"
    torch.export.save(program.run_decompositions() if decomposed else program, path)
    network = load_model(path)
    expected = direct(path, network, IMAGES)
    torch.testing.assert_close(network(IMAGES).logits, expected, atol=1e-5, rtol=1e-5)


def test_a_fixed_batch_is_met_in_parts_and_a_fixed_size_by_resizing(folder: Path) -> None:
    network = load_model(folder / "fixed.pt2")
    assert network.preprocess.size == (64, 96)
    expected = Tiny()(network.preprocess(IMAGES)).detach()
    torch.testing.assert_close(network(IMAGES).logits, expected, atol=1e-6, rtol=1e-5)
    large = nn.functional.interpolate(IMAGES.float(), (100, 120), mode="bilinear")
    assert network(large).logits.shape == (3, CLASSES, 64, 96)


def test_sizes_out_of_the_exported_range_say_so(folder: Path) -> None:
    with pytest.raises(SegtailorError, match="exported for sides of 8 to 256 pixels, not 4; export it with a wider"):
        load_model(folder / "any.pt2")(IMAGES[:, :, :4, :64])


def test_outputs_by_key_and_modules_by_path_are_taps(folder: Path) -> None:
    assert load_model(folder / "feature.pt2").note.endswith("taps may be: feature, stem, norm, body, classifier")
    network = load_model(folder / "feature.pt2", taps={"feature": "feature", "deep": "body", "thin": "norm"})
    assert network.tap_channels == {"feature": 12, "deep": 12, "thin": 8, "classifier_input": 12}
    output, net = network(IMAGES), Tiny()
    inputs = network.preprocess(IMAGES)
    expected = net.norm(net.stem(inputs)).detach()
    torch.testing.assert_close(output.taps["thin"], expected)
    torch.testing.assert_close(output.taps["deep"], net.body(expected.relu()).detach(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(output.feature, net.features(inputs).detach(), atol=1e-6, rtol=1e-5)


def test_parts_under_another_gradient_mode_or_autocast_are_run(tmp_path: Path) -> None:
    class Parts(Tiny):
        def forward(self, inputs: Tensor) -> Tensor:
            with torch.no_grad():
                feature = self.features(inputs)
            with torch.autocast("cpu", torch.bfloat16):
                return self.classifier(feature)

    path = write_pt2(tmp_path / "parts.pt2", Parts())
    text = zipfile.ZipFile(path).read("parts/models/model.json").decode()
    assert "wrap_with_set_grad_enabled" in text
    assert "wrap_with_autocast" in text
    network = load_model(path)
    expected = direct(path, network, IMAGES[:2]).float()
    torch.testing.assert_close(network(IMAGES[:2]).logits, expected, atol=1e-6, rtol=1e-5)
    with torch.no_grad():
        full = Tiny().classifier(Tiny().features(network.preprocess(IMAGES[:2])))
    assert (network(IMAGES[:2]).logits - full).abs().max() > 1e-4  # it was bfloat16 indeed


def test_bytes_are_given_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_pt2(tmp_path / "raw.pt2", Tiny("raw"), (2, 3, 64, 96), dtype=torch.uint8)
    network = load_model(path)
    assert capsys.readouterr().err == ""
    torch.testing.assert_close(network(IMAGES).logits, Tiny()(IMAGES.float() / 255).detach(), atol=1e-6, rtol=1e-5)


def test_channels_last_and_probabilities(tmp_path: Path) -> None:
    last = load_model(write_pt2(tmp_path / "last.pt2", Tiny("last"), (2, 64, 96, 3)))
    expected = Tiny()(last.preprocess(IMAGES)).detach()
    torch.testing.assert_close(last(IMAGES).logits, expected, atol=1e-6, rtol=1e-5)
    shares = load_model(write_pt2(tmp_path / "softmax.pt2", Tiny("softmax")))
    torch.testing.assert_close(shares(IMAGES).logits, expected.log_softmax(1), atol=1e-5, rtol=1e-5)


def test_its_tensors_are_the_modules_own(folder: Path, tmp_path: Path) -> None:
    network = load_model(folder / "any.pt2")
    assert count_parameters(network) == count_parameters(Tiny())
    assert count_multiply_adds(network, (64, 96)) == 32 * 48 * 8 * 27 + 16 * 24 * 12 * 72 + 16 * 24 * CLASSES * 12
    other = Tiny()
    with torch.no_grad():
        other.norm.running_mean += 1
    fingerprints = {Teacher(load_model(folder / name)).fingerprint() for name in ("any.pt2", "any.pt2")}
    assert len(fingerprints) == 1
    assert Teacher(load_model(write_pt2(tmp_path / "other.pt2", other, free=ANY))).fingerprint() not in fingerprints


def test_it_runs_under_autocast_as_it_was_exported(folder: Path) -> None:
    network = load_model(folder / "any.pt2")
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(IMAGES).logits, load_model(folder / "any.pt2")(IMAGES).logits)


Change = Callable[[dict[str, bytes]], None]


def changed(source: Path, path: Path, change: Change) -> Path:
    """A copy of the archive ``source`` with ``change`` made to its entries, whose names are given without the root."""
    with zipfile.ZipFile(source) as archive:
        root = archive.namelist()[0].split("/")[0]
        entries = {name.removeprefix(f"{root}/"): archive.read(name) for name in archive.namelist()}
    change(entries)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(f"{root}/{name}", data)
    return path


class Evil:
    """Leaves a file when it is unpickled."""

    marker = ""

    def __reduce__(self) -> Any:
        return Path.touch, (Path(self.marker),)


def pickled(path: Path) -> bytes:
    import pickle

    Evil.marker = str(path)
    return pickle.dumps(Evil(), protocol=2)


def rewrite_json(entries: dict[str, bytes], name: str, change: Callable[[Any], None]) -> None:
    content = json.loads(entries[name])
    change(content)
    entries[name] = json.dumps(content).encode()


MODEL, WEIGHTS, CONSTANTS = (
    "models/model.json", "data/weights/model_weights_config.json", "data/constants/model_constants_config.json",
)  # fmt: skip


def test_sample_inputs_are_never_read(folder: Path, tmp_path: Path) -> None:
    """`torch.export.load` unpickles them; a file with a hostile pickle there is no danger here."""
    marker = tmp_path / "executed"

    def change(entries: dict[str, bytes]) -> None:
        entries["data/sample_inputs/model.pt"] = pickled(marker)

    network = load_model(changed(folder / "any.pt2", tmp_path / "evil.pt2", change))
    assert torch.equal(network(IMAGES).logits, load_model(folder / "any.pt2")(IMAGES).logits)
    assert not marker.exists()


def pickled_weight(entries: dict[str, bytes], marker: Path) -> None:
    entries["data/weights/weight_0"] = pickled(marker)
    rewrite_json(entries, WEIGHTS, lambda content: content["config"]["stem.weight"].update(use_pickle=True))


def custom_object(entries: dict[str, bytes], marker: Path) -> None:
    entries["data/constants/custom_obj_0"] = pickled(marker)
    entry = {"path_name": "custom_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    rewrite_json(entries, CONSTANTS, lambda content: content["config"].update(evil=entry))


def old_weights(entries: dict[str, bytes], marker: Path) -> None:
    entries["data/weights/model.pt"] = pickled(marker)


def named_call(target: str) -> Callable[[dict[str, bytes], Path], None]:
    def change(entries: dict[str, bytes], marker: Path) -> None:
        def rename(content: Any) -> None:
            content["graph_module"]["graph"]["nodes"][0]["target"] = target

        rewrite_json(entries, MODEL, rename)

    return change


def hostile_names(entries: dict[str, bytes], marker: Path) -> None:
    """Names and size expressions that PyTorch's loader would evaluate as Python."""
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"

    def rename(content: Any) -> None:
        graph = content["graph_module"]["graph"]
        for meta in graph["tensor_values"].values():
            for size in meta["sizes"] + meta["strides"]:
                if "as_expr" in size:
                    size["as_expr"]["expr_str"] = code
        content["guards_code"] = [code]
        graph["nodes"][0]["name"] = code

    rewrite_json(entries, MODEL, rename)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (pickled_weight, r"holds a pickled object \(stem.weight\), which is not read"),
        (custom_object, r"holds a pickled object \(evil\), which is not read"),
        (old_weights, "its weights hold more than tensors, which is not read"),
        (named_call("torch.os.system"), "uses torch.os.system, which is not run here"),
        (named_call("torch.ops.aten.from_file.default"), "which opens files and is not run here"),
        (named_call("torch.ops.aten.nothing.default"), "which this PyTorch does not have"),
        (named_call("torch.ops.aten.__class__.mro"), "which this PyTorch does not have"),
        (named_call("#mine:conv"), "uses #mine:conv, which is not run here"),
        (hostile_names, None),
    ],
)
def test_nothing_in_a_file_is_executed(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, bytes], Path], None], told: str | None
) -> None:
    marker = tmp_path / "executed"
    path = changed(folder / "any.pt2", tmp_path / "evil.pt2", lambda entries: change(entries, marker))
    if told is None:
        load_model(path)(IMAGES)
    else:
        with pytest.raises(SegtailorError, match=told) as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
    assert not marker.exists()


def without(name: str) -> Change:
    def change(entries: dict[str, bytes]) -> None:
        for found in [entry for entry in entries if entry.startswith(name)]:
            del entries[found]

    return change


def compiled(entries: dict[str, bytes]) -> None:
    without("models/")(entries)
    entries["data/aotinductor/model/x.so"] = b""


def of_another_format(entries: dict[str, bytes]) -> None:
    rewrite_json(entries, MODEL, lambda content: content["schema_version"].update(major=7))


def several(entries: dict[str, bytes]) -> None:
    entries["models/a.json"] = entries["models/b.json"] = entries.pop("models/model.json")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without("archive_format"), "without archive_format"),
        (without("models/"), "holds no program"),
        (without("data/weights/weight_1"), "is damaged or no exported program"),
        (compiled, "compiled to native code"),
        (of_another_format, "has the format 7 of exported programs where 8 is read"),
        (several, r"holds 2 programs \(a.json, b.json\)"),
    ],
)
def test_files_of_another_kind_are_refused(folder: Path, tmp_path: Path, change: Change, told: str) -> None:
    path = changed(folder / "any.pt2", tmp_path / "other.pt2", change)
    with pytest.raises(SegtailorError, match=told) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_weights_that_older_versions_pickled_as_tensors_are_read(folder: Path, tmp_path: Path) -> None:
    def change(entries: dict[str, bytes]) -> None:
        for kind, tensors in (("weights", Tiny().state_dict()), ("constants", {})):
            stream = io.BytesIO()
            torch.save(tensors, stream)
            entries[f"data/{kind}/model.pt"] = stream.getvalue()

    network = load_model(changed(folder / "any.pt2", tmp_path / "old.pt2", change))
    torch.testing.assert_close(network(IMAGES).logits, load_model(folder / "any.pt2")(IMAGES).logits)


def test_a_missing_or_damaged_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(SegtailorError, match="no such file"):
        load_model("pt2:" + str(tmp_path / "none.pt2"))
    (tmp_path / "bad.pt2").write_bytes(b"not a zip")
    with pytest.raises(SegtailorError, match="is damaged or no exported program"):
        load_model(tmp_path / "bad.pt2")
    with zipfile.ZipFile(tmp_path / "old.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
    with pytest.raises(SegtailorError, match="of an older PyTorch"):
        load_model(tmp_path / "old.pt2")


def test_programs_of_another_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SegtailorError, match="gives class indices and no logits"):
        load_model(write_pt2(tmp_path / "argmax.pt2", Tiny("argmax")))
    with pytest.raises(SegtailorError, match="exported in training mode; call eval"):
        load_model(write_pt2(tmp_path / "train.pt2", Tiny().train()))

    class Two(Tiny):
        def forward(self, inputs: Tensor, other: Tensor) -> Tensor:
            return super().forward(inputs + other)

    program = torch.export.export(Two(), (torch.zeros(2, 3, 64, 96),) * 2)
    torch.export.save(program, tmp_path / "two.pt2")
    with pytest.raises(SegtailorError, match="takes 2 inputs"):
        load_model(tmp_path / "two.pt2")


def test_wrong_names_list_the_nearest(folder: Path) -> None:
    with pytest.raises(SegtailorError, match=r"unknown output or module of .* 'boddy'; nearest: body"):
        load_model(folder / "feature.pt2", taps={"feature": "boddy"})
    with pytest.raises(SegtailorError, match=r"unknown output of .* for its logits"):
        load_model(folder / "feature.pt2", classifier="nothing")
    with pytest.raises(SegtailorError, match="has 5 classes where 11 are asked for"):
        load_model(folder / "any.pt2", 11)
