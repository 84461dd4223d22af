"""transformers' SegFormer checkpoints in our own SegFormer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from segtailor.errors import SegtailorError
from segtailor.models import create_model, load_model
from segtailor.models.store import save_model

from .hf_tiny import CLASSES, configuration

transformers = pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def net() -> Any:
    """A SegFormer-B0 of transformers with random weights, no two layers alike."""
    sizes = {"hidden_sizes": [32, 64, 160, 256], "depths": [2] * 4, "num_attention_heads": [1, 2, 5, 8]}
    torch.manual_seed(0)
    net = transformers.SegformerForSemanticSegmentation(configuration("segformer", **sizes, decoder_hidden_size=256))
    with torch.no_grad():
        for name, value in [*net.named_parameters(), *net.named_buffers()]:
            if name.endswith("running_var"):
                value.uniform_(0.8, 1.2)
            elif value.is_floating_point():
                value += 0.05 * torch.randn_like(value)
    return net.eval()


@pytest.fixture(scope="module")
def folder(net: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("segformer")
    net.save_pretrained(place)
    transformers.SegformerImageProcessor(image_mean=[0.4, 0.5, 0.6]).save_pretrained(place)
    return place


def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def outputs(net: Any, model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        return model.eval()(images()).logits, net(pixel_values=model.preprocess(images())).logits


@pytest.mark.parametrize("given", ["folder", "safetensors", "bin", "names of version 5"])
def test_a_whole_checkpoint_gives_transformers_output(given: str, net: Any, folder: Path, tmp_path: Path) -> None:
    place = folder
    if given == "safetensors":
        place = folder / "model.safetensors"
    elif given == "bin":
        place = tmp_path
        torch.save(safetensors.torch.load_file(folder / "model.safetensors"), tmp_path / "pytorch_model.bin")
    elif given == "names of version 5":
        place = tmp_path / "mine.pth"
        torch.save(net.state_dict(), place)
    model = load_model(f"published:{place}", 5)
    assert model.name == "segformer-mit_b0"
    found, expected = outputs(net, model)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    beside = given in ("folder", "safetensors")
    assert model.classes == (CLASSES if beside else ())
    spec = model.preprocess.spec()
    assert (spec["channel_order"], spec["scale"]) == ("rgb", 1 / 255)
    assert spec["mean"] == ([0.4, 0.5, 0.6] if beside else [0.485, 0.456, 0.406])


def test_only_the_epsilons_differ(net: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(f"published:{folder}")
    for name, module in net.named_modules():
        if isinstance(module, nn.LayerNorm) and "patch_embeddings" not in name and "reduction" not in name:
            monkeypatch.setattr(module, "eps", 1e-6)
    found, expected = outputs(net, model)
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
    assert not model.state_dict()["head.fuse.0.bias"].any()


def test_it_is_stored_with_what_it_expects(net: Any, folder: Path, tmp_path: Path) -> None:
    model = load_model(f"published:{folder}")
    save_model(model, tmp_path / "a.safetensors")
    found, expected = outputs(net, load_model(tmp_path / "a.safetensors"))
    assert torch.allclose(found, expected, rtol=0, atol=1e-4)


def test_an_encoder_starts_a_new_model(net: Any, folder: Path, tmp_path: Path) -> None:
    alone = transformers.SegformerForImageClassification(net.config)
    alone.segformer.load_state_dict(net.segformer.state_dict())
    alone.save_pretrained(tmp_path)
    for place in (tmp_path, tmp_path / "model.safetensors", folder):  # alone, or with a head that is left out
        model = create_model("segformer-mit_b0", 3, pretrained=place).eval()
        with torch.no_grad():
            inputs = model.preprocess(images())
            stages = model.forward_normalized(inputs).stages
            expected = net.segformer(inputs, output_hidden_states=True).hidden_states
        assert all(
            torch.allclose(one, other, rtol=1e-4, atol=1e-4) for one, other in zip(stages, expected, strict=True)
        )
        assert model.preprocess.spec()["channel_order"] == "rgb"
    assert model.preprocess.spec()["mean"] == [0.4, 0.5, 0.6]
    with pytest.raises(SegtailorError, match="encoder alone; give it to a new model as pretrained"):
        load_model(f"published:{tmp_path}")
    with pytest.raises(SegtailorError, match=r"does not fit the backbone: \d+ missing"):
        create_model("segformer-mit_b2", 3, pretrained=tmp_path)


def test_what_does_not_fit_is_named(folder: Path, tmp_path: Path) -> None:
    tensors = safetensors.torch.load_file(folder / "model.safetensors")
    gone = "segformer.encoder.block.1.0.mlp.dense1.bias"
    torch.save({name: value for name, value in tensors.items() if name != gone}, tmp_path / "a.pth")
    with pytest.raises(SegtailorError, match=r"1 missing \(backbone\.net\.block2\.0\.mlp\.fc1\.bias\)"):
        load_model(f"published:{tmp_path / 'a.pth'}")
    torch.save({**tensors, "decode_head.extra.weight": torch.zeros(1)}, tmp_path / "b.pth")
    with pytest.raises(SegtailorError, match=r"1 unexpected \(head\.extra\.weight\)"):
        load_model(f"published:{tmp_path / 'b.pth'}")
    torch.save({name: value for name, value in tensors.items() if "block.3.1." not in name}, tmp_path / "c.pth")
    with pytest.raises(SegtailorError, match=r"depths \[2, 2, 2, 1\], none of B0 to B5; load it as hf:"):
        load_model(f"published:{tmp_path / 'c.pth'}")
    with pytest.raises(SegtailorError, match="has no weights: neither"):
        load_model(f"published:{tmp_path}")


def test_nvidias_license_is_carried(net: Any, folder: Path, tmp_path: Path) -> None:
    assert load_model(f"published:{folder}").licenses == {}
    net.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("---\nlicense: other\nbase_model: nvidia/mit-b0\n---\n")
    assert "not for commercial use" in load_model(f"published:{tmp_path}").licenses["backbone"]
    model = create_model("segformer-mit_b0", 3, pretrained=tmp_path)
    assert "not for commercial use" in model.licenses["backbone"]
