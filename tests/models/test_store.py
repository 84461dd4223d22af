from __future__ import annotations

import errno
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from segtailor.errors import SegtailorError
from segtailor.files import write_atomically
from segtailor.models import Segmenter, create_model, load_model, read_card, save_model
from segtailor.models.store import open_card

IMAGES = torch.randint(0, 256, (1, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return create_model("fcn-lcnet_050", 3, head_width=16).eval()


def error_of(uri: str | Path, num_classes: int | None = None) -> str:
    with pytest.raises(SegtailorError) as caught:
        load_model(uri, num_classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_saved_model_comes_back_with_its_card(model: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "new" / "model.safetensors"
    save_model(model, path, {"classes": ["a", "b", "c"], "metrics": {"miou": 0.5}, "licenses": {"data": "CC-0"}})
    again = load_model(path, num_classes=3)
    with torch.no_grad():
        assert torch.equal(again(IMAGES).logits, model(IMAGES).logits)
    card = read_card(path)
    assert card["model"] == again.spec() == model.spec()
    assert card["classes"] == ["a", "b", "c"]
    assert card["metrics"] == {"miou": 0.5}
    assert again.licenses == card["licenses"] == {"data": "CC-0"}
    assert [item.name for item in path.parent.iterdir()] == ["model.safetensors"]


def test_changed_preprocessing_is_kept(tmp_path: Path) -> None:
    changed = create_model(
        "fcn-lcnet_050", 3, preprocess={"mean": (1.0, 2.0, 3.0), "scale": 1.0, "channel_order": "bgr"}
    )
    save_model(changed, tmp_path / "a.safetensors")
    assert load_model(tmp_path / "a.safetensors").preprocess.spec() == changed.preprocess.spec()


def test_a_run_folder_stands_for_its_student_then_for_its_model(model: Segmenter, tmp_path: Path) -> None:
    assert "finished run" in error_of(tmp_path)
    save_model(model, tmp_path / "model.safetensors", {"which": "model"})
    assert load_model(tmp_path).name == model.name
    save_model(model, tmp_path / "student.safetensors", {"which": "student"})
    assert read_card(tmp_path)["which"] == "student"


def test_another_class_count_names_both(model: Segmenter, tmp_path: Path) -> None:
    save_model(model, tmp_path / "a.safetensors")
    message = error_of(tmp_path / "a.safetensors", 11)
    assert "3 classes" in message
    assert "11" in message


def test_wrong_files_give_one_line(model: Segmenter, tmp_path: Path) -> None:
    assert "no such file" in error_of(tmp_path / "none")
    (tmp_path / "a.pth").write_bytes(b"")
    assert "published:" in error_of(tmp_path / "a.pth")
    (tmp_path / "b.safetensors").write_bytes(b"rubbish")
    assert "damaged" in error_of(tmp_path / "b.safetensors")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "c.safetensors")
    assert "no card" in error_of(tmp_path / "c.safetensors")
    path = tmp_path / "d.safetensors"
    save_model(model, path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "damaged" in error_of(path)


def save_raw(path: Path, tensors: dict[str, torch.Tensor], card: object) -> None:
    safetensors.torch.save_file(tensors, path, metadata={"card": json.dumps(card)})


def test_tensors_and_cards_that_do_not_fit(model: Segmenter, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = model.state_dict()
    first = next(iter(tensors))
    save_raw(path, {name: value for name, value in tensors.items() if name != first}, {"model": model.spec()})
    assert f"1 missing ({first})" in error_of(path)
    save_raw(path, tensors, {"model": {**model.spec(), "colour": "red"}})
    assert "colour" in error_of(path)
    save_raw(path, tensors, {"model": {**model.spec(), "name": "fcn-lcnet_055"}})
    assert "unknown model" in error_of(path)
    for card in ({}, [], {"model": "fcn"}):
        save_raw(path, tensors, card)
        assert "not written by segtailor" in error_of(path)


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_previous_file_whole(
    step: str, model: Segmenter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    save_model(model, path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os if step == "fsync" else Path, step, full)
    with pytest.raises(SegtailorError, match="No space left on device; the previous file is whole"):
        save_model(create_model("fcn-lcnet_050", 5), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_the_system_cuts_short_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(SegtailorError, match="cannot write"):
            write_atomically(path, lambda file: file.write(bytes(100_000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_no_temporary_file(tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.bin", stop)
    assert list(tmp_path.iterdir()) == []


def test_saved_files_have_ordinary_permissions(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.bin", lambda file: file.write(b"new"))
    (tmp_path / "b.bin").write_bytes(b"new")
    assert (tmp_path / "a.bin").stat().st_mode == (tmp_path / "b.bin").stat().st_mode


def test_importing_models_does_not_import_timm() -> None:
    code = "import sys, segtailor.models; sys.exit('timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_card_of_a_published_repository_is_found_by_its_uri(model: Segmenter, tmp_path: Path) -> None:
    save_model(model, tmp_path / "model.safetensors", {"recipe": {"data": {"size": [32, 48]}}})
    (tmp_path / "config.json").write_text(json.dumps({"segtailor": {}}))
    assert open_card(f"hf:{tmp_path}")["recipe"]["data"]["size"] == [32, 48]
    assert open_card(tmp_path) == open_card(tmp_path / "model.safetensors") == open_card(f"hf:{tmp_path}")
    assert open_card(model) == open_card("deeplabv3-resnet18") == open_card("smp:Unet/resnet18") == {}


def test_cards_of_earlier_versions_are_read(model: Segmenter, tmp_path: Path) -> None:
    save_model(model, tmp_path / "new.safetensors", {"data_license": "CC-0", "licenses": {"backbone": "MIT"}})
    with safetensors.safe_open(tmp_path / "new.safetensors", framework="pt") as file:
        text = file.metadata()["card"]
    assert "licence" not in text
    earlier = text.replace("license", "licence")
    tensors = safetensors.torch.load_file(tmp_path / "new.safetensors")
    safetensors.torch.save_file(tensors, tmp_path / "old.safetensors", metadata={"card": earlier})
    assert read_card(tmp_path / "old.safetensors") == read_card(tmp_path / "new.safetensors")
    assert load_model(tmp_path / "old.safetensors").licenses == {"backbone": "MIT"}
