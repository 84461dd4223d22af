"""Paired bootstrap over validation images: how far a difference of mIoU hangs on the images that were scored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from segtailor.results.model import Counts, Floats, ImageCounts, mean_iou

RESAMPLES = 2000
_DRAWS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class ImageBootstrap:
    """A difference of mIoU under resampled images: percentile interval and two-sided sign p, for networks as trained.

    It does not cover the chance of training: another seed's network may lie outside.
    """

    estimate: float
    low: float
    high: float
    p: float
    level: float
    resamples: int
    images: int


def image_draws(images: int, resamples: int, seed: int = 0) -> Iterator[Counts]:
    """Yield blocks (r, images) that say how often each resample draws each image; every row sums to ``images``.

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
