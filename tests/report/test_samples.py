from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from evaluation.fakes import TinyData, TinyModel
from segtailor.config import EvaluateConfig
from segtailor.methods import METHODS, check_options
from segtailor.models.teacher import Teacher
from segtailor.report.samples import write_samples, write_tailored

TERMS = ("lt_all", "lt_class", "lt_nonclass")
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


def _altered(method="kt", **options):
    return METHODS[method].altered_logits(check_options(method, options))


def _draw(folder, *arms, count=2):
    return write_tailored(folder, TinyData(SIZES[:3], num_classes=4), Teacher(TinyModel(4)), arms, count)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("kd", {}),
        ("stagewise", {}),
        ("kt", dict.fromkeys(TERMS, 0)),
        ("kt", {"variant": "published", **dict.fromkeys(TERMS, 0)}),
    ],
)
def test_methods_that_leave_the_logits_as_they_are_say_so(method, options):
    assert _altered(method, **options) is None


def test_nothing_is_drawn_where_no_arm_alters_the_logits(tmp_path):
    (tmp_path / "tailoring").mkdir()  # of an earlier attempt
    assert _draw(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [*({term: 1} for term in TERMS), {"variant": "published"}])
def test_the_first_arm_that_alters_them_is_drawn(tmp_path, options):
    entries = _draw(tmp_path, ("tailored", _altered(**options)), ("doubled", lambda logits, target: 2 * logits))
    assert [(entry["name"], entry["arm"]) for entry in entries] == [("image 0", "tailored"), ("image 2", "tailored")]
    assert set(entries[0]["pictures"]) == {"image", "before", "after", "difference"}
    assert {Image.open(tmp_path / path).size for path in entries[0]["pictures"].values()} == {(10, 8)}
    before, after = (np.asarray(Image.open(tmp_path / entries[0]["pictures"][what])) for what in ("before", "after"))
    assert (before != after).any()


@pytest.mark.parametrize("variant", ["clean", "published"])
def test_tailored_logits_are_raised_inside_a_class_and_capped_outside(variant):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, generator=generator)
    target = torch.randint(0, 3, (2, 8, 10), generator=generator, dtype=torch.uint8)
    target[:, :2] = 255
    after = _altered(variant=variant, lt_all=1.0)(logits, target)
    before = logits.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for label in range(3):
        inside = target == label
        outside = (target != label) & ((target != 255) | (variant == "published"))
        assert (after[:, label] >= before[:, label])[inside].all()
        assert (after[:, label] <= before[:, label])[outside].all()
        for image in range(2):
            rest = before[image, label][outside[image]]
            cap = rest.sum() / (80 if variant == "published" else len(rest))
            torch.testing.assert_close(after[image, label][outside[image]], rest.clamp(max=cap))
    kept = (after == before).permute(0, 2, 3, 1)[target == 255].all()
    assert bool(kept) == (variant == "clean")
