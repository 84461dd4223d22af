from __future__ import annotations

import pytest

from segtailor.data import VOID
from segtailor.data.check import check_files
from segtailor.errors import SegtailorError

from .known_trees import (
    first_targets,
    names_of,
    open_known,
    save_mask,
    save_mat,
    write_context_masks,
    write_list,
    write_voc2010,
)

DETAIL, AUTHORS, MATLAB = "SegmentationClassContext", "59_context_labels", "trainval"


def open_split(root, split="train", **options):
    return open_known("pascal-context", root, split, **options)


def test_background_is_void_and_the_59_classes_go_by_the_alphabet(tmp_path):
    data = open_split(write_context_masks(write_voc2010(tmp_path), DETAIL, range(60)))
    assert first_targets(data, 60) == [VOID, *range(59)]
    assert (data.num_classes, data.expected, len(set(data.palette))) == (59, 4998, 59)
    assert list(data.classes) == sorted(data.classes)
    assert names_of(data) == ["2008_000002", "2008_000003"]


def test_background_may_be_a_class(tmp_path):
    write_context_masks(write_voc2010(tmp_path), DETAIL, (*range(60), 255))
    data = open_split(tmp_path, variant="with-background")
    assert first_targets(data, 61) == [*range(60), VOID]
    assert (data.num_classes, data.classes[:2], data.palette[0]) == (60, ("background", "aeroplane"), (0, 0, 0))


def test_the_authors_masks_have_an_order_of_their_own(tmp_path):
    # 59_labels.txt begins with the classes of VOC, in VOC's order
    data = open_split(write_context_masks(write_voc2010(tmp_path), AUTHORS, (0, 1, 2, 15, 21, 59)))
    names = ["aeroplane", "bicycle", "person", "bag", "wood"]
    assert first_targets(data, 6) == [VOID, *(data.classes.index(name) for name in names)]


def test_matlab_files_hold_459_labels_of_which_59_are_classes(tmp_path):
    # accordion, aeroplane, air conditioner, bag, person, table, wood, wool
    write_context_masks(write_voc2010(tmp_path), MATLAB, (1, 2, 3, 9, 284, 397, 458, 459))
    data = open_split(tmp_path)
    check_files(data)
    index = data.classes.index
    assert first_targets(data, 8) == [
        VOID, index("aeroplane"), VOID, index("bag"), index("person"), index("table"), index("wood"), VOID,
    ]  # fmt: skip
    whole = open_split(tmp_path, variant="with-background")
    assert first_targets(whole, 3) == [0, 1, 0]


@pytest.mark.parametrize("inner", ["VOCdevkit/VOC2010", "VOC2010"])
@pytest.mark.parametrize("lists", ["ImageSets/SegmentationContext", "ImageSets/Main"])
def test_lists_of_voc_and_the_unpacked_folder_are_found(tmp_path, inner, lists):
    write_context_masks(write_voc2010(tmp_path / inner, lists), DETAIL, (0, 1))
    assert names_of(open_split(tmp_path, "val")) == ["2008_000015"]
    both = open_split(tmp_path, "trainval")
    assert (len(both), both.expected) == (3, 10103)
    write_list(tmp_path / inner / lists / "trainval.txt", ["2008_000002"])
    assert len(open_split(tmp_path, "trainval")) == 1


def test_masks_with_more_than_their_labels_are_unreadable(tmp_path):
    write_context_masks(write_voc2010(tmp_path), AUTHORS, (0, 1))
    save_mask(tmp_path / AUTHORS / "2008_000002.png", (0, 60))
    with pytest.raises(SegtailorError, match=r"1 file cannot be read: .*2008_000002\.png \(it holds more than the 59"):
        check_files(open_split(tmp_path))


def test_matlab_files_of_another_kind_are_unreadable(tmp_path):
    write_context_masks(write_voc2010(tmp_path), MATLAB, (1,))
    save_mat(tmp_path / MATLAB / "2008_000002.mat", (460,), "LabelMap")
    save_mat(tmp_path / MATLAB / "2008_000003.mat", (1,), "GTcls")
    with pytest.raises(SegtailorError, match=r"2 files cannot be read: .*more than the 459 .*holds no 'LabelMap'"):
        check_files(open_split(tmp_path))


def test_a_value_above_the_classes_is_an_error(tmp_path):
    data = open_split(write_context_masks(write_voc2010(tmp_path), DETAIL, (0, 60)))
    with pytest.raises(SegtailorError, match="holds the value 60"):
        data[0]


def test_what_is_not_there_is_an_error(tmp_path):
    write_voc2010(tmp_path)
    with pytest.raises(SegtailorError, match=f"no such folder: .*{DETAIL} or .*{AUTHORS} or .*{MATLAB}"):
        open_split(tmp_path)
    save_mask(tmp_path / DETAIL / "2008_000002.png", (1,))
    with pytest.raises(SegtailorError, match="of 2 listed names, 1 mask missing: 2008_000003"):
        open_split(tmp_path)
    with pytest.raises(SegtailorError, match="unknown variant of pascal-context '60'; nearest: "):
        open_split(tmp_path, variant="60")
    with pytest.raises(SegtailorError, match="unknown split of pascal-context"):
        open_split(tmp_path, "test")
