from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torchmetrics.functional.segmentation.utils import binary_erosion, generate_binary_structure

from segtailor.errors import SegtailorError
from segtailor.evaluation import BoundarySettings
from segtailor.evaluation.boundary import (
    BITS,
    BoundaryMetrics,
    boundary_distance,
    class_bits,
    dilate_disk,
    dilate_square,
    has_class,
    label_edges,
)

SETTINGS = BoundarySettings(ratio=0.1, tolerances=(1, 2, 4), widths=(1, 2, 5))


def _maps(num_classes=5, size=(3, 19, 23), seed=0):
    """Blocky maps with void and without the last class; the prediction is moved, and wrong here and there."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, num_classes, (size[0], 4, 5), generator=generator)
    blocks[blocks == num_classes - 1] = 255
    target = torch.nn.functional.interpolate(blocks[:, None].float(), size[1:], mode="nearest")[:, 0].to(torch.uint8)
    prediction = target.roll((1, 2), (1, 2)).long()
    prediction[prediction == 255] = 0
    noise = torch.rand(size, generator=generator) < 0.03
    prediction[noise] = 1
    return prediction, target


def _measure(prediction, target, num_classes=5, settings=SETTINGS):
    metrics = BoundaryMetrics(num_classes, settings)
    metrics.update(prediction, target)
    return metrics.result()


def _cut(labels, target):
    return np.where(target.numpy() == 255, 255, labels.numpy()).astype(int)


def _mean(values):
    present = [value for value in values if value is not None]
    return sum(present) / len(present)


def _eroded(mask, steps):
    """A frame of background, one pixel wide, then erosions by 3 x 3 that know nothing beyond the frame."""
    mask = np.pad(mask, 1)
    height, width = mask.shape
    for _ in range(steps):
        before = mask.copy()
        for y in range(height):
            for x in range(width):
                mask[y, x] = before[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].all()
    return mask[1:-1, 1:-1]


def _loop_iou(prediction, target, num_classes, ratio):
    inside, outside = np.zeros(num_classes), np.zeros(num_classes)
    for p, t in zip(_cut(prediction, target), _cut(target, target), strict=True):
        steps = max(1, round(ratio * math.hypot(*t.shape)))
        for k in range(num_classes):
            of_p, of_t = ((m == k) & ~_eroded(m == k, steps) for m in (p, t))
            inside[k] += (of_p & of_t).sum()
            outside[k] += (of_p | of_t).sum()
    return [i / u if u else None for i, u in zip(inside, outside, strict=True)]


def _contour(labels, k):
    height, width = labels.shape
    return [
        (y, x)
        for y in range(height)
        for x in range(width)
        if labels[y, x] == k and (labels[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] != k).any()
    ]


def _share(ours, theirs, tolerance):
    """Pixels of ``ours`` that have one of ``theirs`` within the tolerance."""
    return sum(any((y - v) ** 2 + (x - u) ** 2 <= tolerance**2 for v, u in theirs) for y, x in ours)


def _loop_f1(prediction, target, num_classes, tolerance):
    """F1 of summed counts, and the mean of the images' F1, for each class."""
    summed, per_image = [], []
    for k in range(num_classes):
        counts, scores = np.zeros(4), []
        for p, t in zip(_cut(prediction, target), _cut(target, target), strict=True):
            ours, theirs = _contour(p, k), _contour(t, k)
            found = np.array([_share(ours, theirs, tolerance), len(ours), _share(theirs, ours, tolerance), len(theirs)])
            counts += found
            if ours or theirs:
                scores.append(_harmonic(found))
        summed.append(_harmonic(counts) if counts.any() else None)
        per_image.append(sum(scores) / len(scores) if scores else None)
    return summed, per_image


def _harmonic(counts):
    if not counts[0] or not counts[2]:
        return 0.0
    precision, recall = counts[0] / counts[1], counts[2] / counts[3]
    return 2 * precision * recall / (precision + recall)


def _loop_distances(target):
    """Chebyshev distance of each pixel to the nearest pixel of another label."""
    distances = np.full(target.shape, np.inf)
    for y, x in np.ndindex(target.shape):
        v, u = np.nonzero(target != target[y, x])
        if len(v):
            distances[y, x] = np.maximum(abs(v - y), abs(u - x)).min()
    return distances


def test_boundary_iou_equals_erosions_class_by_class():
    prediction, target = _maps()
    result = _measure(prediction, target)
    expected = _loop_iou(prediction, target, 5, 0.1)
    assert result["iou"] == pytest.approx(expected)
    assert expected[4] is None
    assert result["miou"] == pytest.approx(_mean(expected))


