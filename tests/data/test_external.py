"""Data sets of other packages: in memory, by `module:` and by entry point."""

from __future__ import annotations

import pickle
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

from segtailor import plugins
from segtailor.config import DataConfig
from segtailor.data import Sample, SegmentationDataset, TorchDataset, create_dataset, list_datasets
from segtailor.data.check import check_files
from segtailor.data.check.scan import count_classes, sample_stats
from segtailor.data.external import GROUP
from segtailor.data.loader import train_batches
from segtailor.data.paired import limit_dataset
from segtailor.errors import SegtailorError

RGB = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
MASK = np.array([[0, 1, 1, 0, 255, 0]] * 4, np.uint8)
CLASSES = ["road", "car"]


class Pairs(Dataset):
    """Four pairs, in memory."""

    classes = CLASSES

    def __init__(self, image=RGB, mask=MASK, count=4) -> None:
        self.image, self.mask, self.count = image, mask, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index):
        return self.image, self.mask


IMAGES = {
    "pil": Image.fromarray(RGB),
    "array": RGB,
    "tensor": torch.from_numpy(RGB).permute(2, 0, 1),
    "floats": torch.from_numpy(RGB).permute(2, 0, 1) / 255,
    "float array": RGB.astype(np.float32) / 255,
    "rgba": Image.fromarray(np.dstack([RGB, np.full((4, 6), 9, np.uint8)])),
    "flipped": RGB[::-1].copy()[::-1],
}
MASKS = {
    "pil": Image.fromarray(MASK),
    "array": MASK,
    "longs": torch.from_numpy(MASK).long(),
    "one channel": torch.from_numpy(MASK)[None],
    "last channel": MASK.astype(np.int32)[..., None],
}


@pytest.mark.parametrize("image", IMAGES)
@pytest.mark.parametrize("mask", MASKS)
def test_every_form_of_image_and_mask_is_the_same_sample(image, mask):
    data = TorchDataset(Pairs(IMAGES[image], MASKS[mask]))
    sample = data[1]
    assert sample.image.dtype == sample.target.dtype == torch.uint8
    assert torch.equal(sample.image, torch.from_numpy(RGB).permute(2, 0, 1))
    assert torch.equal(sample.target, torch.from_numpy(MASK))
    assert sample.name == "train-000001"
    assert (len(data), data.classes, data.name) == (4, ("road", "car"), "custom")


def test_grey_images_become_rgb_and_tensor_subclasses_plain():
    from torchvision.tv_tensors import Image as TVImage
    from torchvision.tv_tensors import Mask as TVMask

    grey = TVImage(torch.from_numpy(RGB[..., 0]))
    sample = TorchDataset(Pairs(grey, TVMask(torch.from_numpy(MASK))))[0]
    assert type(sample.image) is type(sample.target) is torch.Tensor
    assert torch.equal(sample.image, torch.from_numpy(RGB[..., 0]).expand(3, -1, -1))


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        (RGB.transpose(2, 0, 1), MASK, "image 0 of custom train has the shape (3, 4, 6), not (height, width, 3): tran"),
        (torch.zeros(5, 6, 3), MASK, "image 0 of custom train has the shape (5, 6, 3), not (3, height, width): permu"),
        (RGB[None], MASK, "image 0 of custom train has the shape (1, 4, 6, 3), not (height, width, 3)"),
        (RGB.astype(np.int64), MASK, "image 0 of custom train is int64; give bytes (uint8)"),
        (RGB / np.float32(127.5) * 0 - 1, MASK, "is float32 from -1 to -1; give bytes of 0 to 255 or floats of 0"),
        (RGB.astype(np.float32), MASK, "is float32 from 1 to 248; give bytes of 0 to 255 or floats of 0 to 1, not nor"),
        (np.full((4, 6, 3), np.nan, np.float32), MASK, "is float32 from nan to nan"),
        (Image.new("I;16", (6, 4)), MASK, "image 0 of custom train has the mode I;16; convert it to 8 bits a channel"),
        ("a.png", MASK, "image 0 of custom train is a str; give a PIL image"),
        (RGB, "a.png", "mask 0 of custom train is a str; give a PIL image"),
        (RGB, MASK / 255, "mask 0 of custom train is float64 of the shape (4, 6); expected whole numbers"),
        (RGB, np.dstack([MASK] * 3), "mask 0 of custom train is uint8 of the shape (4, 6, 3); expected whole numbers"),
        (RGB, Image.fromarray(RGB), "mask 0 of custom train holds one class index a pixel, but its mode is RGB"),
        (RGB, MASK[:2], "image 0 of custom train is 4 x 6, but its mask mask 0 of custom train is 2 x 6"),
        (RGB, np.where(MASK == 1, 7, MASK), "mask 0 of custom train holds the value 7 (8 pixels): none of the 2 class"),
        (RGB, MASK.astype(np.int64) - 1, "holds the values -1 (12 pixels), 254 (4 pixels): none of the 2 classes"),
        (RGB, MASK.astype(np.int64) + 2**33, "holds the values 8589934592 (12 pixels), "),
    ],
)
def test_what_does_not_fit_is_named_in_one_line(image, mask, message):
    with pytest.raises(SegtailorError, match=re.escape(message)) as caught:
        TorchDataset(Pairs(image, mask))[0]
    assert "\n" not in str(caught.value)


