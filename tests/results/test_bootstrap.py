from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from segtailor.evaluation import EvaluationResult
from segtailor.results import statistics
from segtailor.results.statistics import ImageCounts, bootstrap_difference, image_draws, resampled_miou

from .folders import invented_confusions


def counts(quality: float, seed: int = 0, images: int = 12) -> ImageCounts:
    return ImageCounts.from_confusions(invented_confusions(quality, seed, images))


def looped_miou(confusions: np.ndarray, draw: np.ndarray) -> float:
    """Sum the drawn images' matrices one after another, then take IoU class by class."""
    total = np.zeros(confusions.shape[1:], np.int64)
    for image, times in enumerate(draw):
        for _ in range(times):
            total += confusions[image]
    ious = []
    for k in range(len(total)):
        union = total[k].sum() + total[:, k].sum() - total[k, k]
        if union:
            ious.append(total[k, k] / union)
    return sum(ious) / len(ious) if ious else 0.0


def test_miou_is_that_of_the_evaluation() -> None:
    confusions = invented_confusions(0.8, 3)
    result = EvaluationResult(torch.from_numpy(confusions.sum(0, dtype=np.int64)), ("a", "b", "c"))
    assert ImageCounts.from_confusions(confusions).miou == pytest.approx(result.miou, abs=1e-15)


def test_a_class_that_a_resample_lacks_is_left_out() -> None:
    confusions = np.zeros((2, 3, 3), np.int32)
    confusions[0, 0, 0], confusions[1, 1, 1], confusions[1, 1, 0] = 4, 3, 1
    run = ImageCounts.from_confusions(confusions)
    found = resampled_miou([run], np.array([[2, 0], [0, 2], [1, 1]]))
    assert found[:, 0] == pytest.approx([1.0, (0.75 + 0.0) / 2, (0.8 + 0.75) / 2])


def test_equals_resampling_in_a_loop_with_the_same_draws() -> None:
    ours = [invented_confusions(quality, seed, 12) for seed, quality in enumerate((0.8, 0.85))]
    theirs = [invented_confusions(quality, seed, 12) for seed, quality in enumerate((0.78, 0.8), start=5)]
    draws = np.concatenate(list(image_draws(12, 60, seed=4)))
    looped = [
        np.mean([looped_miou(run, draw) for run in ours]) - np.mean([looped_miou(run, draw) for run in theirs])
        for draw in draws
    ]
    found = bootstrap_difference(
        [ImageCounts.from_confusions(run) for run in ours],
        [ImageCounts.from_confusions(run) for run in theirs],
        resamples=60,
        seed=4,
        level=0.9,
    )
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(looped, [0.05, 0.95])), abs=1e-12)
    every = np.ones(12, np.int64)
    estimate = np.mean([looped_miou(run, every) for run in ours]) - np.mean([looped_miou(run, every) for run in theirs])
    assert found.estimate == pytest.approx(estimate, abs=1e-12)
    sides = min(sum(value <= 0 for value in looped), sum(value >= 0 for value in looped))
    assert found.p == pytest.approx(2 * (sides + 1) / 61)


def test_draws_are_multinomial() -> None:
    """Each image is drawn once on average, with variance 1 - 1/N and covariance -1/N."""
    draws = np.concatenate(list(image_draws(8, 20_000, seed=1)))
    assert draws.shape == (20_000, 8)
    assert (draws.sum(1) == 8).all()
    covariance = np.cov(draws.T)
    assert draws.mean(0) == pytest.approx(np.ones(8), abs=0.04)
    assert covariance == pytest.approx(np.eye(8) - 1 / 8, abs=0.05)


def test_draws_in_blocks_are_the_draws_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(image_draws(10, 25, seed=2)))
    monkeypatch.setattr(statistics, "_DRAWS_AT_ONCE", 70)
    blocks = list(image_draws(10, 25, seed=2))
    assert [len(block) for block in blocks] == [7, 7, 7, 4]
    assert (np.concatenate(blocks) == whole).all()


def test_the_same_seed_gives_the_same_interval_and_another_seed_another() -> None:
    arm, other = [counts(0.8)], [counts(0.79, 1)]
    assert bootstrap_difference(arm, other, 200, seed=3) == bootstrap_difference(arm, other, 200, seed=3)
    assert bootstrap_difference(arm, other, 200, seed=3).low != bootstrap_difference(arm, other, 200, seed=4).low


def test_an_arm_does_not_differ_from_itself() -> None:
    arm = [counts(0.8)]
    found = bootstrap_difference(arm, arm, 200)
    assert (found.estimate, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_pairing_takes_out_what_images_do_to_both_arms() -> None:
    """Images of very different difficulty, one arm a little better on each: the interval is narrow and above 0."""
    difficulty = np.random.default_rng(0).integers(200, 800, 60)
    worse = ImageCounts(difficulty[:, None], np.full((60, 1), 1000))
    better = ImageCounts(difficulty[:, None] + 5, np.full((60, 1), 1000))
    found = bootstrap_difference([better], [worse], 500)
    assert found.low == pytest.approx(0.005)
    assert found.high == pytest.approx(0.005)


def test_interval_covers_a_known_difference_roughly_as_often_as_it_says() -> None:
    """Images drawn anew from a known population, 120 times; the standard error of the share is 2 points."""
    generator = np.random.default_rng(2)
    truth, covered = 0.03, 0
    for _ in range(120):
        images = generator.normal(0.6, 0.1, 100)
        gains = truth + generator.normal(0, 0.05, 100)
        unions = np.full((100, 1), 100_000)
        runs = [
            ImageCounts((scores * 100_000).astype(np.int64)[:, None], unions) for scores in (images + gains, images)
        ]
        found = bootstrap_difference(runs[:1], runs[1:], 400, seed=int(generator.integers(1000)))
        covered += found.low <= truth <= found.high
    assert 0.88 <= covered / 120 <= 0.99


@pytest.mark.parametrize(
    ("arm", "other"),
    [([], []), ([counts(0.8)], []), ([counts(0.8)], [counts(0.8, images=11)])],
    ids=["nothing", "unequal seeds", "other images"],
)
def test_runs_that_cannot_be_paired_are_refused(arm: list[ImageCounts], other: list[ImageCounts]) -> None:
    with pytest.raises(ValueError, match="a paired bootstrap needs"):
        bootstrap_difference(arm, other)


def test_the_same_images_in_another_order_are_refused() -> None:
    turned = ImageCounts.from_confusions(invented_confusions(0.8, 0, 12)[::-1])
    with pytest.raises(ValueError, match="same order"):
        bootstrap_difference([counts(0.8)], [turned])


def test_two_thousand_resamples_of_cityscapes_take_a_moment() -> None:
    """About 0.1 s on one core; the bound allows for a busy machine."""
    generator = np.random.default_rng(0)
    runs = [
        ImageCounts(hits, hits + generator.integers(0, 5000, (500, 19)))
        for hits in (generator.integers(0, 9000, (500, 19)) for _ in range(2))
    ]
    start = time.process_time()
    bootstrap_difference(runs[:1], runs[1:], 2000)
    assert time.process_time() - start < 2
