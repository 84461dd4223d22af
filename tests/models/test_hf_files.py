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

from segtailor.errors import SegtailorError
from segtailor.models import create_model, load_model
from segtailor.models.adapters import Choices, hf
from segtailor.models.adapters.hf_licence import licence_of

from .hf_tiny import configuration, save

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
        assert 'pip install "segtailor[hf]"' in error_of(action)


def test_folders_that_are_no_repository(tmp_path: Path) -> None:
    assert "no such folder: ./nowhere/at/all" in of_loading("./nowhere/at/all")
    assert "has no config.json" in of_loading(tmp_path)
    save("segformer", tmp_path)
    assert f"give the folder of the repository: hf:{tmp_path}" in of_loading(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    assert "has no weights" in of_loading(tmp_path)
    assert create_model(f"hf:{tmp_path}", 3).num_classes == 3  # a fresh network needs none


def test_offline_mode_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    message = of_loading("nobody/no-such-model")
    assert "offline mode is on (HF_HUB_OFFLINE)" in message
    assert "not in the local cache" in message


@pytest.mark.parametrize(
    ("cause", "said"),
    [(LocalEntryNotFoundError, "no connection to the hub"), (RepositoryNotFoundError, "no public repository")],
)
def test_what_the_hub_says_is_told_in_one_line(
    cause: type[Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("some\nlines") from cause.__new__(cause)

    monkeypatch.setattr(transformers.PreTrainedConfig, "get_config_dict", fail)
    assert said in error_of(lambda: hf.load("nobody/no-such-model", Choices()))


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
    network = load_model(f"hf:{tmp_path}").eval()
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
    assert f"hf:{tmp_path} cannot be read" in of_loading(tmp_path)
    (tmp_path / "config.json").write_text("{not json")
    assert f"hf:{tmp_path} cannot be read" in of_loading(tmp_path)


def test_code_in_a_repository_is_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    content = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.MineConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "mine.py").write_text(f"open({str(trace)!r}, 'w').close()\nclass MineConfig: pass\n")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "brings code of its own, which is never run" in of_loading(tmp_path)
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
    ("card", "said"),
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
def test_the_cards_licence_is_carried(card: str | None, said: dict[str, str] | str, tmp_path: Path) -> None:
    save("segformer", tmp_path)
    if card is not None:
        (tmp_path / "README.md").write_text(card)
    found = load_model(f"hf:{tmp_path}").licences
    assert said in found["model"] if isinstance(said, str) else found == said
    assert create_model(f"hf:{tmp_path}", 5).licences == {}  # fresh weights are the user's own


def test_nvidias_weights_are_known_by_their_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "not for commercial use" in licence_of("nvidia/segformer-b0-finetuned-ade-512-512", "")["model"]
    assert "not for commercial use" in licence_of("somebody/mine", "nvidia/mit-b0")["model"]
    assert licence_of("somebody/mine", "") == {"model": "unknown (somebody/mine names none)"}