def test_samples_that_are_no_pairs_and_sets_without_an_index_are_refused():
    class Streamed(IterableDataset):
        def __iter__(self):
            yield RGB, MASK

    with pytest.raises(SegtailorError, match=r"custom \(Streamed\) needs len\(\) and samples by index"):
        TorchDataset(Streamed(), CLASSES)
    with pytest.raises(SegtailorError, match=r"sample 0 of custom train is a dict; expected a pair \(image, mask\)"):
        TorchDataset([{"image": RGB, "mask": MASK}], CLASSES)[0]


def test_classes_are_names_colors_or_a_file(tmp_path):
    pairs = [(RGB, MASK)]
    data = TorchDataset(pairs, {"road": (1, 2, 3), "car": (4, 5, 6)})
    assert (data.classes, data.palette) == (("road", "car"), ((1, 2, 3), (4, 5, 6)))
    (tmp_path / "names.yaml").write_text("classes: [road, car]\nlicense: CC0-1.0")
    assert TorchDataset(pairs, tmp_path / "names.yaml").license == "CC0-1.0"
    own = Pairs()
    own.palette, own.license = [(1, 1, 1), (2, 2, 2)], "MIT"
    data = TorchDataset(own)
    assert (data.palette, data.license) == (((1, 1, 1), (2, 2, 2)), "MIT")
    for classes, message in (
        (None, "does not name its classes; give their names"),
        ([0, 1], "does not name its classes; give their names"),
        ([], "names no class"),
        (["road", "road"], "named twice: road"),
        ([str(index) for index in range(256)], "has 256 classes, but at most 255 are supported"),
    ):
        with pytest.raises(SegtailorError, match=message):
            TorchDataset(pairs, classes)


def test_the_recipe_gives_size_values_and_void():
    config = DataConfig(size=(8, 12), values=[1, 7], void=[0])
    mask = np.where(MASK == 1, 7, np.where(MASK == 0, 1, MASK))
    data = TorchDataset(Pairs(mask=mask), config=config)
    assert data[0].image.shape == (3, 8, 12)
    assert torch.equal(data[0].target[::2, ::2], torch.from_numpy(MASK))
    assert TorchDataset(Pairs(mask=mask), config=config, training=False)[0].target.shape == (4, 6)


def test_it_is_checked_limited_pickled_and_batched():
    data = pickle.loads(pickle.dumps(TorchDataset(Pairs())))
    check_files(data)
    config = DataConfig(crop=(4, 4), workers=1)
    batch = next(iter(train_batches(data, config, seed=0, global_batch=2, micro_batch=2, steps=1)))
    assert batch.images.shape == (2, 3, 4, 4)
    bad = TorchDataset(Pairs(mask=MASK + 2))
    for data in bad, limit_dataset(bad, 3):
        rows = f"{12 * len(data)} pixels in {len(data)} rows, first mask 0 of custom train"
        with pytest.raises(
            SegtailorError, match=f"custom train, {len(data)} rows checked: masks hold 2 values"
        ) as caught:
            check_files(data)
        assert f"2 ({rows})" in str(caught.value)
        assert "set data.values, data.void" in str(caught.value)


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("classes", [CLASSES, ["a", "b", "c"]])
def test_masks_of_0_and_255_stop_a_run_as_those_of_files_do(classes, limit):
    """255 is void: without a word the object would be ignored, and one class be all that is trained."""

    def opened(mask, **fields):
        config = DataConfig(name="object:Pairs", **fields)
        data = TorchDataset(Pairs(mask=mask), classes, config=config)
        return (data if limit is None else limit_dataset(data, limit)), config

    binary = np.where(MASK == 1, 255, 0)
    with pytest.raises(SegtailorError, match="masks of 0 and 255 only, though 255 is no class: the object") as caught:
        check_files(*opened(binary))
    assert ("data.values: [0, 255]" in str(caught.value)) == (len(classes) == 2)
    check_files(*opened(MASK))
    check_files(*opened(binary, void=[255]))
    if len(classes) == 2:
        check_files(*opened(binary, values=[0, 255]))


