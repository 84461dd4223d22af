from __future__ import annotations

import pickle

import pytest

from segtailor.data import VOID
from segtailor.data.check import check_files
from segtailor.errors import SegtailorError

from .known_trees import first_targets, names_of, open_known, save_mask, write_cityscapes
from .trees import write_image

IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
       28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip
NAMES = ("aachen_000000_000019", "ulm_000001_000019")
TRAIN_IDS = (*range(19), VOID)


def open_split(root, split="train", **options):
    return open_known("cityscapes", root, split, **options)


def write_extra(root):
    """Fine masks with train ids, coarse masks with raw ids."""
    write_cityscapes(root, "train", NAMES, TRAIN_IDS, "labelTrainIds")
    write_cityscapes(root, "val", ["lindau_000000_000019"], range(34))
    return write_cityscapes(root, "train_extra", ["erlangen_000000_000000"], range(34), annotations="gtCoarse")


def test_raw_ids_become_the_nineteen_classes(tmp_path):
    data = open_split(write_cityscapes(tmp_path, "train", NAMES, range(34)))
    assert (len(data), data.num_classes, data.expected) == (2, 19, 2975)
    assert data[0].name == "aachen/aachen_000000_000019"
    assert first_targets(data, 34) == [IDS.get(value, VOID) for value in range(34)]


def test_train_ids_are_read_where_there_are_no_raw_ids(tmp_path):
    data = open_split(write_cityscapes(tmp_path, "train", NAMES, TRAIN_IDS, "labelTrainIds"))
    assert first_targets(data, 20) == [*range(19), VOID]


def test_raw_ids_and_train_ids_may_be_mixed_and_raw_ids_come_first(tmp_path):
    write_cityscapes(tmp_path, "train", NAMES[:1], range(34))
    write_cityscapes(tmp_path, "train", NAMES[1:], TRAIN_IDS, "labelTrainIds")
    # the official scripts write train ids beside the raw ids: this one is wrong, so that it shows when it is read
    save_mask(tmp_path / "gtFine" / "train" / "aachen" / f"{NAMES[0]}_gtFine_labelTrainIds.png", (5,))
    data = open_split(tmp_path)
    check_files(data)
    assert first_targets(data, 34) == [IDS.get(value, VOID) for value in range(34)]
    assert first_targets(data, 20, index=1) == [*range(19), VOID]
    assert len(data) == 2


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [("labelIds", 34, "the value 34 "), ("labelTrainIds", 19, "the value 19 as a train id ")],
)
def test_an_id_that_cityscapes_does_not_have_is_an_error(tmp_path, kind, value, message):
    data = open_split(write_cityscapes(tmp_path, "train", NAMES, (7, value), kind))
    with pytest.raises(SegtailorError, match=f"holds {message}") as caught:
        data[0]
    assert "\n" not in str(caught.value)
    with pytest.raises(SegtailorError, match="2 pairs checked: masks hold 1 value"):
        check_files(data)


def test_extra_joins_fine_and_coarse_masks(tmp_path):
    write_extra(tmp_path)
    data = open_split(tmp_path, "train+extra", variant="extra")
    assert names_of(data) == ["aachen/" + NAMES[0], "ulm/" + NAMES[1], "erlangen/erlangen_000000_000000"]
    assert first_targets(data, 20) == [*range(19), VOID]
    assert first_targets(data, 34, index=2) == [IDS.get(value, VOID) for value in range(34)]
    assert data.expected == 22973
    coarse = open_split(tmp_path, "train_extra", variant="extra")
    assert (len(coarse), coarse.expected) == (1, 19998)
    assert len(open_split(tmp_path, "trainval")) == len(open_split(tmp_path, "trainval", variant="extra")) == 3
    assert len(open_split(tmp_path, "val")) == 1


def test_extra_has_to_be_asked_for(tmp_path):
    with pytest.raises(SegtailorError, match=r"unknown split of cityscapes \(fine\).*data\.variant: extra"):
        open_split(write_extra(tmp_path), "train_extra")
    with pytest.raises(SegtailorError, match="unknown variant of cityscapes 'fin'; nearest: fine"):
        open_split(tmp_path, variant="fin")


def test_the_test_images_have_no_masks(tmp_path):
    with pytest.raises(SegtailorError, match="masks of its test images are not published"):
        open_split(write_extra(tmp_path), "test")


def test_an_image_without_mask_is_an_error(tmp_path):
    write_cityscapes(tmp_path, "train", NAMES, (7,))
    write_image(tmp_path / "leftImg8bit" / "train" / "ulm" / "ulm_000009_000019_leftImg8bit.png")
    with pytest.raises(SegtailorError, match="1 image without a mask: ulm/ulm_000009_000019"):
        open_split(tmp_path)


def test_a_missing_tree_is_an_error(tmp_path):
    with pytest.raises(SegtailorError, match="no such folder"):
        open_split(tmp_path)


def test_mask_values_cannot_be_given_as_file_names_say_them(tmp_path):
    with pytest.raises(SegtailorError, match=r"data\.void .*leave them out"):
        open_split(write_cityscapes(tmp_path, "train", NAMES, (7,)), void=[0])


def test_workers_can_take_the_data_set_along(tmp_path):
    data = pickle.loads(pickle.dumps(open_split(write_extra(tmp_path))))
    assert first_targets(data, 20) == [*range(19), VOID]
