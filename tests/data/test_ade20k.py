from __future__ import annotations

import pytest

from segtailor.data import VOID
from segtailor.errors import SegtailorError

from .known_trees import first_targets, names_of, open_known, save_mask, write_ade20k
from .trees import write_image


def test_zero_is_void_and_the_classes_begin_at_one(tmp_path):
    data = open_known("ade20k", write_ade20k(tmp_path, (0, 1, 2, 150)))
    assert first_targets(data, 5) == [VOID, 0, 1, 149, VOID]
    assert (data.num_classes, len(data.palette), data.expected) == (150, 150, 20210)
    assert names_of(data) == ["ADE_train_00000001", "ADE_train_00000002"]


def test_reduce_zero_label_changes_nothing_as_it_is_so_already(tmp_path):
    data = open_known("ade20k", write_ade20k(tmp_path, (0, 1, 150)), reduce_zero_label=True)
    assert first_targets(data, 3) == [VOID, 0, 149]


def test_classes_are_in_the_order_of_the_benchmark(tmp_path):
    data = open_known("ade20k", write_ade20k(tmp_path))
    named = dict(enumerate(data.classes, 1))
    assert [named[value] for value in (1, 2, 3, 13, 21, 100, 137, 150)] == [
        "wall", "building", "sky", "person", "car", "buffet", "traffic light", "flag",
    ]  # fmt: skip
    colors = dict(zip(data.classes, data.palette, strict=True))
    assert (colors["wall"], colors["sky"], colors["flag"]) == ((120, 120, 120), (6, 230, 230), (92, 0, 255))


@pytest.mark.parametrize("inner", ["", "ADEChallengeData2016"])
def test_val_is_validation_and_the_unpacked_folder_is_found(tmp_path, inner):
    write_ade20k(tmp_path / inner, count=3)
    data = open_known("ade20k", tmp_path, "val", training=False, size=(6, 12))
    assert (len(data), data.expected) == (3, 2000)
    assert data[0].image.shape == (3, 6, 12)
    assert data[0].target.shape == (12, 24)


def test_a_value_above_the_classes_is_an_error(tmp_path):
    data = open_known("ade20k", write_ade20k(tmp_path, (1, 151)))
    with pytest.raises(SegtailorError, match=r"holds the value 151 \(1 pixels\): none of the 150 classes"):
        data[0]


def test_masks_that_were_shifted_already_are_read_with_a_line_of_the_recipe(tmp_path):
    data = open_known("ade20k", write_ade20k(tmp_path, (0, 149, 255)), values=list(range(150)), void=[])
    assert first_targets(data, 3) == [0, 149, VOID]


def test_an_image_without_mask_and_a_mask_without_image_are_errors(tmp_path):
    write_ade20k(tmp_path)
    write_image(tmp_path / "images" / "training" / "new.jpg")
    save_mask(tmp_path / "annotations" / "training" / "old.png", (1,))
    with pytest.raises(SegtailorError, match="1 image without a mask: new; 1 mask without an image: old"):
        open_known("ade20k", tmp_path)


def test_a_missing_tree_and_an_unknown_split_are_errors(tmp_path):
    with pytest.raises(SegtailorError, match=r"no such folder: .*training; data\.root must hold"):
        open_known("ade20k", tmp_path)
    with pytest.raises(SegtailorError, match="unknown split of ade20k 'validation'; nearest: val"):
        open_known("ade20k", tmp_path, "validation")
