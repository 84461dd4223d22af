from __future__ import annotations

import math

import numpy as np
import pytest

from segtailor.results.statistics import (
    gap_closed,
    holm,
    paired_differences,
    ranks,
    spread,
    t_interval,
    t_test,
    verdict,
)


def test_spread_is_mean_and_sample_deviation() -> None:
    values = [0.701, 0.712, 0.695, 0.72]
    mean = sum(values) / 4
    found = spread(values)
    assert found is not None
    assert found.std is not None
    assert found.mean == pytest.approx(mean, abs=1e-15)
    assert found.std == pytest.approx(math.sqrt(sum((value - mean) ** 2 for value in values) / 3), abs=1e-15)


def test_one_value_has_no_deviation_and_none_has_no_spread() -> None:
    found = spread([0.7])
    assert found is not None
    assert (found.mean, found.std, found.count) == (0.7, None, 1)
    assert spread([]) is None


def test_only_seeds_of_both_arms_are_paired() -> None:
    assert paired_differences({3: 0.75, 0: 0.5, 7: 0.1}, {0: 0.25, 3: 0.25, 5: 0.9}) == {0: 0.25, 3: 0.5}


def test_interval_over_five_seeds_by_the_table() -> None:
    values = [0.4, 1.1, 0.7, -0.2, 0.9]
    half = 2.7764451052 * np.std(values, ddof=1) / math.sqrt(5)
    interval = t_interval(values)
    assert interval is not None
    assert (interval.low, interval.high) == pytest.approx((np.mean(values) - half, np.mean(values) + half), abs=1e-9)


def test_no_interval_and_no_test_below_two_seeds() -> None:
    assert t_interval([0.5]) is None
    assert t_interval([]) is None
    assert t_test([0.5]) is None


def test_p_value_agrees_with_the_interval_that_just_reaches_zero() -> None:
    values = [0.4, 1.1, 0.7, -0.2, 0.9, 0.1]
    p = t_test(values)
    assert p is not None
    interval = t_interval(values, level=1 - p)
    assert interval is not None
    assert interval.low == pytest.approx(0, abs=1e-9)


def test_p_value_of_two_differences_in_closed_form() -> None:
    t = 0.6 / (math.sqrt(0.02) / math.sqrt(2))
    assert t_test([0.5, 0.7]) == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-12)


def test_seeds_that_change_nothing_are_no_sample() -> None:
    assert t_test([0.1 + 0.2, 0.3, 0.3]) is None
    assert t_test([0.0, 0.0, 0.0]) == 1.0


def test_interval_covers_a_known_difference_as_often_as_it_says() -> None:
    """5 seeds, true difference 0.4: 95 % of 4000 intervals should hold it; the standard error is 0.34 points."""
    generator = np.random.default_rng(0)
    shared = generator.normal(70, 2, (4000, 5))  # what a seed does to both arms cancels
    alone = shared + generator.normal(0, 0.3, (4000, 5))
    arm = shared + 0.4 + generator.normal(0, 0.3, (4000, 5))
    half = np.std(arm - alone, axis=1, ddof=1) / math.sqrt(5)
    first = t_interval(list(arm[0] - alone[0]))
    assert first is not None
    factor = (first.high - first.low) / 2 / half[0]  # the quantile, found once
    covered = np.abs((arm - alone).mean(1) - 0.4) <= factor * half
    assert covered.mean() == pytest.approx(0.95, abs=0.012)


def test_p_values_are_uniform_without_a_difference() -> None:
    generator = np.random.default_rng(1)
    p_values = [t_test(list(values)) for values in generator.normal(0, 1, (2000, 5))]
    assert np.mean([p is not None and p < 0.05 for p in p_values]) == pytest.approx(0.05, abs=0.015)
    assert np.mean([p is not None and p < 0.5 for p in p_values]) == pytest.approx(0.5, abs=0.035)


def test_holm_by_hand() -> None:
    """Sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1: 0.02, 0.03, 0.06, and 0.04 raised to 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02], abs=1e-15)


def test_holm_stays_below_one_and_keeps_a_single_value() -> None:
    assert holm([0.7, 0.9]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_ranks_share_ties() -> None:
    assert ranks([[0.7, 0.9, 0.7, 0.7, 0.1]]).tolist() == [[3.0, 1.0, 3.0, 3.0, 5.0]]
    assert ranks([[0.2]]).tolist() == [[1.0]]


def test_average_ranks_over_seeds() -> None:
    seeds = [[0.3, 0.2, 0.1], [0.1, 0.2, 0.3], [0.3, 0.3, 0.1]]
    assert ranks(seeds).mean(0) == pytest.approx([5.5 / 3, 5.5 / 3, 7 / 3])


def test_gap_closed_is_a_ratio_of_means_over_paired_seeds() -> None:
    arm, alone = {0: 0.72, 1: 0.70, 2: 0.99}, {0: 0.70, 1: 0.66}
    assert gap_closed(arm, alone, 0.78) == pytest.approx(0.03 / 0.10)
    assert gap_closed({0: 0.65}, {0: 0.70}, 0.75) == pytest.approx(-1.0)


def test_no_gap_nothing_closed() -> None:
    assert gap_closed({0: 0.8}, {0: 0.7}, 0.7) is None
    assert gap_closed({0: 0.8}, {1: 0.7}, 0.9) is None


@pytest.mark.parametrize("pairs", [0, 1, 2, 3, 4])
def test_below_five_seeds_nothing_differs(pairs: int) -> None:
    assert verdict(pairs, 1e-9) == "too few seeds"


def test_verdict_from_five_seeds_on() -> None:
    assert verdict(5, 0.049) == "differs"
    assert verdict(5, 0.05) == "no difference shown"
