from __future__ import annotations

import numpy as np
import pytest
import torch

from segtailor.config import DataConfig
from segtailor.data import VOID, create_dataset, list_datasets
from segtailor.errors import SegtailorError


@pytest.fixture(autouse=True)
def few_toy_images() -> None:
    """Here the data set has its own size."""


def open_toy(split="train", **options):
    return create_dataset(DataConfig(name="toy", **options), split, training=split == "train")


def test_a_scene_is_a_function_of_split_index_and_size():
    first, second, val = open_toy(), open_toy(length=1000), open_toy("val")
    assert (len(first), len(second), len(val)) == (240, 1000, 60)
    assert torch.equal(first[5].image, second[5].image)
    assert torch.equal(first[5].target, second[5].target)
    assert torch.equal(first[5].image, first[5].image)
    assert not torch.equal(first[5].image, val[5].image)
    assert first[5].name == "train-0005"


def test_scenes_are_drawn_at_the_asked_size():
    sample = open_toy(size=(40, 72))[0]
    assert sample.image.shape == (3, 40, 72)
    assert sample.target.shape == (40, 72)
    assert open_toy()[0].image.shape == (3, 96, 128)


def test_changing_a_sample_does_not_change_the_data():
    data = open_toy()
    before = data[0].target.clone()
    data[0].target.zero_()
    assert torch.equal(data[0].target, before)


def test_scenes_have_all_classes_unbalanced_thin_poles_and_void():
    data = open_toy("val")
    counts = sum(np.bincount(data[index].target.numpy().ravel(), minlength=256) for index in range(40))
    shares = counts / counts.sum()
    assert shares[data.num_classes : VOID].sum() == 0
    assert (shares[: data.num_classes] > 0.004).all()
    assert 0.01 < shares[VOID] < 0.12
    assert shares[data.classes.index("pole")] < 0.04 < 0.15 < shares[data.classes.index("road")]


def test_color_alone_does_not_tell_the_classes():
    """The classes' mean colors lie far closer together than colors vary within a class."""
    data = open_toy()
    means: dict[int, list[np.ndarray]] = {}
    for index in range(60):
        image, target = data[index].image.numpy(), data[index].target.numpy()
        for label in np.unique(target[target != VOID]):
            means.setdefault(int(label), []).append(image[:, target == label].mean(1))
    between = np.std([np.mean(values, 0) for values in means.values()], axis=0).mean()
    within = np.mean([np.std(values, 0).mean() for values in means.values()])
    assert between < 0.4 * within


def test_unknown_names_list_the_nearest():
    with pytest.raises(SegtailorError, match="unknown split of toy 'test'; nearest"):
        open_toy("test")
    with pytest.raises(SegtailorError, match="unknown data set 'camvit'; nearest: camvid"):
        create_dataset(DataConfig(name="camvit"), "train", True)
    assert {"camvid", "cityscapes", "folder", "toy"} < set(list_datasets())
    assert list_datasets() == sorted(list_datasets())
