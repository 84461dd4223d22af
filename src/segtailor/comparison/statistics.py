"""Figures over seeds: mean and deviation, paired differences, t interval and test, Holm's correction, ranks.

Every function is pure and takes plain numbers. Pairs are seeds that both arms have finished: the same seed means the
same batches and the same starting student, so that its chance cancels in the difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from segtailor.comparison.student_t import t_quantile, t_two_sided

MIN_SEEDS = 5
ALPHA = 0.05
LEVEL = 0.95

_NO_SPREAD = 1e-9


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
    half = t_quantile((1 + level) / 2, found.count - 1) * found.std / math.sqrt(found.count)
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
    return t_two_sided(found.mean / (found.std / math.sqrt(found.count)), found.count - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's corrected p values, in the order given: the chance of one false finding among all stays bounded.

    >>> holm([0.25, 0.01, 0.02])
    [0.25, 0.03, 0.04]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [1.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def ranks(scores: Sequence[float]) -> list[float]:
    """Return each score's rank, 1 for the highest; equal scores share the mean of their ranks.

    >>> ranks([0.5, 0.75, 0.5, 0.25])
    [2.5, 1.0, 2.5, 4.0]
    """
    values = np.asarray(scores, dtype=np.float64)
    above = (values[None, :] > values[:, None]).sum(1)
    equal = (values[None, :] == values[:, None]).sum(1)
    return [float(rank) for rank in above + (equal + 1) / 2]


def average_ranks(scores: Sequence[Sequence[float]]) -> list[float]:
    """Return each arm's mean rank over seeds; ``scores`` holds one list a seed, one value an arm.

    >>> average_ranks([[0.5, 0.75], [0.5, 0.5]])
    [1.75, 1.25]
    """
    return [float(rank) for rank in np.mean([ranks(row) for row in scores], axis=0)]


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
    """Return what ``pairs`` paired seeds with Holm-corrected ``p`` allow to say; below 5 seeds never "differs".

    >>> verdict(3, 0.001), verdict(5, 0.001), verdict(5, 0.2), verdict(5, None)
    ('too few seeds', 'differs', 'no difference shown', 'seeds change nothing')
    """
    if pairs < MIN_SEEDS:
        return "too few seeds"
    if p is None:
        return "seeds change nothing"
    return "differs" if p < ALPHA else "no difference shown"