def test_boundary_iou_equals_torchmetrics_erosion():
    prediction, target = _maps(seed=3)
    square = generate_binary_structure(2, 2)
    inside, outside = torch.zeros(4), torch.zeros(4)
    for k in range(4):
        regions = []
        for labels in (prediction, target):
            mask = ((labels == k) & (target != 255)).to(torch.uint8).unsqueeze(1)
            core = mask
            for _ in range(boundary_distance(19, 23, 0.1)):
                core = binary_erosion(core, structure=square)
            regions.append((mask - core).bool())
        inside[k], outside[k] = (regions[0] & regions[1]).sum(), (regions[0] | regions[1]).sum()
    assert _measure(prediction, target)["iou"][:4] == pytest.approx((inside / outside).tolist())


def test_f1_equals_a_loop_over_contour_pixels():
    prediction, target = _maps(size=(2, 15, 17))
    for row, tolerance in zip(_measure(prediction, target)["f1"], (1, 2, 4), strict=True):
        summed, per_image = _loop_f1(prediction, target, 5, tolerance)
        assert row["tolerance"] == tolerance
        assert row["f1"] == pytest.approx(summed)
        assert row["f1_per_image"] == pytest.approx(per_image, abs=1e-6)
        assert row["mean_f1"] == pytest.approx(_mean(summed))
        assert row["mean_f1_per_image"] == pytest.approx(_mean(per_image), abs=1e-6)


def test_f1_holds_more_classes_than_a_plane_has_bits():
    prediction, target = _maps(num_classes=2 * BITS + 8, size=(2, 15, 17))
    result = _measure(prediction, target, num_classes=2 * BITS + 8)
    summed, _ = _loop_f1(prediction, target, 2 * BITS + 8, 2)
    assert result["f1"][1]["f1"] == pytest.approx(summed)
    assert max(k for k, value in enumerate(summed) if value is not None) > 2 * BITS


def test_bands_equal_brute_force_distances():
    prediction, target = _maps()
    metrics = BoundaryMetrics(5, SETTINGS)
    metrics.update(prediction, target)
    bands = np.zeros((4, 5, 5), int)
    for p, t in zip(prediction.numpy(), target.numpy(), strict=True):
        for (y, x), distance in np.ndenumerate(_loop_distances(t)):
            if t[y, x] != 255:
                bands[np.searchsorted((1, 2, 5), distance), t[y, x], p[y, x]] += 1
    assert metrics.distance_confusion().tolist() == bands.tolist()
    result = metrics.result()
    assert [row["pixels"] for row in result["distance"]] == bands.sum((1, 2)).tolist()
    assert [(row["above"], row["up_to"]) for row in result["distance"]] == [(0, 1), (1, 2), (2, 5), (5, None)]
    for place, row in enumerate(result["trimap"]):
        near = bands[: place + 1].sum(0)
        union = near.sum(0) + near.sum(1) - near.diagonal()
        iou = [near[k, k] / union[k] if union[k] else None for k in range(5)]
        assert row["iou"] == pytest.approx(iou)
        assert row["miou"] == pytest.approx(_mean(iou))
        assert row["pixels"] + result["interior"][place]["pixels"] == bands.sum()
        assert result["interior"][place]["pixels"] == bands[place + 1 :].sum()


def test_a_perfect_prediction_scores_one_beside_void_too():
    _, target = _maps()
    result = _measure(target.long().where(target != 255, 2), target)
    assert result["iou"] == [1.0, 1.0, 1.0, 1.0, None]
    assert all(row["f1"] == [1.0, 1.0, 1.0, 1.0, None] and row["mean_f1_per_image"] == 1.0 for row in result["f1"])
    assert all(row["miou"] == 1.0 for row in result["trimap"] + result["interior"])


def test_what_is_predicted_in_void_does_not_matter():
    prediction, target = _maps()
    other = torch.where(target == 255, (prediction + 1) % 4, prediction)
    assert not torch.equal(other, prediction)
    assert _measure(other, target) == _measure(prediction, target)


def test_a_class_only_predicted_counts_zero_and_an_absent_one_nothing():
    target = torch.zeros(1, 12, 12, dtype=torch.uint8)
    prediction = torch.zeros(1, 12, 12, dtype=torch.long)
    prediction[:, 4:8, 4:8] = 1
    result = _measure(prediction, target, num_classes=3)
    assert result["iou"][1:] == [0.0, None]
    assert result["f1"][0]["f1"][1:] == [0.0, None]
    assert result["f1"][0]["f1_per_image"][1:] == [0.0, None]
    assert result["f1"][0]["precision"][1] == 0.0
    assert result["f1"][0]["recall"][1] is None


