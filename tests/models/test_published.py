from __future__ import annotations

import pickle
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from segtailor.errors import SegtailorError
from segtailor.models import count_parameters, create_model, load_model
from segtailor.models.checkpoint_keys import to_published
from segtailor.models.published import load_published, recognize

from .family import LAYOUTS, blank_checkpoint, checkpoint, layout, outputs

SMALL = "pspnet-mobilenetv2"


def error_of(path: Path) -> str:
    with pytest.raises(SegtailorError) as caught:
        load_model(f"published:{path}")
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", sorted(LAYOUTS))
def test_a_published_checkpoint_is_recognized_and_gives_the_published_outputs(name: str, tmp_path: Path) -> None:
    path = tmp_path / "anything.pth"
    torch.save(checkpoint(name), path)
    model = load_model(f"published:{path}", num_classes=19)
    assert model.name == name
    assert count_parameters(model) == LAYOUTS[name]["parameters"]
    assert [(key, tuple(value.shape)) for key, value in to_published(model).items()] == layout(name)
    golden = outputs()
    with torch.no_grad():
        output = model.forward_normalized(golden["input"])
    found = [output.logits, output.aux_logits, output.feature] if model.has_aux else [output.logits, output.feature]
    for index, tensor in enumerate(found):
        expected = golden[f"{name}.output{index}"]
        assert tensor is not None
        assert tensor.shape == expected.shape
        assert (tensor - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert f"{name}.output{len(found)}" not in golden


def test_the_head_width_is_read_from_the_file_not_from_its_name(tmp_path: Path) -> None:
    wide = create_model("deeplabv3-resnet18", 19, head_width=512).eval()
    assert round(count_parameters(wide) / 1e6, 2) == 22.76  # the second generation's figure
    path = tmp_path / "deeplabv3_resnet18_citys_best_model.pth"
    torch.save(to_published(wide), path)
    again = load_published(path).eval()
    assert again.feature_channels == 512
    assert again.spec() == wide.spec()
    images = torch.randint(0, 256, (1, 3, 32, 64), dtype=torch.uint8)
    assert torch.equal(again(images).logits, wide(images).logits)


def test_the_second_generation_pspnet_has_half_the_width() -> None:
    model = create_model("pspnet-resnet101", 19, head_width=256)
    assert round(count_parameters(model) / 1e6, 2) == 58.63
    found = recognize(to_published(model), "a file")
    assert found == ("pspnet-resnet101", 19, 256)


def with_prefix(tensors: dict[str, Any]) -> dict[str, Any]:
    return {f"module.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize("wrap", [with_prefix, lambda tensors: {"state_dict": tensors}], ids=["module.", "state_dict"])
def test_common_wrappers_are_taken_off(wrap: Callable[[dict[str, Any]], dict[str, Any]], tmp_path: Path) -> None:
    torch.save(wrap(blank_checkpoint(SMALL)), tmp_path / "a.pth")
    assert load_published(tmp_path / "a.pth").name == SMALL


def test_the_class_count_is_read_and_compared(tmp_path: Path) -> None:
    torch.save(to_published(create_model(SMALL, 7)), tmp_path / "a.pth")
    assert load_model(f"published:{tmp_path / 'a.pth'}").num_classes == 7
    with pytest.raises(SegtailorError, match=r"7 classes where 11"):
        load_model(f"published:{tmp_path / 'a.pth'}", num_classes=11)


def test_missing_and_unexpected_tensors_are_counted_and_five_named(tmp_path: Path) -> None:
    tensors = blank_checkpoint(SMALL)
    gone = [name for name in tensors if name.startswith("pretrained.net.features.3.")]
    for name in gone:
        del tensors[name]
    tensors["head.extra.weight"] = torch.zeros(1)
    torch.save(tensors, tmp_path / "a.pth")
    message = error_of(tmp_path / "a.pth")
    assert f"{len(gone)} missing (" in message
    assert all(name in message for name in gone[:5])
    assert gone[5] not in message
    assert "1 unexpected (head.extra.weight)" in message


def test_a_tensor_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = blank_checkpoint(SMALL) | {"head.block.1.bias": torch.zeros(3)}
    torch.save(tensors, tmp_path / "a.pth")
    assert "1 of another shape (head.block.1.bias)" in error_of(tmp_path / "a.pth")


class Hostile:
    """What a pickle with code in it looks like."""

    def __init__(self, command: list[str]) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.check_call, (self.command,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    torch.save({"a": Hostile(["touch", str(trace)])}, tmp_path / "a.pth")
    message = error_of(tmp_path / "a.pth")
    assert "refused" in message
    assert "torch.save(model.state_dict()" in message
    (tmp_path / "b.pth").write_bytes(pickle.dumps(Hostile(["touch", str(trace)])))
    error_of(tmp_path / "b.pth")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"weight": torch.zeros(2), "epoch": 3}, r"1 other entries \(epoch\)"),
        ([torch.zeros(2)], "holds no state dict"),
        ({"encoder.weight": torch.zeros(2)}, r"no published checkpoint .*1 tensors \(encoder\.weight\)"),
        ({"conv1.weight": torch.zeros(2), "layer1.0.conv1.weight": torch.zeros(2)}, "as pretrained"),
    ],
    ids=["entries", "list", "foreign", "backbone"],
)
def test_other_files_are_refused_in_one_line(content: object, expected: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "a.pth")
    assert re.search(expected, error_of(tmp_path / "a.pth"))


def test_missing_truncated_and_foreign_files(tmp_path: Path) -> None:
    assert "no such file" in error_of(tmp_path / "none.pth")
    torch.save(blank_checkpoint(SMALL), tmp_path / "a.pth")
    whole = (tmp_path / "a.pth").read_bytes()
    (tmp_path / "a.pth").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in error_of(tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(b"not a checkpoint at all")
    error_of(tmp_path / "b.pth")


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("deeplabv3-resnet18", "pretrained."), ("pspnet-mobilenetv2", "pretrained.net."), ("segformer-mit_b0", "")],
)
def test_the_backbone_starts_from_a_published_imagenet_file(name: str, prefix: str, tmp_path: Path) -> None:
    heads = ("head.", "auxlayer.", "linear_")
    tensors = {
        key.removeprefix(prefix): value
        for key, value in checkpoint(name).items()
        if not key.startswith(heads) and not key.endswith("_tracked")  # files of old have no batch counters
    }
    path = tmp_path / "imagenet.pth"
    torch.save({**tensors, "fc.weight": torch.zeros(1000, 512)}, path)
    model = create_model(name, 5, pretrained=path)
    published = to_published(model)
    assert all(torch.equal(published[prefix + key], value) for key, value in tensors.items())
    assert ("NVIDIA" in model.licenses.get("backbone", "")) == name.startswith("segformer")
    tensors.popitem()
    torch.save(tensors, path)
    with pytest.raises(SegtailorError, match="1 missing"):
        create_model(name, 5, pretrained=path)
