from __future__ import annotations

import json
import pickle

import pytest
import torch
import torch.distributed as dist

from processes import under_torchrun
from segtailor.errors import SegtailorError
from segtailor.evaluation import BoundarySettings, Metrics, evaluate_model, predict_logits

from .fakes import TinyData, TinyModel
from .test_evaluate import SIZES

ALL = {"boundary": BoundarySettings(widths=(1, 3)), "calibration": True, "per_image": True}


def _by_hand(model, teacher, data):
    """The same measures, image by image."""
    metrics = Metrics(3, boundary=ALL["boundary"], calibration=True, agreement=True)
    for sample in data.items:
        size = tuple(sample.target.shape)
        with torch.no_grad():
            logits, teachers = (
                predict_logits(network, sample.image[None], size, fill=data.mean_color) for network in (model, teacher)
            )
        metrics.update(logits, logits.argmax(1), sample.target[None], teachers.argmax(1))
    return metrics.result()


def _assert_calibrated_alike(found, expected):
    """Logits differ in their last bits with the images that go through the network together, so confidences do too."""
    assert found["pixels"] == expected["pixels"]
    assert [found["ece"], found["brier"]] == pytest.approx([expected["ece"], expected["brier"]], abs=1e-5)


def test_evaluation_carries_each_section_that_was_asked_for():
    model, teacher, data = TinyModel(), TinyModel(seed=1), TinyData(SIZES)
    result = evaluate_model(model, data, batch=2, teacher=teacher, **ALL)
    expected = _by_hand(model, teacher, data)
    assert result.boundary == expected["boundary"]
    _assert_calibrated_alike(result.calibration, expected["calibration"])
    assert result.agreement == expected["agreement"]
    written = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert written["boundary"] == expected["boundary"]
    assert written["calibration"]["pixels"] == int(result.confusion.sum())
    assert written["agreement"]["pixels"] == int(result.confusion.sum())
    assert "per_image" not in written
    bands = result.boundary["distance"]
    assert sum(band["pixels"] for band in bands) == int(result.confusion.sum())


def test_nothing_is_measured_unless_asked_for():
    result = evaluate_model(TinyModel(), TinyData(SIZES))
    assert (result.boundary, result.calibration, result.agreement, result.per_image) == (None, None, None, None)
    assert not {"boundary", "calibration", "agreement"} & set(result.to_dict())


def test_per_image_matrices_are_in_data_set_order():
    model, data = TinyModel(), TinyData(SIZES)
    result = evaluate_model(model, data, batch=2, limit=4, per_image=True)
    assert result.per_image.dtype == torch.int32
    assert result.per_image.shape == (4, 3, 3)
    assert torch.equal(result.per_image.sum(0).long(), result.confusion)
    for index, item in enumerate(data.items[:4]):
        alone = TinyData([])
        alone.items = [item]
        assert torch.equal(result.per_image[index].long(), evaluate_model(model, alone).confusion)


def test_a_wrong_mask_value_is_still_named():
    data = TinyData([(8, 10)])
    data.items[0].target[5, 5] = 9
    with pytest.raises(SegtailorError, match=r"mask value 9 \(1 pixels\) in image 0"):
        evaluate_model(TinyModel(), data, **ALL)


def test_a_teacher_of_another_class_count_is_an_error():
    with pytest.raises(SegtailorError, match="the model has 5 classes but the data set has 3"):
        evaluate_model(TinyModel(), TinyData(SIZES), teacher=TinyModel(num_classes=5))


def test_measures_need_no_process_group_and_name_a_missing_teacher():
    logits = torch.tensor([[[[1.0, 1.0, 0.0, 0.0]], [[0.0, 0.0, 1.0, 1.0]]]])
    prediction = logits.argmax(1)
    metrics = Metrics(2, boundary=BoundarySettings(), agreement=True)
    metrics.update(logits, prediction, prediction, prediction)
    metrics.all_reduce()  # without a process group there is nobody to ask
    assert metrics.result()["boundary"]["miou"] == metrics.result()["agreement"]["agreement"] == 1.0
    with pytest.raises(ValueError, match="teacher's prediction"):
        metrics.update(logits, prediction, prediction)


def _counts(result):
    assert result.images == len(SIZES)
    return result.per_image.tolist(), result.confusion.tolist()


def _worker(rank, folder):
    dist.init_process_group("gloo")
    result = evaluate_model(TinyModel(), TinyData(SIZES), batch=2, rank=rank, world=2, teacher=TinyModel(seed=1), **ALL)
    found = (result.calibration, result.boundary, result.agreement, _counts(result))
    (folder / f"{rank}.pickle").write_bytes(pickle.dumps(found))
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    under_torchrun(_worker, tmp_path)
    alone = evaluate_model(TinyModel(), TinyData(SIZES), batch=2, teacher=TinyModel(seed=1), **ALL)
    for rank in range(2):
        calibration, *counted = pickle.loads((tmp_path / f"{rank}.pickle").read_bytes())
        _assert_calibrated_alike(calibration, alone.calibration)
        assert counted == [alone.boundary, alone.agreement, _counts(alone)]
