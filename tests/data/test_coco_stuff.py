from __future__ import annotations

import pytest

from segtailor.data import VOID
from segtailor.data.check import check_files
from segtailor.errors import SegtailorError

from .known_trees import first_targets, names_of, open_known, save_mask, write_coco_10k, write_coco_164k
from .trees import truncate

GAPS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
LABELS = [value for value in range(182) if value not in GAPS]


def open_split(root, split="train", **options):
    return open_known("coco-stuff", root, split, **options)


@pytest.mark.parametrize("folder", ["annotations", "stuffthingmaps", "stuffthingmaps_trainval2017"])
def test_the_171_classes_are_numbered_without_gaps(tmp_path, folder):
    data = open_split(write_coco_164k(tmp_path, [*LABELS, 255], folder))
    assert first_targets(data, 172) == [*range(171), VOID]
    assert (data.num_classes, len(set(data.palette)), data.expected) == (171, 171, 118287)
    named = dict(enumerate(data.classes))
    assert [named[index] for index in (0, 10, 11, 79, 80, 170)] == [
        "person", "fire hydrant", "stop sign", "toothbrush", "banner", "wood",
    ]  # fmt: skip


def test_a_number_of_the_gaps_is_an_error_but_a_class_of_the_raw_variant(tmp_path):
    write_coco_164k(tmp_path, (0, *GAPS, 181, 255))
    with pytest.raises(SegtailorError, match=r"holds the values 11 .* 25 .* 28 .* and 8 more: none of the 171 classes"):
        open_split(tmp_path)[0]
    raw = open_split(tmp_path, variant="164k-raw")
    assert first_targets(raw, 14) == [0, *GAPS, 181, VOID]
    assert raw.num_classes == 182
    assert [raw.classes[gap] for gap in GAPS] == [
        "street sign", "hat", "shoe", "eye glasses", "plate", "mirror", "window", "desk", "door", "blender",
        "hair brush",
    ]  # fmt: skip


def test_val_and_files_that_other_tools_wrote_beside_the_masks(tmp_path):
    write_coco_164k(tmp_path, (0, 181))
    for name in ("000000000139", "000000000285"):
        for kind in ("labelTrainIds", "instanceTrainIds"):
            save_mask(tmp_path / "annotations" / "val2017" / f"{name}_{kind}.png", (170,))
    data = open_split(tmp_path, "val")
    assert (names_of(data), data.expected) == (["000000000139", "000000000285"], 5000)
    assert first_targets(data, 2) == [0, 170]


def test_10k_reads_its_lists_and_its_test_split_is_val(tmp_path):
    write_coco_10k(tmp_path, [*LABELS, 255])
    train, val = (open_split(tmp_path, split, variant="10k") for split in ("train", "val"))
    assert names_of(train) == ["COCO_train2014_000000000077", "COCO_train2014_000000000081"]
    assert names_of(val) == ["COCO_train2014_000000000092"]
    assert (train.expected, val.expected) == (9000, 1000)
    assert first_targets(train, 172) == [*range(171), VOID]
    assert first_targets(open_split(tmp_path, variant="10k-raw"), 13) == [*range(11), 12, 13]


def test_10k_reads_matlab_files_whose_labels_are_one_higher(tmp_path):
    write_coco_10k(tmp_path, [0, *(label + 1 for label in LABELS)], ".mat")
    data = open_split(tmp_path, variant="10k")
    check_files(data)
    assert first_targets(data, 172) == [VOID, *range(171)]
    raw = open_split(tmp_path, variant="10k-raw")
    assert first_targets(raw, 4) == [VOID, 0, 1, 2]
    assert first_targets(raw, 172)[-1] == 181


def test_pngs_of_the_matlab_numbers_are_read_with_reduce_zero_label(tmp_path):
    write_coco_10k(tmp_path, (1, 0, 182, 255, 13))
    with pytest.raises(SegtailorError, match=r"holds the value 182 .*data\.reduce_zero_label"):
        open_split(tmp_path, variant="10k")[0]
    reduced = open_split(tmp_path, variant="10k", reduce_zero_label=True)
    assert first_targets(reduced, 5) == [0, VOID, 170, VOID, 11]


def test_damaged_matlab_files_are_all_named(tmp_path):
    write_coco_10k(tmp_path, (1,), ".mat")
    masks = sorted((tmp_path / "annotations").iterdir())
    truncate(masks[0])
    masks[1].write_bytes(b"")
    with pytest.raises(SegtailorError, match=r"2 files cannot be read: .*77\.mat .*81\.mat"):
        check_files(open_split(tmp_path, variant="10k"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "16k"}, "unknown variant of coco-stuff '16k'; nearest: 1"),
        ({"split": "train2017"}, r"unknown split of coco-stuff \(164k\) 'train2017'; nearest: train"),
        ({"variant": "10k"}, "no such folder: .*imageLists.*COCO-Stuff 10k"),
        ({"size": (4, 8), "variant": "164k"}, "no such folder: .*images/train2017.*; data.root must hold"),
    ],
)
def test_what_is_not_there_is_an_error(tmp_path, options, message):
    with pytest.raises(SegtailorError, match=message):
        open_split(tmp_path, **options)
