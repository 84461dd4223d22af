from __future__ import annotations

import pytest

from segtailor.data import VOID
from segtailor.data.voc import VOC
from segtailor.errors import SegtailorError

from .known_trees import first_targets, names_of, open_known, photo, save_mask, write_list, write_sbd, write_voc

SBD = ("2008_000002", "2008_000005")


def open_split(root, split="train", **options):
    return open_known("voc", root, split, **options)


def test_palette_masks_are_read_as_indices_and_the_border_is_void(tmp_path):
    data = open_split(write_voc(tmp_path))
    assert (names_of(data), data.num_classes, data.expected) == (["2007_000032"], 21, 1464)
    assert first_targets(data, 5) == [0, 1, 20, VOID, 0]
    assert data[0].image.shape == (3, 12, 24)


def test_the_colors_are_those_of_voc():
    described = VOC.variants[0].described
    colors = dict(zip(described.classes, described.colors(), strict=True))
    assert colors["background"] == (0, 0, 0)
    assert colors["aeroplane"] == (128, 0, 0)
    assert colors["cat"] == (64, 0, 0)
    assert colors["person"] == (192, 128, 128)
    assert colors["tvmonitor"] == (0, 64, 128)


def test_val_and_trainval_come_from_their_lists(tmp_path):
    write_voc(tmp_path)
    assert names_of(open_split(tmp_path, "val", training=False)) == ["2007_000033"]
    assert names_of(open_split(tmp_path, "trainval")) == ["2007_000032", "2007_000033"]
    (tmp_path / "ImageSets" / "Segmentation" / "trainval.txt").unlink()
    assert names_of(open_split(tmp_path, "trainval")) == ["2007_000032", "2007_000033"]


@pytest.mark.parametrize("name", ["trainaug.txt", "train_aug.txt"])
def test_train_aug_reads_grey_masks_by_its_list(tmp_path, name):
    write_sbd(write_voc(tmp_path), ("2007_000032", *SBD))
    write_list(tmp_path / "ImageSets" / "Segmentation" / name, ("2008_000005", "2007_000032"))
    data = open_split(tmp_path, "train_aug")
    assert (names_of(data), data.expected) == (["2008_000005", "2007_000032"], 10582)
    assert first_targets(data, 4) == [0, 2, VOID, 0]
    assert first_targets(data, 4, index=1) == [0, 2, VOID, 0]


def test_train_aug_without_a_list_is_every_mask_but_those_of_val(tmp_path):
    write_sbd(write_voc(tmp_path), ("2007_000032", "2007_000033", *SBD))
    assert names_of(open_split(tmp_path, "train_aug")) == ["2007_000032", *SBD]


def test_train_aug_takes_vocs_own_mask_where_sbd_has_none(tmp_path):
    write_sbd(write_voc(tmp_path), SBD)
    write_list(tmp_path / "ImageSets" / "Segmentation" / "aug.txt", SBD)
    data = open_split(tmp_path, "train_aug")
    assert names_of(data) == ["2007_000032", *SBD]
    assert first_targets(data, 4) == [0, 1, 20, VOID]
    assert first_targets(data, 4, index=1) == [0, 2, VOID, 0]


@pytest.mark.parametrize("inner", ["VOCdevkit/VOC2012", "VOC2012"])
def test_the_folder_that_was_unpacked_is_found_in_the_root(tmp_path, inner):
    write_voc(tmp_path / inner)
    assert len(open_split(tmp_path)) == 1


def test_train_aug_without_the_masks_of_sbd_says_what_is_needed(tmp_path):
    with pytest.raises(SegtailorError, match=r"no such folder: .*SegmentationClassAug; train_aug needs .*data get voc"):
        open_split(write_voc(tmp_path), "train_aug")
    (tmp_path / "SegmentationClassAug").mkdir()
    with pytest.raises(SegtailorError, match=r"no masks in .*SegmentationClassAug"):
        open_split(tmp_path, "train_aug")


def test_listed_images_and_masks_that_are_missing_are_counted_and_named(tmp_path):
    write_voc(tmp_path)
    names = ("2007_000032", *(f"2009_00000{index}" for index in range(4)))
    write_list(tmp_path / "ImageSets" / "Segmentation" / "train.txt", names)
    for name in names[1:3]:
        photo(tmp_path / "JPEGImages" / f"{name}.jpg")
    save_mask(tmp_path / "SegmentationClass" / "2009_000003.png", (0,))
    with pytest.raises(SegtailorError) as caught:
        open_split(tmp_path)
    message = str(caught.value)
    assert "of 5 listed names, 2 images missing: 2009_000002, 2009_000003" in message
    assert "3 masks missing: 2009_000000, 2009_000001, 2009_000002" in message
    assert "\n" not in message


def test_a_list_that_is_missing_or_empty_is_an_error(tmp_path):
    write_voc(tmp_path)
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").unlink()
    with pytest.raises(SegtailorError, match=r"no such file: .*val\.txt \(the list of voc val\)"):
        open_split(tmp_path, "val")
    write_list(tmp_path / "ImageSets" / "Segmentation" / "val.txt", ())
    with pytest.raises(SegtailorError, match="names no images"):
        open_split(tmp_path, "val")


def test_other_values_are_errors_unless_the_recipe_explains_them(tmp_path):
    write_voc(tmp_path, values=(0, 21, 22, 22))
    with pytest.raises(SegtailorError, match=r"holds the values 22 .*, 21 .*set data\.values, data\.void"):
        open_split(tmp_path)[0]
    assert first_targets(open_split(tmp_path, void=[21, 22]), 4) == [0, VOID, VOID, VOID]
    shifted = open_split(write_voc(tmp_path, values=(1, 21, 0)), reduce_zero_label=True)
    assert first_targets(shifted, 3) == [0, 20, VOID]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "trainaug"}, "unknown split of voc 'trainaug'; nearest: train_aug"),
        ({"variant": "2012"}, "voc has no variants; leave data.variant out"),
        ({"classes": "c.yaml", "masks": "color"}, "voc does not read data.classes, data.masks; read by .*folder"),
    ],
)
def test_what_voc_does_not_have_is_an_error(tmp_path, options, message):
    with pytest.raises(SegtailorError, match=message):
        open_split(write_voc(tmp_path), **options)


def test_a_root_without_voc_is_an_error(tmp_path):
    with pytest.raises(SegtailorError, match=r"no such folder: .*JPEGImages; data\.root must hold VOC2012's"):
        open_split(tmp_path)