def test_a_moved_boundary_is_missed_below_the_move_and_wrong_up_to_it():
    target = torch.zeros(1, 40, 60, dtype=torch.uint8)
    target[:, :, 30:] = 1
    settings = BoundarySettings(tolerances=(1, 2, 3, 4), widths=(1, 2, 3, 4))
    result = _measure(target.roll(3, -1).long().index_fill(-1, torch.arange(3), 0), target, 2, settings)
    assert [row["mean_f1"] for row in result["f1"]] == [0.0, 0.0, 1.0, 1.0]
    assert [row["pixel_accuracy"] for row in result["distance"]] == [0.5, 0.5, 0.5, 1.0, 1.0]
    depth = boundary_distance(40, 60)
    assert depth == 1
    # a frame of one pixel is in all regions: class 1 has 30 columns, 27 in the prediction
    frame = 2 * 27 + 38
    assert result["iou"][1] == frame / (frame + 3 * 2 + 38 * 2)


def test_wholly_void_maps_give_no_figures():
    target = torch.full((1, 6, 7), 255, dtype=torch.uint8)
    result = _measure(torch.zeros(1, 6, 7, dtype=torch.long), target)
    assert result["iou"] == [None] * 5
    assert result["trimap"][0]["miou"] is None
    assert json.loads(json.dumps(result, allow_nan=False)) == result


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3)])
def test_images_smaller_than_the_widths(size):
    target = torch.randint(0, 5, (2, *size), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    result = _measure(target.long(), target, settings=BoundarySettings(ratio=1))
    assert result["miou"] == 1.0
    assert sum(row["pixels"] for row in result["distance"]) == target.numel()


def test_batches_add_up():
    prediction, target = _maps()
    metrics = BoundaryMetrics(5, SETTINGS)
    for image in range(3):
        metrics.update(prediction[image : image + 1], target[image : image + 1])
    assert metrics.result() == _measure(prediction, target)
    together = BoundaryMetrics(5, SETTINGS)  # as on a GPU
    found, truth = (torch.from_numpy(_cut(labels, target)).to(torch.uint8) for labels in (prediction, target))
    together._add(torch.stack([found, truth]))
    assert together.result() == metrics.result()


def test_distance_follows_the_diagonal_and_is_at_least_one():
    assert boundary_distance(3, 4) == 1
    assert boundary_distance(512, 1024) == 23
    assert boundary_distance(512, 1024, 0.005) == 6


def test_dilations_equal_brute_force():
    generator = torch.Generator().manual_seed(0)
    plane = torch.randint(0, 2**30, (2, 13, 17), generator=generator, dtype=torch.int32)
    plane[torch.rand(plane.shape, generator=generator) < 0.95] = 0
    for radius in (0, 1, 2, 3, 6, 20):
        squares, disks = torch.zeros_like(plane), torch.zeros_like(plane)
        for image, y, x in plane.nonzero().tolist():
            for v, u in np.ndindex(13, 17):
                value = plane[image, y, x]
                if max(abs(v - y), abs(u - x)) <= radius:
                    squares[image, v, u] |= value
                if (v - y) ** 2 + (u - x) ** 2 <= radius**2:
                    disks[image, v, u] |= value
        assert torch.equal(dilate_square(plane, 0, radius), squares)
        assert torch.equal(dilate_disk(plane, radius), disks)
        assert torch.equal(dilate_square(dilate_square(plane, 0, radius // 2), radius // 2, radius), squares)


def test_edges_and_bits_equal_brute_force():
    _, target = _maps(num_classes=70)
    edges = label_edges(target)
    for image, y, x in np.ndindex(*target.shape):
        around = target[image, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2]
        assert bool(edges[image, y, x]) == bool((around != target[image, y, x]).any())
    for first in (0, BITS, 2 * BITS):
        held = has_class(class_bits(target, edges, first), target, first)
        expected = edges.bool() & (target >= first) & (target < first + BITS)
        assert torch.equal(held.bool(), expected)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ratio": 0}, "share of the image diagonal"),
        ({"tolerances": ()}, "boundary tolerances are ascending"),
        ({"widths": (2, 1)}, r"boundary widths are ascending whole pixels from 1 on, not \[2, 1\]"),
        ({"widths": (0, 1)}, "boundary widths"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(SegtailorError, match=message):
        BoundarySettings(**values)
