"""The four-plane network: codes, planes, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from segtailor.errors import SegtailorError
from segtailor.models import create_model, load_model, save_model
from segtailor.models.label_assisted import (
    LabelAssisted,
    LabelAssistedTeacher,
    add_label_plane,
    label_plane,
    load_assisted,
    plane_scale,
    save_assisted,
)
from segtailor.models.segmenter import Segmenter

NAME = "deeplabv3plus-lcnet_035"


def network(name: str = NAME) -> Segmenter:
    torch.manual_seed(0)
    return add_label_plane(create_model(name, 4), 0.01)


@pytest.mark.parametrize("name", [NAME, "deeplabv3-resnet18", "segformer-mit_b0", "pspnet-mobilenetv2"])
def test_the_image_filters_stay_and_a_plane_is_added(name: str) -> None:
    torch.manual_seed(0)
    plain = create_model(name, 4).eval()
    wide = add_label_plane(plain, 0.01).eval()
    first = next(part for part in wide.backbone.modules() if isinstance(part, torch.nn.Conv2d))
    assert first.weight[:, 3].std().item() == pytest.approx(0.1, rel=0.2)
    assert all(part.p == 0.01 for part in wide.modules() if isinstance(part, torch.nn.Dropout | torch.nn.Dropout2d))
    assert plain.planes == 3
    with torch.no_grad():
        first.weight[:, 3] = 0
        images = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
        given = LabelAssisted(wide, "random", 0.03)(images, torch.zeros(1, 64, 64, dtype=torch.uint8))
        torch.testing.assert_close(given.logits, plain(images).logits, rtol=1e-4, atol=1e-5)


def test_fixed_codes_are_the_published_ones() -> None:
    target = torch.tensor([[[0, 11, 20, 255]]], dtype=torch.uint8)
    plane = label_plane(target, 21, "fixed", noise=0.0)
    torch.testing.assert_close(plane.flatten(), torch.tensor([-1.1, 0.0, 0.9, 1.0]))
    many = label_plane(torch.arange(150, dtype=torch.uint8).view(1, 10, 15), 150, "fixed", noise=0.0)
    assert many.abs().max() <= 1.2
    assert many.flatten().diff().min() > 0


def test_random_codes_are_one_number_for_each_label_of_an_image() -> None:
    torch.manual_seed(0)
    target = torch.tensor([[[0, 0, 1, 255]], [[0, 0, 1, 255]]], dtype=torch.uint8)
    plane = label_plane(target, 4, "random", noise=0.0)[:, 0, 0]
    assert (plane[:, 0] == plane[:, 1]).all()
    assert len(set(plane.flatten().tolist())) == 6
    noisy = label_plane(torch.zeros(1, 100, 100, dtype=torch.uint8), 4, "random", noise=0.03)
    assert noisy.std().item() == pytest.approx(0.03, rel=0.05)


def test_the_plane_is_as_strong_as_published_whatever_the_preprocessing() -> None:
    assert plane_scale(create_model("deeplabv3-resnet18", 4).preprocess) == 100
    assert plane_scale(create_model(NAME, 4).preprocess) == pytest.approx(100 / 255 / 0.226, rel=1e-3)


def test_the_teacher_needs_labels_and_takes_them_at_any_size() -> None:
    teacher = LabelAssistedTeacher(network(), "fixed", 0.0)
    images = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8)
    target = torch.randint(0, 4, (1, 4, 6), dtype=torch.uint8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    small = teacher(images, target).logits
    large = teacher(images, target.repeat_interleave(2, 1).repeat_interleave(2, 2)).logits
    torch.testing.assert_close(small, large)
    assert not torch.equal(small, teacher(images, (target + 1) % 4).logits)
    with pytest.raises(SegtailorError, match="needs labels beside the images"):
        teacher(images)


def test_files(tmp_path: Path) -> None:
    model, path = network(), tmp_path / "lad.safetensors"
    save_assisted(model, path, {"seconds": 2.0})
    other = add_label_plane(create_model(NAME, 4))
    load_assisted(other, path)
    torch.testing.assert_close(dict(other.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    with pytest.raises(SegtailorError, match="label-assisted teacher, which needs labels; method lad reads it"):
        load_model(path)
    with pytest.raises(SegtailorError, match=f"holds a label-assisted {NAME}, not deeplabv3-resnet18"):
        load_assisted(network("deeplabv3-resnet18"), path)
    save_model(create_model(NAME, 4), tmp_path / "plain.safetensors")
    with pytest.raises(SegtailorError, match="holds no label-assisted network"):
        load_assisted(model, tmp_path / "plain.safetensors")
    with pytest.raises(SegtailorError, match="does not fit label-assisted"):
        load_assisted(add_label_plane(create_model(NAME, 5)), path)
