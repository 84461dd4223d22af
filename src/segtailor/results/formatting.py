"""Formatted numbers: few digits, one unit a column, real minus signs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from segtailor.files import Color
from segtailor.results.statistics import ImageBootstrap, Interval, Spread

MISSING = "–"
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def percent(value: float | None, digits: int = 2) -> str:
    """Return a fraction as a percentage without the percent sign; no minus in front of 0.

    >>> percent(0.51234), percent(-0.2, 1), percent(-0.004, 0)
    ('51.23', '−20.0', '0')
    """
    return MISSING if value is None else _signed(100 * value, digits, "")


def points(value: float | None, digits: int = 2) -> str:
    """Return a difference of fractions in percentage points, always with its sign.

    >>> points(0.0561), points(-0.004)
    ('+5.61', '−0.40')
    """
    return MISSING if value is None else _signed(100 * value, digits, "+")


def tone(text: str) -> str:
    """Return the color class of a difference as :func:`points` prints it: gain, loss, or none where it prints 0.

    >>> tone("+5.61"), tone("−0.40"), tone("0.0")
    ('gain', 'loss', '')
    """
    return {"+": "gain", "−": "loss"}.get(text[:1], "")


def mean_and_std(found: Spread | None) -> str:
    """Return mean and standard deviation of fractions in percent.

    >>> mean_and_std(Spread(0.5, 0.0125, 3)), mean_and_std(Spread(0.5, None, 1))
    ('50.00 ± 1.25', '50.00')
    """
    if found is None:
        return MISSING
    return percent(found.mean) + ("" if found.std is None else f" ± {percent(found.std)}")


def interval(found: Interval | ImageBootstrap | None, digits: int = 2) -> str:
    """Return an interval of differences in points.

    >>> interval(Interval(-0.01, 0.02, 0.95), 1)
    '−1.0 to +2.0'
    """
    return MISSING if found is None else f"{points(found.low, digits)} to {points(found.high, digits)}"


def p_value(value: float | None) -> str:
    """Return a p value with three decimals.

    >>> p_value(0.0421), p_value(0.0001)
    ('0.042', '< 0.001')
    """
    if value is None:
        return MISSING
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def unit_of(values: Iterable[float | None]) -> tuple[float, str]:
    """Return the largest unit in which the smallest of ``values`` is at least 0.1.

    >>> unit_of([61.1e6, 1.2e6])
    (1000000.0, 'M')
    """
    known = [value for value in values if value]
    least = min(known, default=1.0)
    return next((scale, name) for scale, name in (*_UNITS, (0.0, "")) if least >= 0.1 * scale)


def scaled(value: float | None, unit: float, name: str = "") -> str:
    """Return ``value`` in ``unit`` with two decimals, and the unit's name.

    >>> scaled(2**30, 2**30, "GiB")
    '1.00 GiB'
    """
    return MISSING if value is None else f"{value / unit:,.2f} {name}".rstrip()


def ratio(whole: float | None, part: float | None) -> str:
    """Return how many times ``part`` goes into ``whole``.

    >>> ratio(61.1e6, 13.6e6)
    '4.5×'
    """
    return f"{whole / part:.1f}×" if whole and part else MISSING


def duration(seconds: float | None) -> str:
    """Return a time in its two largest units.

    >>> duration(42), duration(125), duration(7380)
    ('42 s', '2 min 05 s', '2 h 03 min')
    """
    if seconds is None:
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def compact(value: float) -> str:
    """Return a tick's label: short, without needless zeros.

    >>> compact(0.50), compact(12000), compact(1e-05)
    ('0.5', '12k', '1e-05')
    """
    if value != 0 and abs(value) < 1e-3:
        return f"{value:.0e}"
    if abs(value) >= 10000 and value % 1000 == 0:
        return f"{value / 1000:g}k"
    return f"{value:.6g}".replace("-", "−")


def numbered(noun: str, numbers: Sequence[int]) -> str:
    """Return numbers behind their noun.

    >>> numbered("seed", [1]), numbered("seed", [0, 2])
    ('seed 1', 'seeds 0, 2')
    """
    return f"{noun}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"


def count(number: int, noun: str) -> str:
    """Return a number and its noun.

    >>> count(1, "seed"), count(3, "seed")
    ('1 seed', '3 seeds')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def css_color(color: Color) -> str:
    """Return a color as CSS writes it.

    >>> css_color((128, 64, 0))
    '#804000'
    """
    return "#{:02x}{:02x}{:02x}".format(*color)


def _signed(value: float, digits: int, plus: str) -> str:
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return (plus if value > 0 else "−") + text
