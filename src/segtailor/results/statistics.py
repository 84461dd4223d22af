"""Figures over seeds and over images: spread, paired differences, t interval and test, ranks, bootstrap.

Every function is pure and takes plain numbers. Pairs are seeds that both arms have finished: the same seed means the
same batches and the same starting student, so that its chance cancels in the difference.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# SciPy's statistics take more than a second to import, and a single run needs none of them: imported where used.

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]

MIN_SEEDS = 5
ALPHA = 0.05
LEVEL = 0.95
"""The confidence of every interval."""
RESAMPLES = 2000

_NO_SPREAD = 1e-9
_DRAWS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Spread:
    """Mean of ``count`` values and their sample standard deviation (divisor count - 1; None for one value)."""

    mean: float
    std: float | None
    count: int


@dataclass(frozen=True)
class Interval:
    """A two-sided interval of confidence ``level``."""

    low: float
    high: float
    level: float


def spread(values: Sequence[float]) -> Spread | None:
    """Return mean and sample standard deviation; None for no values.

    >>> spread([1.0, 2.0, 3.0])
    Spread(mean=2.0, std=1.0, count=3)
    """
    if not len(values):
        return None
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), std, len(values))


def paired_differences(arm: Mapping[int, float], other: Mapping[int, float]) -> dict[int, float]:
    """Return arm minus other for each seed that both have, seeds ascending.

    >>> paired_differences({0: 0.5, 1: 0.75, 2: 0.5}, {1: 0.5, 0: 0.25})
    {0: 0.25, 1: 0.25}
    """
    return {seed: arm[seed] - other[seed] for seed in sorted(arm.keys() & other.keys())}


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval | None:
    """Return Student's interval of the values' mean; None below 2 values.

    >>> interval = t_interval([1.0, 2.0, 3.0])
    >>> round(interval.low, 4), round(interval.high, 4)
    (-0.4841, 4.4841)
    """
    found = spread(values)
    if found is None or found.std is None:
        return None
    from scipy import stats

    half = float(stats.t.ppf((1 + level) / 2, found.count - 1)) * found.std / math.sqrt(found.count)
    return Interval(found.mean - half, found.mean + half, level)


def t_test(values: Sequence[float]) -> float | None:
    """Return the two-sided p value of the hypothesis that the values' mean is 0.

    None below 2 values, and for values that are all the same but not 0: seeds that change nothing are no sample.

    >>> round(t_test([1.0, 2.0, 3.0]), 6)
    0.07418
    """
    found = spread(values)
    if found is None or found.std is None:
        return None
    if found.std <= _NO_SPREAD * max(abs(value) for value in values):
        return 1.0 if found.mean == 0 else None
    from scipy import stats

    return float(stats.ttest_1samp(values, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's corrected p values, in the order given: the chance of one false finding among all stays bounded.

    >>> holm([0.25, 0.01, 0.02])
    [0.25, 0.03, 0.04]
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(factors * np.asarray(p_values)[order]))
    return [float(p) for p in corrected]


def ranks(scores: Sequence[Sequence[float]]) -> Floats:
    """Return each arm's rank (S,A) in each seed's ``scores`` (S,A), 1 for the highest; equal scores share their mean.

    >>> ranks([[0.5, 0.75, 0.5, 0.25]]).tolist()
    [[2.5, 1.0, 2.5, 4.0]]
    """
    from scipy import stats

    found: Floats = stats.rankdata(-np.asarray(scores, np.float64), axis=1)
    return found


def gap_closed(arm: Mapping[int, float], alone: Mapping[int, float], teacher: float) -> float | None:
    """Return mean(arm - alone) / (teacher - mean(alone)) over the seeds of both; None without seeds or without a gap.

    A ratio of means: the mean of the seeds' ratios would be ruled by the seed with the smallest gap.

    >>> gap_closed({0: 0.5, 1: 0.75}, {0: 0.5, 1: 0.5}, 0.75)
    0.5
    """
    differences = paired_differences(arm, alone)
    if not differences:
        return None
    gap = teacher - float(np.mean([alone[seed] for seed in differences]))
    return float(np.mean(list(differences.values()))) / gap if gap > 0 else None


def verdict(pairs: int, p: float | None) -> str:
    """Return what ``pairs`` paired seeds with Holm-corrected ``p`` allow one to claim; below 5 seeds never "differs".

    >>> verdict(3, 0.001), verdict(5, 0.001), verdict(5, 0.2), verdict(5, None)
    ('too few seeds', 'differs', 'no difference shown', 'seeds change nothing')
    """
    if pairs < MIN_SEEDS:
        return "too few seeds"
    if p is None:
        return "seeds change nothing"
    return "differs" if p < ALPHA else "no difference shown"


@dataclass(frozen=True, eq=False)
class ImageCounts:
    """All that mIoU needs of each image: ``hits`` and ``unions`` in pixels, int64 (N,K), images in data set order.

    ``targets`` is a digest of each image's target pixels by class: equal for runs that scored the same images in the
    same order. 2K numbers an image instead of K*K make the bootstrap cheap with many classes.
    """

    hits: Counts
    unions: Counts
    targets: str = ""

    @classmethod
    def from_confusions(cls, confusions: NDArray[np.integer]) -> ImageCounts:
        """Count from confusion matrices, any integer type (N,K,K), rows target, columns prediction.

        >>> ImageCounts.from_confusions(np.array([[[3, 1], [0, 2]]])).unions.tolist()
        [[4, 3]]
        """
        hits = np.einsum("nkk->nk", confusions).astype(np.int64)
        target = confusions.sum(2, dtype=np.int64)
        unions = target + confusions.sum(1, dtype=np.int64) - hits
        digest = hashlib.sha256(repr(target.shape).encode() + np.ascontiguousarray(target).tobytes()).hexdigest()
        return cls(hits, unions, digest)

    @property
    def images(self) -> int:
        """The number of images."""
        return len(self.hits)

    @property
    def miou(self) -> float:
        """MIoU of all images counted together."""
        return float(mean_iou(self.hits.sum(0), self.unions.sum(0)))


def mean_iou(hits: NDArray[np.number], unions: NDArray[np.number]) -> Floats:
    """Return mIoU over the last axis (K), a class without union left out; 0 where no class is left.

    >>> mean_iou(np.array([3, 2, 0]), np.array([4, 4, 0])).item()
    0.625
    """
    present = unions > 0
    ratios = np.divide(hits, unions, out=np.zeros(np.shape(hits)), where=present)
    mean: Floats = ratios.sum(-1) / np.maximum(present.sum(-1), 1)
    return mean


@dataclass(frozen=True)
class ImageBootstrap:
    """A difference of mIoU under resampled images: percentile interval and two-sided sign p, for networks as trained.

    It does not cover the chance of training: another seed's network may be outside.
    """

    estimate: float
    low: float
    high: float
    p: float
    level: float
    resamples: int
    images: int


def image_draws(images: int, resamples: int, seed: int = 0) -> Iterator[Counts]:
    """Yield blocks (r, images): how often each resample draws each image; every row sums to ``images``.

    The same arguments give the same draws, so that every arm meets the same resamples.

    >>> [block.sum(1).tolist() for block in image_draws(3, 2)]
    [[3, 3]]
    """
    generator = np.random.default_rng(seed)
    block = max(1, _DRAWS_AT_ONCE // images)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(images, size=(rows, images))
        drawn += np.arange(rows)[:, None] * images  # a row's own range of bins
        yield np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)


def resampled_miou(runs: Sequence[ImageCounts], draws: Counts) -> Floats:
    """Return the mIoU (R,S) of each of S runs under each of R resamples, ``draws`` (R,N); exact, as sums stay integers.

    >>> run = ImageCounts(np.array([[1], [4]]), np.array([[2], [4]]))
    >>> resampled_miou([run], np.array([[2, 0], [1, 1], [0, 2]])).round(4).tolist()
    [[0.5], [0.8333], [1.0]]
    """
    flat = np.concatenate([part for run in runs for part in (run.hits, run.unions)], axis=1).astype(np.float64)
    summed = (draws.astype(np.float64) @ flat).reshape(len(draws), len(runs), 2, -1)
    return mean_iou(summed[:, :, 0], summed[:, :, 1])


def bootstrap_difference(
    arm: Sequence[ImageCounts],
    other: Sequence[ImageCounts],
    resamples: int = RESAMPLES,
    seed: int = 0,
    level: float = 0.95,
) -> ImageBootstrap:
    """Resample images jointly for both arms and all seeds; the difference is the seeds' mean of arm minus other.

    ``arm`` and ``other`` hold one :class:`ImageCounts` a seed, all of the same images in the same order (ValueError
    otherwise). The sign p is twice the smaller share of resamples on one side of 0, the data counted as one of them.

    >>> better, worse = (ImageCounts(np.array([[h], [h], [h]]), np.full((3, 1), 8)) for h in (6, 4))
    >>> result = bootstrap_difference([better], [worse], resamples=99)
    >>> result.low, result.high, result.p
    (0.25, 0.25, 0.02)
    """
    runs = [*arm, *other]
    if len(arm) != len(other) or not arm:
        raise ValueError(f"a paired bootstrap needs as many runs of both arms, got {len(arm)} and {len(other)}")
    if len({run.hits.shape for run in runs}) > 1 or len({run.targets for run in runs}) > 1:
        raise ValueError("a paired bootstrap needs the same images and classes in the same order in every run")
    images = runs[0].images
    scores = np.concatenate([resampled_miou(runs, draws) for draws in image_draws(images, resamples, seed)])
    differences = scores[:, : len(arm)].mean(1) - scores[:, len(arm) :].mean(1)
    low, high = np.quantile(differences, [(1 - level) / 2, (1 + level) / 2])
    one_side = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    estimate = np.mean([run.miou for run in arm]) - np.mean([run.miou for run in other])
    p = min(1.0, 2 * (one_side + 1) / (resamples + 1))
    return ImageBootstrap(float(estimate), float(low), float(high), p, level, resamples, images)
