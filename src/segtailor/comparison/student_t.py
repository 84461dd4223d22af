"""Student's t distribution without scipy: tail probability and quantile."""

from __future__ import annotations

import math

_TINY = 1e-300
_STEPS = 20_000


def incomplete_beta(x: float, a: float, b: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b), for x in [0, 1] and positive a and b.

    By its continued fraction (DLMF 8.17.22), evaluated from the front, on the side of the mean where it converges fast.

    >>> round(incomplete_beta(0.5, 2.0, 3.0), 6)
    0.6875
    """
    if not 0 <= x <= 1 or a <= 0 or b <= 0:
        raise ValueError(f"incomplete_beta needs x in [0, 1] and positive a and b, got x={x}, a={a}, b={b}")
    if x in (0.0, 1.0):
        return x
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    if x < (a + 1) / (a + b + 2):
        return math.exp(log_front) / (a * _continued(x, a, b))
    return 1 - math.exp(log_front) / (b * _continued(1 - x, b, a))


def t_two_sided(t: float, df: float) -> float:
    """Return the probability that Student's t with ``df`` degrees of freedom is at least as far from 0 as ``t``.

    >>> round(t_two_sided(2.776445, 4), 6)
    0.05
    """
    if df <= 0:
        raise ValueError(f"degrees of freedom must be positive, got {df}")
    if math.isinf(t):
        return 0.0
    if t * t < df:  # df / (df + t * t) would round a small t away
        return 1 - incomplete_beta(t * t / (df + t * t), 0.5, df / 2)
    return incomplete_beta(df / (df + t * t), df / 2, 0.5)


def t_quantile(probability: float, df: float) -> float:
    """Return the value that Student's t with ``df`` degrees of freedom stays below with this probability.

    Found by bisection on the tail probability, down to the last bit; ValueError outside (0, 1).

    >>> round(t_quantile(0.975, 4), 6)
    2.776445
    """
    if not 0 < probability < 1:
        raise ValueError(f"a quantile's probability must lie between 0 and 1, got {probability}")
    if probability < 0.5:
        return -t_quantile(1 - probability, df)
    both_tails = 2 * (1 - probability)
    low, high = 0.0, 1.0
    while t_two_sided(high, df) > both_tails:
        low, high = high, 2 * high
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return middle
        if t_two_sided(middle, df) > both_tails:
            low = middle
        else:
            high = middle


def _continued(x: float, a: float, b: float) -> float:
    """Evaluate 1 + d1 x/(1 + d2 x/(1 + ...)) by the modified Lentz recursion."""
    value, above, below = 1.0, 1.0, 0.0
    for step in range(1, _STEPS):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        below = 1 / _nonzero(1 + term * below)
        above = _nonzero(1 + term / above)
        value *= above * below
        if abs(above * below - 1) < 1e-15:
            break
    return value


def _nonzero(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
