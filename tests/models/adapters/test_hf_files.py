"""Repositories of transformers: files and failures, image processors, weights, licenses."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from models.hf_tiny import configuration, processor, save
from segtailor.errors import SegtailorError
from segtailor.models import create_model, load_model
from segtailor.models.adapters import Choices, hf
from segtailor.models.adapters.hf_files import license_of

transformers = pytest.importorskip("transformers")


def error_of(action: Callable[[], Any]) -> str:
    with pytest.raises(SegtailorError) as caught:
        action()
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    return message


def of_loading(folder: Path | str) -> str:
    return error_of(lambda: load_model(f"hf:{folder}"))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    path = folder / "model.safetensors"
    safetensors.torch.save_file(change(safetensors.torch.load_file(path)), path, metadata={"format": "pt"})


def test_a_missing_extra_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for action in (lambda: load_model(f"hf:{tmp_path}"), lambda: create_model(f"hf:{tmp_path}", 3)):
        assert "pip install transformers datasets" in error_of(action)


def test_folders_that_are_no_repository(tmp_path: Path) -> None:
    assert "no such folder: ./nowhere/at/all" in of_loading("./nowhere/at/all")
    assert "has no config.json" in of_loading(tmp_path)
    save("segformer", tmp_path)
    assert f"give the folder of the repository: hf:{tmp_path}" in of_loading(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    assert "has no weights" in of_loading(tmp_path)
    assert create_model(f"hf:{tmp_path}", 3).num_classes == 3  # a fresh network needs none


def test_offline_mode_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = of_loading("nobody/no-such-model")
    assert "offline mode is on (HF_HUB_OFFLINE)" in message
    assert "not in the local cache" in message


@pytest.mark.parametrize(
    ("cause", "expected"),
    [(LocalEntryNotFoundError, "there is no connection"), (RepositoryNotFoundError, "no public repository")],
)
def test_what_the_hub_reports_gives_one_line(
    cause: type[Exception], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("some\nlines") from cause.__new__(cause)

    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", fail)
    assert expected in error_of(lambda: hf.load("nobody/no-such-model", Choices()))


def test_missing_and_unexpected_tensors_are_counted_and_five_named(tmp_path: Path) -> None:
    save("segformer", tmp_path)

    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        kept = {name: value for name, value in tensors.items() if "block.2." not in name}
        return {**kept, "decode_head.extra.weight": torch.zeros(2)}

    change_weights(tmp_path, change)
    message = of_loading(tmp_path)
    counted = re.search(r"(\d+) missing \((.*?)\)", message)
    assert counted is not None
    assert int(counted[1]) > 5
    assert counted[2].count("segformer.stages.2.blocks.0.") == 5
    assert counted[2].endswith("...")
    assert "1 unexpected (decode_head.extra.weight)" in message
    assert "does not fit SegformerForSemanticSegmentation" in message


def test_tensors_of_another_shape_are_named_also_where_the_classifier_is_fresh(tmp_path: Path) -> None:
    save("segformer", tmp_path)
    name = "decode_head.linear_c.1.proj.bias"
    change_weights(tmp_path, lambda tensors: {**tensors, name: torch.zeros(3)})
    for action in (lambda: load_model(f"hf:{tmp_path}"), lambda: create_model(f"hf:{tmp_path}", 3, pretrained=True)):
        assert "1 of another shape (decode_head.linear_projections.1.proj.bias)" in error_of(action)


def test_the_nearest_layout_is_named(tmp_path: Path) -> None:
    save("segformer", tmp_path)
    published = {"patch_embed1.proj.weight": torch.zeros(2), "linear_fuse.0.weight": torch.zeros(2)}
    change_weights(tmp_path, lambda tensors: {**tensors, **published})
    assert "the published benchmark's SegFormer: give it as published:FILE" in of_loading(tmp_path)


def test_tensors_that_play_no_part_may_be_missing(tmp_path: Path) -> None:
    """DPT's published weights lack what its first fusion does not use."""
    net = save("dpt", tmp_path)
    inner = "neck.fusion_stage.layers.0.residual_layer1."
    change_weights(tmp_path, lambda tensors: {name: tensors[name] for name in tensors if not name.startswith(inner)})
    network = load_model(f"hf:{tmp_path}")
    raw = torch.randint(0, 256, (1, 3, 96, 96), dtype=torch.uint8)
    with torch.no_grad():
        expected = net(pixel_values=network.preprocess(raw)).logits
        assert torch.allclose(network.upsample(network(raw).logits, (96, 96)), expected, atol=1e-5)


