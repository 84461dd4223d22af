from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.data.paired import Subset, evenly
from segtailor.errors import SegtailorError

from .trees import write_camvid, write_folder

NAMES = tuple(f"frame{index}" for index in range(8))


def test_numbers_are_evenly_spaced():
    assert evenly(8, 4) == [0, 2, 4, 6]
    assert evenly(8, 8) == list(range(8))
    for count in range(1, 100):
        gaps = np.diff([*evenly(100, count), 100])
        assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(("name", "write"), [("camvid", write_camvid), ("folder", write_folder)])
def test_files_keep_their_pairs(tmp_path, name, write):
    config = DataConfig(name=name, root=write(tmp_path, NAMES), limit=4)
    data = create_dataset(config, "train", True)
    assert [pair.name for pair in data.pairs] == [NAMES[index] for index in (0, 2, 4, 6)]
    assert [data[index].name for index in range(len(data))] == [pair.name for pair in data.pairs]
    # only training is limited: neither the scored split, nor the training split when it is scored
    assert len(create_dataset(config, "val", False)) == 8
    assert len(create_dataset(config, "train", False)) == 8


def test_samples_that_are_no_files_are_chosen_alike():
    whole = create_dataset(DataConfig(name="toy"), "train", True)
    data = create_dataset(DataConfig(name="toy", limit=60), "train", True)
    assert isinstance(data, Subset)
    assert (len(data), data.classes, data.license) == (60, whole.classes, whole.license)
    assert torch.equal(data[7].image, whole[28].image)
    assert len(pickle.loads(pickle.dumps(data))) == 60


def test_as_many_as_there_are_is_all(tmp_path):
    config = DataConfig(name="camvid", root=write_camvid(tmp_path), limit=3)
    assert len(create_dataset(config, "train", True)) == 3


@pytest.mark.parametrize("name", ["toy", "camvid"])
def test_more_than_there_are_is_an_error(tmp_path, name):
    config = DataConfig(name=name, root=write_camvid(tmp_path), limit=241)
    with pytest.raises(SegtailorError, match=rf"limit asks for 241 images, but the split train of {name} has (240|3);"):
        create_dataset(config, "train", True)