@pytest.mark.parametrize("ignored", [-1, -100, 65535])
def test_the_ignore_index_of_another_loss_is_void_where_the_recipe_says_so(ignored):
    mask = np.where(MASK == 255, ignored, MASK.astype(np.int64))
    with pytest.raises(SegtailorError, match=rf"holds the value {ignored} \(4 pixels\).*data\.void"):
        TorchDataset(Pairs(mask=mask))[0]
    for values, first in ((None, MASK), ([0, 255], np.where(MASK == 1, 255, MASK))):
        config = DataConfig(name="object:Pairs", values=values, void=[ignored])
        data = TorchDataset(Pairs(mask=np.where(MASK == 255, ignored, first.astype(np.int64))), config=config)
        assert torch.equal(data[0].target, torch.from_numpy(MASK))
        check_files(data, config)
        assert count_classes(data, "train", [sample_stats(data, "train", 0)]).void == 4
    wrong = TorchDataset(Pairs(mask=mask + 7), config=DataConfig(void=[ignored + 7]))
    with pytest.raises(SegtailorError, match=r"holds the values 7 \(12 pixels\), 8 \(8 pixels\): none of"):
        wrong[0]


MODULE = """
import numpy as np
from segtailor.data import Sample, SegmentationDataset
import torch


def make(root, split, variant="small"):
    if split == "broken":
        raise KeyError("nothing")
    pair = np.zeros((4, 6, 3), np.uint8), np.full((4, 6), len(variant) % 2, np.uint8)
    return Named([pair] * (3 if split == "train" else 2))


class Named(list):
    classes = ["road", "car"]


def make_nothing(split):
    return 3


def make_one(root):
    return []


class Mine(SegmentationDataset):
    classes = ("road", "car")

    def __init__(self, split, size=None):
        self.size = size

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return Sample(torch.zeros(3, *self.size, dtype=torch.uint8), torch.zeros(self.size, dtype=torch.uint8), "x")
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mysets.py").write_text(MODULE)
    yield "module:mysets"
    sys.modules.pop("mysets", None)


def test_a_module_opens_the_splits_of_a_recipe(mine):
    config = DataConfig(name=f"{mine}:make", root=Path(), variant="large", limit=2)
    train, val = create_dataset(config, "train", True), create_dataset(config, "val", False)
    assert (len(train), len(val), train.classes) == (2, 2, ("road", "car"))
    assert train[0].target.unique().tolist() == [1]
    assert val.name == f"{mine}:make"
    data = create_dataset(DataConfig(name=f"{mine}:Mine", size=(4, 6)), "train", True)
    assert isinstance(data, SegmentationDataset)
    assert isinstance(data[0], Sample)
    assert (len(data), data.split, len(data.palette), data[0].image.shape) == (5, "train", 2, (3, 4, 6))


@pytest.mark.parametrize(
    ("name", "options", "split", "message"),
    [
        ("mysets:mak", {}, "train", "unknown function or class of mysets 'mak'; nearest: make"),
        ("nosets:make", {}, "train", r"cannot import nosets \(.*\); is it on PYTHONPATH"),
        ("mysets:make", {"root": Path()}, "broken", r"split=broken\): KeyError: 'nothing' \(mysets.py, line \d+\)"),
        ("mysets:make_nothing", {}, "train", r"\(int\) needs len\(\) and samples by index"),
        ("mysets:make_nothing", {"root": Path()}, "train", "takes no `root`; leave data.root out"),
        ("mysets:make_one", {}, "train", "takes no `split`; it must open each split by its name"),
        ("mysets:Mine", {"values": [1, 2]}, "train", "defines its classes and masks; leave data.values out"),
        ("mysets:make", {"masks": "color"}, "train", "does not read data.masks"),
    ],
)
def test_what_goes_wrong_with_a_module_is_one_line(mine, name, options, split, message):
    with pytest.raises(SegtailorError, match=message) as caught:
        create_dataset(DataConfig(name=f"module:{name}", **options), split, True)
    assert "\n" not in str(caught.value)


def test_installed_packages_register_data_sets(mine, monkeypatch):
    sys.path.insert(0, "")
    point = EntryPoint("streets", "mysets:make", GROUP)
    monkeypatch.setattr(plugins, "entry_points", lambda group, name=None: [point] if name in (None, "streets") else [])
    assert "streets" in list_datasets()
    try:
        assert len(create_dataset(DataConfig(name="streets", root=Path()), "train", True)) == 3
    finally:
        sys.path.remove("")
    with pytest.raises(SegtailorError, match="unknown data set 'street'; nearest: streets"):
        create_dataset(DataConfig(name="street"), "train", True)
    point = EntryPoint("streets", "mysets_gone:make", GROUP)
    with pytest.raises(SegtailorError, match="streets, which a package registers, cannot be imported: ModuleNotFound"):
        create_dataset(DataConfig(name="streets", root=Path()), "train", True)
