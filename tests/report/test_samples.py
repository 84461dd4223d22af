from __future__ import annotations

import numpy as np
from PIL import Image

from evaluation.fakes import TinyData, TinyModel
from segtailor.config import EvaluateConfig
from segtailor.report.samples import write_samples

SIZES = [(8, 10), (7, 9), (8, 10), (6, 6)]


def _configured(**values):
    return EvaluateConfig.model_validate(values)


def test_pictures_have_the_masks_size_and_lie_below_samples(tmp_path):
    data = TinyData(SIZES, mask_sizes=[(16, 20), (7, 9), (8, 10), (6, 6)])
    models = {"teacher": TinyModel(seed=1), "distilled": TinyModel()}
    entries = write_samples(tmp_path, data, models, _configured(samples=2))
    assert [entry["name"] for entry in entries] == ["image 0", "image 3"]  # spread evenly
    pictures = entries[0]["pictures"]
    assert set(pictures) == {"image", "target", "teacher", "teacher-wrong", "distilled", "distilled-wrong"}
    assert {Image.open(tmp_path / path).size for path in pictures.values()} == {(20, 16)}


def test_the_share_of_wrong_pixels_leaves_void_out(tmp_path):
    data, model = TinyData(SIZES), TinyModel()
    (entry,) = write_samples(tmp_path, data, {"model": model}, _configured(samples=1))
    target = data.items[0].target.numpy()
    drawn = np.asarray(Image.open(tmp_path / entry["pictures"]["model"]))
    right = (drawn == np.asarray(data.palette)[np.where(target == 255, 0, target)]).all(-1)
    assert entry["wrong"]["model"] == float((~right)[target != 255].mean())


def test_no_samples_asked_for_removes_earlier_ones(tmp_path):
    data = TinyData(SIZES)
    write_samples(tmp_path, data, {}, _configured(samples=9))
    assert len(list((tmp_path / "samples").glob("*-image.png"))) == 4
    assert write_samples(tmp_path, data, {}, _configured(samples=0)) == []
    assert not (tmp_path / "samples").exists()


def test_sliding_and_modes_are_respected(tmp_path):
    model = TinyModel().train()
    write_samples(tmp_path, TinyData(SIZES), {"model": model}, _configured(samples=1, mode="slide", window=(4, 4)))
    assert {shape[-2:] for shape in model.seen} == {(4, 4)}
    assert model.training
