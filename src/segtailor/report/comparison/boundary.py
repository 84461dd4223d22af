"""What each arm gains at which distance from the labels' boundaries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from segtailor.report.comparison.heat import Heat, heat, mean_gain
from segtailor.report.comparison.plot import Curve, Plot, draw, height
from segtailor.report.comparison.series import Quad
from segtailor.report.comparison.source import Source
from segtailor.results.formatting import percent, points

Band = tuple[int, int | None]
"""Pixels above the first and up to the second away from another label."""


@dataclass
class BoundaryGains:
    """A plot of the gains, and the same as a heat map with a row an arm and a column a band.

    ``shares`` says how much of the scored pixels each band holds, ``alone`` and ``teacher`` their mIoU there.
    """

    plot: Plot
    bands: list[str]
    shares: list[str]
    alone: list[str]
    teacher: list[str] | None
    arms: list[str]
    heat: Heat


def boundary_gains(source: Source) -> BoundaryGains | None:
    """Return gains of mIoU over the student alone by band; None where no two runs of one seed were measured."""
    if source.baseline is None:
        return None
    alone = {seed: _rows(run.boundary) for seed, run in source.comparison.finished(source.baseline).items()}
    bands = next((list(rows) for rows in alone.values() if rows), [])
    found: dict[str, dict[Band, list[float]]] = {}
    for result in source.rivals:
        own = {seed: _rows(run.boundary) for seed, run in source.comparison.finished(result.arm).items()}
        for band in bands:
            pairs = [(_miou(own[seed], band), _miou(alone[seed], band)) for seed in result.differences]
            gains = [mine - other for mine, other in pairs if mine is not None and other is not None]
            if gains:
                found.setdefault(result.arm, {})[band] = gains
    if not found:
        return None
    by_arm = {arm: [gains.get(band) for band in bands] for arm, gains in found.items()}
    rows = [[sum(gains) / len(gains) if gains else None for gains in row] for row in by_arm.values()]
    measured = [rows for rows in alone.values() if rows]
    teacher = _rows(source.comparison.teacher.boundary if source.comparison.teacher else None)
    return BoundaryGains(
        _plot(bands, by_arm),
        [_name(band) for band in bands],
        _shares(measured[0], bands),
        [percent(mean_gain([(_miou(rows, band), 0.0) for rows in measured]), 1) for band in bands],
        [percent(_miou(teacher, band), 1) for band in bands] if teacher else None,
        list(by_arm),
        heat(rows),
    )


def _plot(bands: list[Band], by_arm: dict[str, list[list[float] | None]]) -> Plot:
    curves, ends = [], []
    for arm, row in by_arm.items():
        line: list[Quad] = []
        for place, gains in enumerate(row):
            if gains:
                low, high = 100 * min(gains), 100 * max(gains)
                line.append((float(place), 100 * sum(gains) / len(gains), low, high))
        curves.append(Curve(arm, arm, "distilled", line))
        ends.append(f"{arm} from {points(line[0][1] / 100)} nearest to {points(line[-1][1] / 100)} furthest")
    plot = Plot(
        "Gain over the student alone", "points of mIoU", "distance from a label boundary, pixels", curves,
        "; ".join(ends), tuple(by_arm)[:2], {float(place): _name(band) for place, band in enumerate(bands)},
    )  # fmt: skip
    spread = height([curve.points for curve in curves], [0.0])
    margin = 0.35  # so that the outer bands stand clear of the plot's edges
    return draw(plot, (-margin, len(bands) - 1 + margin), [("alone", "Student alone", 0.0)], spread)


def _rows(boundary: object) -> dict[Band, dict[str, Any]]:
    """Return the scores by band of what an evaluation measured; empty where it measured none."""
    rows = boundary.get("distance") if isinstance(boundary, dict) else None
    if not isinstance(rows, list):
        return {}
    return {
        (int(row["above"]), row.get("up_to")): row
        for row in rows
        if isinstance(row, dict) and isinstance(row.get("above"), int)
    }


def _miou(rows: dict[Band, dict[str, Any]], band: Band) -> float | None:
    value = rows.get(band, {}).get("miou")
    return float(value) if isinstance(value, (int, float)) else None


def _shares(rows: dict[Band, dict[str, Any]], bands: list[Band]) -> list[str]:
    pixels = [rows[band].get("pixels") or 0 for band in bands]
    total = sum(pixels)
    return [percent(count / total, 1) if total else "" for count in pixels]


def _name(band: Band) -> str:
    above, up_to = band
    if up_to is None:
        return f"> {above}"
    return str(up_to) if up_to == above + 1 else f"{above + 1}–{up_to}"
