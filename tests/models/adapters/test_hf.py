from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.hf_tiny import CLASSES, FAMILIES, LOGITS, MASKS, processor, save
from segtailor.config import ModelConfig
from segtailor.errors import SegtailorError
from segtailor.models import create_model, load_model
from segtailor.models.adapters.hf import semantic_logits, semantic_task
from segtailor.models.inspect import inspect_model
from segtailor.models.network import Network
from segtailor.models.store import build_network, save_model

AUX = ("upernet-convnext", "upernet-swin", "dpt", "beit", "data2vec-vision")


def images(network: Network, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = network.preprocess.size or (64, 96)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def prepared(family: str, raw: Tensor) -> Tensor:
    """What the library's own image processor makes of ``raw``, its resize, crop and pad switched off."""
    task = (["semantic"] * len(raw),) if family == "oneformer" else ()
    off = {} if family == "oneformer" else {"do_center_crop": False, "do_pad": False}
    found = processor(family)(list(raw), *task, return_tensors="pt", do_resize=False, **off)
    return torch.as_tensor(found["pixel_values"])


@pytest.mark.parametrize("family", LOGITS)
def test_logits_are_the_librarys_own(family: str, tmp_path: Path) -> None:
    net = save(family, tmp_path)
    network = load_model(f"hf:{tmp_path}", num_classes=5)
    raw = images(network)
    size = (raw.shape[-2], raw.shape[-1])
    with torch.no_grad():
        output = network(raw)
        logits = net(pixel_values=prepared(family, raw)).logits
        expected = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    found = network.upsample(output.logits, size)
    scale = float(expected.abs().max())
    assert (found - expected).abs().max() <= 1e-5 * scale
    if network.preprocess.size is not None:  # enlarged to that size by the network, and from there
        other = F.interpolate(logits, (80, 112), mode="bilinear", align_corners=False)
        assert (network.upsample(output.logits, (80, 112)) - other).abs().max() <= 1e-5 * scale
    assert network.classes == CLASSES


@pytest.mark.parametrize("family", MASKS)
def test_mask_classification_gives_the_log_of_its_semantic_scores(family: str, tmp_path: Path) -> None:
    net = save(family, tmp_path)
    network = load_model(f"hf:{tmp_path}")
    raw = images(network)
    further = {"task_inputs": semantic_task(77).expand(2, -1)} if family == "oneformer" else {}
    with torch.no_grad():
        output = network(raw)
        own = net(pixel_values=prepared(family, raw), **further)
    # Mask2Former's own enlarges to 384 x 384 first; the scores are made in the same way
    post = processor("maskformer" if family == "mask2former" else family).post_process_semantic_segmentation
    scores = torch.stack([item["segmentation_scores"] for item in post(own, return_segmentation_scores=True)])
    expected = (scores / scores.sum(dim=1, keepdim=True)).log()
    assert expected.std() > 0.01
    assert output.logits.shape == (2, 5, 16, 24)
    assert (output.logits - expected).abs().max() <= 1e-5
    assert output.feature is not None
    decoder = own.get("pixel_decoder_last_hidden_state")
    if family != "oneformer":
        assert decoder is not None
        assert torch.allclose(output.feature, decoder, atol=1e-5)
    large = network.upsample(output.logits, (64, 96))
    assert torch.allclose(large.exp().sum(dim=1), torch.ones(2, 64, 96), atol=1e-5)
    assert "teacher only" in network.note


def test_oneformers_task_separates_semantic_from_other_tasks(tmp_path: Path) -> None:
    save("oneformer", tmp_path)
    network = load_model(f"hf:{tmp_path}")
    raw = images(network)
    with torch.no_grad():
        before = network(raw).logits
        network.net.semantic_task.zero_()  # type: ignore[union-attr, operator]
        after = network(raw).logits
    assert not torch.equal(before, after)
    assert semantic_task(77)[0, :8].tolist() == [49406, 518, 10549, 533, 29119, 1550, 49407, 0]
    assert semantic_task(4)[0].tolist() == [49406, 518, 10549, 49407]


def test_oneformers_text_branch_is_left_out(tmp_path: Path) -> None:
    save("oneformer", tmp_path, is_training=True, text_encoder_width=64, text_encoder_vocab_size=9)
    network = load_model(f"hf:{tmp_path}")
    assert network(images(network)).logits.shape == (2, 5, 16, 24)
    assert not [name for name in network.state_dict() if "text_mapper" in name]


def test_semantic_logits_are_finite_where_no_query_has_a_pixel() -> None:
    classes, masks = torch.zeros(1, 2, 4), torch.full((1, 2, 1, 2), -200.0)
    masks[..., 1] = 3.0
    logits = semantic_logits(classes, masks)
    assert logits.isfinite().all()
    assert logits[0, :, 0, 1].tolist() == pytest.approx([-1.0986] * 3, abs=1e-3)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_taps_have_the_shapes_that_the_network_says(family: str, tmp_path: Path) -> None:
    save(family, tmp_path)
    network = load_model(f"hf:{tmp_path}")
    raw = images(network, 1)
    with torch.no_grad():
        output = network(raw)
    height, width = raw.shape[-2:]
    assert len(output.stages) == len(network.stage_strides) == 4
    for index, (stage, stride) in enumerate(zip(output.stages, network.stage_strides, strict=True)):
        assert stage.shape[1:] == (network.tap_channels[f"stages.{index}"], height // stride, width // stride)
    assert output.feature is not None
    assert output.feature.shape[1] == network.tap_channels["feature"]
    assert output.feature.shape[-2:] == output.logits.shape[-2:]
    assert (output.aux_logits is not None) == network.has_aux == (family in AUX)
    shapes = {tap.name: tap.shape for tap in inspect_model(network, (height, width)).taps}
    assert shapes["feature"] == output.feature.shape[1:]
    assert shapes["stages.3"] == output.stages[3].shape[1:]
    assert network.encoder_parameters()
    assert len(network.encoder_parameters()) < len(list(network.parameters()))


@pytest.mark.parametrize("family", LOGITS)
def test_a_student_trains_is_stored_and_rebuilt_without_the_folder(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "repository")
    student = create_model(f"hf:{tmp_path / 'repository'}", 3, pretrained=True).train()
    raw = images(student, 1)  # one image: a pooled branch has one value a channel
    output = student(raw)
    assert output.logits.shape[1] == 3
    losses = [output.logits, output.feature, output.aux_logits, *output.stages]
    sum(item.square().mean() for item in losses if item is not None).backward()
    gradients = {name: value.grad for name, value in student.named_parameters() if value.requires_grad}
    assert [name for name, value in gradients.items() if value is None or not value.isfinite().all()] == []
    before = {name: value.detach().clone() for name, value in student.named_parameters() if value.requires_grad}
    torch.optim.AdamW(student.parameters(), lr=1e-3).step()
    changed = [name for name, value in student.named_parameters() if name in before and not value.equal(before[name])]
    assert len(changed) > 0.9 * len(before)
    student.eval()
    with torch.no_grad():
        expected, copied = student(raw), copy.deepcopy(student)(raw)
    scale = float(expected.logits.abs().max())
    assert (copied.logits - expected.logits).abs().max() <= 1e-5 * scale
    save_model(student, tmp_path / "student.safetensors")
    shutil.rmtree(tmp_path / "repository")
    again = load_model(tmp_path / "student.safetensors", 3)
    assert again.spec() == student.spec()
    with torch.no_grad():
        found = again(raw)
    assert (found.logits - expected.logits).abs().max() <= 1e-5 * scale
    assert again.tap_channels == student.tap_channels
    assert str(tmp_path) not in str(again.spec()["config"])


@pytest.mark.parametrize("family", MASKS)
def test_a_mask_classifier_is_stored_and_rebuilt_and_is_no_student(family: str, tmp_path: Path) -> None:
    save(family, tmp_path / "repository")
    network = load_model(f"hf:{tmp_path / 'repository'}")
    raw = images(network)
    save_model(network, tmp_path / "teacher.safetensors")
    with pytest.raises(SegtailorError, match="can be a teacher only"):
        build_network(ModelConfig(model=f"hf:{tmp_path / 'repository'}"), 5)
    shutil.rmtree(tmp_path / "repository")
    again = load_model(tmp_path / "teacher.safetensors")
    with torch.no_grad():
        assert torch.allclose(again(raw).logits, network(raw).logits, atol=1e-6)
        assert torch.equal(copy.deepcopy(network)(raw).logits, network(raw).logits)


def test_what_the_logits_do_not_depend_on_is_not_trained(tmp_path: Path) -> None:
    save("dpt", tmp_path)
    student = create_model(f"hf:{tmp_path}", 3)
    frozen = {name.removeprefix("net.") for name, value in student.named_parameters() if not value.requires_grad}
    assert "dpt.layernorm.weight" in frozen
    assert all(name.startswith(("dpt.layernorm.", "neck.fusion_stage.layers.0.residual_layer1.")) for name in frozen)


def test_pretrained_keeps_the_encoder_and_takes_a_fresh_classifier_for_other_classes(tmp_path: Path) -> None:
    net = save("segformer", tmp_path)
    weights = net.state_dict()
    other = create_model(f"hf:{tmp_path}", 3, pretrained=True)
    same = create_model(f"hf:{tmp_path}", 5, pretrained=True)
    fresh = create_model(f"hf:{tmp_path}", 5)
    inner = "net.segformer.stages.2.blocks.0.mlp.fc1.weight"
    for network, kept in ((other, True), (same, True), (fresh, False)):
        assert torch.equal(network.state_dict()[inner], weights[inner.removeprefix("net.")]) == kept
    classifier = "decode_head.classifier.weight"
    assert torch.equal(same.state_dict()[f"net.{classifier}"], weights[classifier])
    assert (other.classes, same.classes, fresh.classes) == ((), CLASSES, ())


@pytest.mark.parametrize("family", ["segformer", "dpt", "mobilevit", "mobilenet_v2"])
def test_the_feature_is_before_dropout(family: str, tmp_path: Path) -> None:
    save(family, tmp_path)
    student = create_model(f"hf:{tmp_path}", 3).train()
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout | torch.nn.Dropout2d):
            module.p = 0.5
    output = student(images(student))
    assert output.feature is not None
    assert output.classifier_input is not None
    kept = output.classifier_input != 0
    assert torch.allclose(output.classifier_input[kept], 2 * output.feature[kept])
    assert (output.classifier_input == 0).sum() > (output.feature == 0).sum()


def test_half_precision_weights_are_read_in_full(tmp_path: Path) -> None:
    net = save("segformer", tmp_path)
    net.half().save_pretrained(tmp_path)
    network = load_model(f"hf:{tmp_path}")
    assert {value.dtype for value in network.parameters()} == {torch.float32}


def test_taps_work_compiled_and_under_activation_checkpointing(tmp_path: Path) -> None:
    save("segformer", tmp_path)
    taps = {"deep": "segformer.stages.1.blocks.0"}
    network = load_model(f"hf:{tmp_path}", taps=taps).train()
    raw = images(network)

    def gradients() -> dict[str, Tensor]:
        network.zero_grad()
        torch.manual_seed(0)
        output = network(raw)
        assert output.taps["deep"].shape == (2, 16, 8, 12)
        parts = [output.logits, output.feature, output.taps["deep"], *output.stages]
        sum(part.square().mean() for part in parts).backward()
        return {name: value.grad.clone() for name, value in network.named_parameters() if value.grad is not None}

    plain = gradients()
    network.net.gradient_checkpointing_enable()  # type: ignore[union-attr, operator]
    assert network.net.is_gradient_checkpointing  # type: ignore[union-attr]
    again = gradients()
    assert plain.keys() == again.keys()
    assert all(torch.allclose(plain[name], again[name], atol=1e-6) for name in plain)
    network.net.gradient_checkpointing_disable()  # type: ignore[union-attr, operator]
    network.eval()
    with torch.no_grad():
        expected = network(raw)
        found = torch.compile(network, backend="aot_eager")(raw)
    pairs = zip(
        [found.logits, found.feature, found.taps["deep"], *found.stages],
        [expected.logits, expected.feature, expected.taps["deep"], *expected.stages],
        strict=True,
    )
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in pairs)


def test_nothing_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    save("segformer", tmp_path)
    capfd.readouterr()
    create_model(f"hf:{tmp_path}", 3, pretrained=True)
    load_model(f"hf:{tmp_path}")
    printed: Any = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")