class Hostile:
    """What a pickle with code in it looks like."""

    def __init__(self, command: list[str]) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.check_call, (self.command,)


def test_a_pickle_is_read_as_tensors_and_never_run(tmp_path: Path) -> None:
    net = save("segformer", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(net.state_dict(), tmp_path / "pytorch_model.bin")
    assert load_model(f"hf:{tmp_path}").num_classes == 5
    trace = tmp_path / "trace"
    torch.save({**net.state_dict(), "a": Hostile(["touch", str(trace)])}, tmp_path / "pytorch_model.bin")
    message = of_loading(tmp_path)
    assert "is refused" in message
    assert "save_pretrained" in message
    assert not trace.exists()


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    save("segformer", tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert f"hf:{tmp_path} cannot be built or read" in of_loading(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    assert f"hf:{tmp_path} cannot be built or read" in of_loading(tmp_path)


def test_code_in_a_repository_is_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    content = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "mine.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass MineConfig: pass\n")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "brings its own code, which is never run" in of_loading(tmp_path)
    assert not trace.exists()


def test_models_of_other_tasks_are_named(tmp_path: Path) -> None:
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    bert = transformers.BertConfig(vocab_size=10, **small)
    transformers.BertForMaskedLM(bert).save_pretrained(tmp_path)
    for action in (lambda: load_model(f"hf:{tmp_path}"), lambda: create_model(f"hf:{tmp_path}", 3)):
        message = error_of(action)
        assert "is a BertForMaskedLM (bert), no semantic segmentation model" in message
        assert "mask2former" in message
        assert "segformer" in message


def test_an_encoder_alone_is_a_students_start_and_no_teacher(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = transformers.SegformerForImageClassification(configuration("segformer", num_labels=9))
    net.save_pretrained(tmp_path)
    transformers.SegformerImageProcessor().save_pretrained(tmp_path)
    message = of_loading(tmp_path)
    assert "is a SegformerForImageClassification, no SegformerForSemanticSegmentation" in message
    student = create_model(f"hf:{tmp_path}", 3, pretrained=True)
    found = student.state_dict()
    encoder = {f"net.{name}": value for name, value in net.state_dict().items() if name.startswith("segformer.")}
    assert len(encoder) > 50
    assert all(torch.equal(found[name], value) for name, value in encoder.items())
    lacking = dict(list(safetensors.torch.load_file(tmp_path / "model.safetensors").items())[:-9])
    change_weights(tmp_path, lambda _: lacking)
    assert "missing (" in error_of(lambda: create_model(f"hf:{tmp_path}", 3, pretrained=True))


def test_other_choices_that_do_not_fit(tmp_path: Path) -> None:
    save("segformer", tmp_path)
    assert "5 classes where 7" in error_of(lambda: load_model(f"hf:{tmp_path}", 7))
    assert "pretrained is true or false" in error_of(lambda: create_model(f"hf:{tmp_path}", 5, pretrained="a.pth"))
    message = error_of(lambda: load_model(f"hf:{tmp_path}", classifier="decode_head.clasifier"))
    assert "decode_head.classifier" in message
    message = error_of(lambda: load_model(f"hf:{tmp_path}", taps={"deep": "segformer.stage.1"}))
    assert "segformer.stages.1" in message
    assert "mena" in error_of(lambda: load_model(f"hf:{tmp_path}", preprocess={"mena": [0, 0, 0]}))


CARD = "---\nlicense: {}\ntags: [a]\n---\n# A model\n"


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (CARD.format("apache-2.0"), {"model": "apache-2.0"}),
        (CARD.format("[mit, cc-by-4.0]"), {"model": "mit, cc-by-4.0"}),
        (CARD.format("other\nlicense_name: my-terms"), {"model": "other (my-terms)"}),
        (CARD.format("other") + "trained from nvidia/mit-b0", "not for commercial use"),
        (CARD.format("other") + "see github.com/NVlabs/SegFormer", "not for commercial use"),
        (CARD.format("{broken"), {}),
        ("no front matter", {}),
        (None, {}),
    ],
)
def test_the_cards_license_is_carried(card: str | None, expected: dict[str, str] | str, tmp_path: Path) -> None:
    save("segformer", tmp_path)
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    found = load_model(f"hf:{tmp_path}").licenses
    assert expected in found["model"] if isinstance(expected, str) else found == expected
    assert create_model(f"hf:{tmp_path}", 5).licenses == {}  # fresh weights have no license


def test_nvidias_weights_are_known_by_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "not for commercial use" in license_of("nvidia/segformer-b0-finetuned-ade-512-512", "")["model"]
    assert "not for commercial use" in license_of("somebody/mine", "nvidia/mit-b0")["model"]
    assert license_of("somebody/mine", "") == {"model": "unknown (somebody/mine names none)"}


def spec_of(family: str, folder: Path, **changes: Any) -> dict[str, Any]:
    save(family, folder)
    processor(family, **changes).save_pretrained(folder)
    return load_model(f"hf:{folder}").preprocess.spec()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}, {"mean": [0.1, 0.2, 0.3], "scale": 1 / 255}),
        ({"do_normalize": False}, {"mean": [0.0] * 3, "std": [1.0] * 3, "scale": 1 / 255}),
        ({"do_rescale": False, "image_std": 58.0}, {"scale": 1.0, "std": [58.0] * 3}),
        ({"do_rescale": False, "do_normalize": False}, {"scale": 1.0, "mean": [0.0] * 3, "std": [1.0] * 3}),
        ({"rescale_factor": 1 / 127.5}, {"scale": 1 / 127.5}),
        ({"do_resize": True, "do_center_crop": True, "crop_size": 32}, {"size_multiple": 1}),
    ],
)
def test_statistics_are_the_processors(changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path) -> None:
    spec = spec_of("segformer", tmp_path, **changes)
    assert "size" not in spec  # its resize and crop are not used: ours apply
    assert {name: spec[name] for name in expected} == {
        name: pytest.approx(value, rel=1e-6) for name, value in expected.items()
    }


