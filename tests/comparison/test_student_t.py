from __future__ import annotations

import math

import numpy as np
import pytest

from segtailor.comparison.student_t import incomplete_beta, t_quantile, t_two_sided

# Published tables of Student's t: probability below, degrees of freedom, value.
TABLE = [
    (0.975, 1, 12.7062047362),
    (0.975, 2, 4.3026527297),
    (0.975, 4, 2.7764451052),
    (0.975, 5, 2.5705818356),
    (0.975, 9, 2.2621571628),
    (0.975, 10, 2.2281388520),
    (0.975, 29, 2.0452296421),
    (0.975, 100, 1.9839715185),
    (0.95, 1, 6.3137515147),
    (0.95, 10, 1.8124611228),
    (0.995, 4, 4.6040948713),
    (0.995, 30, 2.7499956536),
    (0.9, 3, 1.6377443536),
]


@pytest.mark.parametrize(("probability", "df", "value"), TABLE)
def test_quantiles_are_those_of_the_tables(probability: float, df: int, value: float) -> None:
    assert t_quantile(probability, df) == pytest.approx(value, abs=1e-9, rel=1e-9)
    assert t_quantile(1 - probability, df) == pytest.approx(-value, abs=1e-9, rel=1e-9)


@pytest.mark.parametrize("probability", [0.5000001, 0.6, 0.9, 0.975, 0.9995, 0.999999])
def test_quantiles_in_closed_form(probability: float) -> None:
    """One degree of freedom is Cauchy's distribution, two have a root."""
    assert t_quantile(probability, 1) == pytest.approx(math.tan(math.pi * (probability - 0.5)), rel=1e-7)
    two = (2 * probability - 1) * math.sqrt(2 / (4 * probability * (1 - probability)))
    assert t_quantile(probability, 2) == pytest.approx(two, rel=1e-7)


@pytest.mark.parametrize("t", [0.0, 1e-9, 0.3, 1.0, 2.5, 40.0, 1e6])
def test_two_sided_probabilities_in_closed_form(t: float) -> None:
    four = t / math.sqrt(4 + t * t)
    assert t_two_sided(t, 1) == pytest.approx(1 - 2 / math.pi * math.atan(t), abs=1e-12)
    assert t_two_sided(t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), abs=1e-12)
    assert t_two_sided(-t, 4) == pytest.approx(1 - (1.5 * four - 0.5 * four**3), abs=1e-12)


def test_many_degrees_of_freedom_are_the_normal_distribution() -> None:
    assert t_quantile(0.975, 1e7) == pytest.approx(1.959963985, abs=1e-6)
    assert t_two_sided(1.959963985, 1e7) == pytest.approx(0.05, abs=1e-6)


def test_infinite_t_has_no_tail() -> None:
    assert t_two_sided(math.inf, 3) == 0


def test_median_is_zero() -> None:
    assert t_quantile(0.5, 3) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.5), (2.0, 0.5), (3.0, 7.0), (40.0, 0.5), (5.5, 60.0)])
def test_incomplete_beta_is_the_integral_of_the_density(a: float, b: float) -> None:
    """Substituting u = sin(s)**2 takes the density's poles at 0 and 1 away."""
    s = np.linspace(0, np.pi / 2, 200_001)
    density = 2 * np.sin(s) ** (2 * a - 1) * np.cos(s) ** (2 * b - 1)
    parts = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
    for x in (0.01, 0.3, 0.5, 0.9, 0.999):
        expected = np.interp(np.arcsin(np.sqrt(x)), s, parts) / parts[-1]
        assert incomplete_beta(x, a, b) == pytest.approx(expected, abs=1e-7)
        assert incomplete_beta(x, a, b) + incomplete_beta(1 - x, b, a) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(("x", "a", "b"), [(-0.1, 1.0, 1.0), (1.1, 1.0, 1.0), (0.5, 0.0, 1.0)])
def test_outside_its_domain_is_an_error(x: float, a: float, b: float) -> None:
    with pytest.raises(ValueError, match="incomplete_beta needs"):
        incomplete_beta(x, a, b)


@pytest.mark.parametrize("probability", [0.0, 1.0, -1.0])
def test_quantile_needs_a_probability(probability: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        t_quantile(probability, 4)


def test_degrees_of_freedom_are_positive() -> None:
    with pytest.raises(ValueError, match="degrees of freedom"):
        t_two_sided(1.0, 0)
