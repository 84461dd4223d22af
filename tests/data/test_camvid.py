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


def write_sequences(root, counts):
    """Write training frames whose names are those of recorded sequences, numbered 30 frames apart."""
    for sequence, count in counts.items():
        for number in range(count):
            name = f"{sequence}{(number + 3) * 30}"
            write_image(root / "train" / f"{name}.png")
            write_mask(root / "trainannot" / f"{name}.png", values=(0, 11))
    return root


def test_dev_is_the_last_fifth_of_each_sequence_by_time_and_fit_is_the_rest(tmp_path):
    # by name, f990 comes behind f1000: time is the number, not the name
    write_sequences(tmp_path, {"0001TP_": 4, "0006R0_f": 36, "0016E5_": 11})
    fit, dev, train = ([pair.name for pair in open_split(tmp_path, split).pairs] for split in ("fit", "dev", "train"))
    assert set(dev) == {*(f"0006R0_f{(number + 3) * 30}" for number in range(29, 36)), "0016E5_360", "0016E5_390"}
    assert sorted(fit + dev) == sorted(train)
    assert not set(fit) & set(dev)
    assert [name for name in train if name in fit] == fit


def test_the_cut_follows_the_list_of_training_frames(tmp_path):
    write_sequences(tmp_path, {"0001TP_": 10})
    names = [f"0001TP_{number}" for number in (90, 120, 150, 180, 210)]
    (tmp_path / "train.txt").write_text("".join(f"train/{name}.png trainannot/{name}.png\n" for name in names))
    assert [pair.name for pair in open_split(tmp_path, "dev").pairs] == ["0001TP_210"]
    assert [pair.name for pair in open_split(tmp_path, "fit").pairs] == names[:4]


def test_frames_of_no_sequence_cannot_be_cut(tmp_path):
    with pytest.raises(SegtailorError, match="cut from train by time, but no recorded sequence") as caught:
        open_split(write_camvid(tmp_path), "dev")
    assert "\n" not in str(caught.value)


def test_trainval_is_both_unless_the_tree_says_otherwise(tmp_path):
    write_camvid(tmp_path)
    for name in "de":
        write_image(tmp_path / "val" / f"{name}.png")
        write_mask(tmp_path / "valannot" / f"{name}.png", values=(0,))
    data = open_split(tmp_path, "trainval")
    assert ([pair.name for pair in data.pairs], data.expected) == (["a", "b", "c", "a", "b", "c", "d", "e"], 468)
    (tmp_path / "trainval.txt").write_text("val/d.png valannot/d.png\n")
    assert [pair.name for pair in open_split(tmp_path, "trainval").pairs] == ["d"]


def test_test_and_splits_of_a_users_own_are_read_where_they_lie(tmp_path):
    write_camvid(tmp_path, splits=("train", "val", "test", "night"))
    assert (len(open_split(tmp_path, "test")), open_split(tmp_path, "test").expected) == (3, 233)
    assert (len(open_split(tmp_path, "night")), open_split(tmp_path, "night").expected) == (3, None)
    with pytest.raises(SegtailorError, match=r"unknown split of camvid 'vall'; nearest: val.*folder or a list"):
        open_split(tmp_path, "vall")


def test_a_limit_is_what_is_expected_then(tmp_path):
    write_camvid(tmp_path)
    assert [open_split(tmp_path, limit=limit).expected for limit in (None, 2)] == [367, 2]


def test_masks_one_too_high_are_read_with_a_line_of_the_recipe(tmp_path):
    write_camvid(tmp_path, values=(1, 11, 12))
    data = open_split(tmp_path, values=list(range(1, 12)), void=[12])
    assert data[0].target.flatten()[:3].tolist() == [0, 10, VOID]


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
    for split in ("train", "val", "trainval", "fit", "dev"):
        data = open_split(root, split)
        assert len(data) == data.expected