def test_channel_order_and_multiples(tmp_path: Path) -> None:
    mobile = spec_of("mobilevit", tmp_path / "a")
    assert (mobile["channel_order"], mobile["size_multiple"]) == ("bgr", 32)
    # this processor never normalizes, whatever its file says
    assert (mobile["mean"], mobile["std"]) == ([0.0] * 3, [1.0] * 3)
    assert spec_of("mobilevit", tmp_path / "b", do_flip_channel_order=False)["channel_order"] == "rgb"
    assert spec_of("beit", tmp_path / "c")["size_multiple"] == 16
    assert spec_of("upernet-swin", tmp_path / "d")["size_multiple"] == 32


def test_the_recipe_overrides(tmp_path: Path) -> None:
    save("segformer", tmp_path)
    network = load_model(f"hf:{tmp_path}", preprocess={"mean": [0.0, 0.0, 0.0], "size_multiple": 64})
    assert network.preprocess.spec()["mean"] == [0.0, 0.0, 0.0]
    assert network.preprocess.spec()["std"] == pytest.approx([0.229, 0.224, 0.225])
    assert network.preprocess.size_multiple == 64


def test_networks_of_one_size_say_it(tmp_path: Path) -> None:
    assert spec_of("data2vec-vision", tmp_path / "a")["size"] == [96, 96]
    assert spec_of("dpt", tmp_path / "b")["size"] == [96, 96]
    # its position embeddings are enlarged to what the processor makes
    assert spec_of("dpt", tmp_path / "c", size={"height": 128, "width": 128})["size"] == [128, 128]
    assert spec_of("dpt", tmp_path / "d", size={"height": 128, "width": 160})["size"] == [96, 96]


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({"size": {"shortest_edge": 128}, "do_center_crop": True, "crop_size": 96}, "crops the center out of"),
        ({"do_center_crop": True, "crop_size": {"height": 80, "width": 80}}, "crops the center out of"),
        ({"do_resize": False, "do_center_crop": True, "crop_size": 96}, "crops the center out of"),
    ],
)
def test_a_crop_that_cannot_be_undone_is_refused_until_whole_images_are_asked_for(
    changes: dict[str, Any], step: str, tmp_path: Path
) -> None:
    save("data2vec-vision", tmp_path)
    processor("data2vec-vision", **changes).save_pretrained(tmp_path)
    with pytest.raises(SegtailorError) as caught:
        load_model(f"hf:{tmp_path}")
    message = str(caught.value)
    assert step in message
    assert "cannot be undone" in message
    assert "preprocess.size: [96, 96]" in message
    assert "\n" not in message
    assert load_model(f"hf:{tmp_path}", preprocess={"size": [96, 96]}).preprocess.size == (96, 96)


