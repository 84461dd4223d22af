from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from segtailor.errors import SegtailorError
from segtailor.models import create_model, load_model

from .hf_tiny import processor, save


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
    # this processor never normalises, whatever its file says
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
        ({"size": {"shortest_edge": 128}, "do_center_crop": True, "crop_size": 96}, "crops the centre out of"),
        ({"do_center_crop": True, "crop_size": {"height": 80, "width": 80}}, "crops the centre out of"),
        ({"do_resize": False, "do_center_crop": True, "crop_size": 96}, "crops the centre out of"),
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
