from __future__ import annotations

import pytest

from segtailor.config import DataConfig
from segtailor.data import VOID, create_dataset
from segtailor.errors import SegtailorError

from .trees import write_image, write_mask

IDS = {7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12, 26: 13, 27: 14,
       28: 15, 31: 16, 32: 17, 33: 18}  # fmt: skip


def write_tree(root, values, ending="labelIds", names=("aachen_000000_000019", "ulm_000001_000019")):
    for name in names:
        city = name.split("_")[0]
        write_image(root / "leftImg8bit" / "train" / city / f"{name}_leftImg8bit.png")
        folder = root / "gtFine" / "train" / city
        write_mask(folder / f"{name}_gtFine_{ending}.png", values=values)
        write_mask(folder / f"{name}_gtFine_instanceIds.png")
        write_image(folder / f"{name}_gtFine_color.png")
    return root


def open_train(root):
    return create_dataset(DataConfig(name="cityscapes", root=root), "train", True)


def test_raw_ids_become_the_nineteen_classes(tmp_path):
    data = open_train(write_tree(tmp_path, range(34)))
    assert (len(data), data.num_classes) == (2, 19)
    assert data[0].name == "aachen/aachen_000000_000019"
    target = data[0].target.flatten()[:34].tolist()
    assert target == [IDS.get(value, VOID) for value in range(34)]


def test_train_ids_are_read_where_there_are_no_raw_ids(tmp_path):
    data = open_train(write_tree(tmp_path, (*range(19), 255), "labelTrainIds"))
    assert data[0].target.flatten()[:20].tolist() == [*range(19), VOID]


def test_an_id_that_cityscapes_does_not_have_is_an_error(tmp_path):
    data = open_train(write_tree(tmp_path, (7, 34)))
    with pytest.raises(SegtailorError, match="holds the value 34"):
        data[0]


def test_an_image_without_mask_is_an_error(tmp_path):
    write_tree(tmp_path, (7,))
    write_image(tmp_path / "leftImg8bit" / "train" / "ulm" / "ulm_000009_000019_leftImg8bit.png")
    with pytest.raises(SegtailorError, match="1 image without a mask: ulm/ulm_000009_000019"):
        open_train(tmp_path)


def test_a_missing_tree_is_an_error(tmp_path):
    with pytest.raises(SegtailorError, match="no such folder"):
        open_train(tmp_path)
