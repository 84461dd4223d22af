"""Numbers as a reader wants them: few digits, one unit a column, real minus signs."""

from __future__ import annotations

from collections.abc import Iterable

MISSING = "–"
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def percent(value: float | None, digits: int = 2) -> str:
    """Return a fraction as a percentage without its sign.

    >>> percent(0.51234)
    '51.23'
    """
    return MISSING if value is None else f"{100 * value:.{digits}f}"


def points(value: float | None, digits: int = 2) -> str:
    """Return a difference of fractions in percentage points, always with its sign.

    >>> points(0.0561), points(-0.004)
    ('+5.61', '−0.40')
    """
    if value is None:
        return MISSING
    text = f"{100 * abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else "−") + text


def unit_of(values: Iterable[float | None]) -> tuple[float, str]:
    """Return the largest unit in which the smallest of ``values`` still has a digit before or after the point.

    >>> unit_of([61.1e6, 1.2e6])
    (1000000.0, 'M')
    """
    known = [value for value in values if value]
    least = min(known, default=1.0)
    return next((scale, name) for scale, name in (*_UNITS, (0.0, "")) if least >= 0.1 * scale)


def scaled(value: float | None, unit: float) -> str:
    """Return ``value`` in ``unit`` with two decimals below 100 and one above."""
    if value is None:
        return MISSING
    return f"{value / unit:,.2f}"


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