def test_a_crop_of_the_whole_resized_image_is_none(tmp_path: Path) -> None:
    spec = spec_of("data2vec-vision", tmp_path, do_center_crop=True, crop_size={"height": 96, "width": 96})
    assert spec["size"] == [96, 96]


def test_padding_of_a_network_of_one_size_is_refused(tmp_path: Path) -> None:
    save("dpt", tmp_path)
    processor("dpt", do_pad=True, size_divisor=32, keep_aspect_ratio=True).save_pretrained(tmp_path)
    with pytest.raises(SegtailorError, match=r"pads the image, which cannot be undone .* preprocess\.size"):
        load_model(f"hf:{tmp_path}")


def test_without_a_processor_the_statistics_must_be_given(tmp_path: Path) -> None:
    save("segformer", tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    for action in (load_model, lambda uri: create_model(uri, 3, pretrained=True)):
        with pytest.raises(SegtailorError, match=r"no image processor .* set preprocess\.mean"):
            action(f"hf:{tmp_path}")
    given = {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert load_model(f"hf:{tmp_path}", preprocess=given).preprocess.spec()["mean"] == [0.5] * 3
    assert create_model(f"hf:{tmp_path}", 3).preprocess.spec()["mean"] == [0.485, 0.456, 0.406]


def test_other_processors_are_refused(tmp_path: Path) -> None:
    save("segformer", tmp_path)
    processor("segformer", image_mean=[0.5]).save_pretrained(tmp_path)
    with pytest.raises(SegtailorError, match="image_mean of its image processor has 1 values, not 3"):
        load_model(f"hf:{tmp_path}")
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "NoSuchImageProcessor"}')
    with pytest.raises(
        SegtailorError, match=r"the image processor NoSuchImageProcessor, not one of .* set preprocess\.mean"
    ):
        load_model(f"hf:{tmp_path}")
    given = {"mean": [0.5] * 3, "std": [0.5] * 3}
    assert load_model(f"hf:{tmp_path}", preprocess=given).preprocess.spec()["mean"] == [0.5] * 3


def test_processors_of_earlier_versions_are_known(tmp_path: Path) -> None:
    save("segformer", tmp_path)
    content = {"feature_extractor_type": "SegformerFeatureExtractor", "image_mean": [0.1] * 3, "size": 512}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    assert load_model(f"hf:{tmp_path}").preprocess.spec()["mean"] == [0.1] * 3


def test_reduced_labels_are_noted(tmp_path: Path) -> None:
    save("segformer", tmp_path)
    assert "its classes start at label 1" in load_model(f"hf:{tmp_path}").note
    processor("segformer", do_reduce_labels=False).save_pretrained(tmp_path)
    assert load_model(f"hf:{tmp_path}").note == ""
