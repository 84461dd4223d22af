from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from segtailor.config import DataConfig
from segtailor.data import VOID, create_dataset
from segtailor.errors import SegtailorError

from .trees import write_camvid, write_image, write_mask


def open_split(root, split="train", training=True, **options):
    return create_dataset(DataConfig(name="camvid", root=root, **options), split, training)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_reads_both_kinds_of_frames(tmp_path, suffix):
    data = open_split(write_camvid(tmp_path, suffix=suffix))
    sample = data[0]
    assert (len(data), data.num_classes, len(data.palette)) == (3, 11, 11)
    assert sample.image.shape == (3, 12, 16)
    assert sample.image.dtype == sample.target.dtype == torch.uint8
    assert sample.name == "a"
    assert set(sample.target.unique().tolist()) == {0, 3, 10, VOID}


def test_list_files_choose_and_order_the_frames(tmp_path):
    write_camvid(tmp_path)
    lines = [f"/SegNet/CamVid/train/{name}.png /SegNet/CamVid/trainannot/{name}.png" for name in "cb"]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    data = open_split(tmp_path)
    assert [data[index].name for index in range(len(data))] == ["c", "b"]
    assert data.pairs[0].mask == tmp_path / "trainannot" / "c.png"


def test_a_list_that_names_missing_files_is_an_error(tmp_path):
    write_camvid(tmp_path)
    (tmp_path / "val.txt").write_text("/SegNet/CamVid/val/z.png /SegNet/CamVid/valannot/a.png\n")
    with pytest.raises(SegtailorError, match=r"1 image missing: /SegNet/CamVid/val/z\.png"):
        open_split(tmp_path, "val")


def test_a_list_line_that_is_no_pair_is_an_error(tmp_path):
    write_camvid(tmp_path)
    (tmp_path / "val.txt").write_text("val/a.png\n")
    with pytest.raises(SegtailorError, match="line 1: expected 'image mask'"):
        open_split(tmp_path, "val")


def test_size_resizes_training_masks_but_not_validation_masks(tmp_path):
    write_camvid(tmp_path)
    for training, expected in ((True, (6, 8)), (False, (12, 16))):
        sample = open_split(tmp_path, "val", training, size=(6, 8))[0]
        assert sample.image.shape == (3, 6, 8)
        assert sample.target.shape == expected


def test_missing_folders_are_named(tmp_path):
    with pytest.raises(SegtailorError, match=r"no such folder: .*nowhere"):
        open_split(tmp_path / "nowhere")
    with pytest.raises(SegtailorError, match=r"no such folder: .*test"):
        open_split(write_camvid(tmp_path), "test")


def test_frames_and_masks_without_a_partner_are_counted_and_named(tmp_path):
    write_camvid(tmp_path)
    for name in "vwxyz":
        write_image(tmp_path / "train" / f"{name}.png")
    write_mask(tmp_path / "trainannot" / "lonely.png")
    with pytest.raises(SegtailorError) as caught:
        open_split(tmp_path)
    message = str(caught.value)
    assert "5 images without a mask: v, w, x and 2 more" in message
    assert "1 mask without an image: lonely" in message
    assert "\n" not in message


def test_the_root_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SEGTAILOR_CAMVID", str(write_camvid(tmp_path)))
    assert len(open_split(None)) == 3


def test_real_frames_when_there_are_any():
    root = Path(os.environ.get("SEGTAILOR_CAMVID") or "data/camvid")
    if not (root / "train").is_dir():
        pytest.skip(f"no CamVid in {root}")
    print(f"CamVid from {root}")
    train, val = open_split(root, size=(90, 120)), open_split(root, "val", training=False)
    assert (len(train), len(val)) == (367, 101)
    assert train[7].image.shape == (3, 90, 120)
    assert val[7].target.shape == (360, 480)
    assert set(val[7].target.unique().tolist()) <= {*range(11), VOID}
