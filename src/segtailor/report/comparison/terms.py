"""The terms of Knowledge Tailoring along the steps, for every arm that has any."""

from __future__ import annotations

from dataclasses import dataclass

from segtailor.report.comparison.plot import Curve, Plot, draw
from segtailor.report.comparison.series import Series, arm_series, term
from segtailor.report.comparison.source import Source

PREFIX = "kt."
MEANINGS = {
    "kt.kd": "channel-wise KL on the logits",
    "kt.kd_aux": "the same on auxiliary logits",
    "kt.lt_all": "tailored logits, all pixels",
    "kt.lt_class": "tailored logits, inside each class",
    "kt.lt_nonclass": "tailored logits, outside each class",
    "kt.ft": "tailored features",
    "kt.contrastive": "triplet on tailored features",
}


@dataclass
class ArmTerms:
    """One arm and a plot for each of its terms."""

    arm: str
    method: str
    plots: list[Plot]


def tailoring_terms(source: Source) -> list[ArmTerms]:
    """Return each arm's plots of the terms that start with ``kt.``, all with one axis of steps."""
    found: dict[str, dict[str, Series]] = {}
    for result in source.board.arms:
        for name in _names(source, result.arm):
            series = arm_series(source, result.arm, term(name))
            if series is not None:
                found.setdefault(result.arm, {})[name] = series
    ends = [series.points[-1][0] for terms in found.values() for series in terms.values()]
    x_range = (0.0, float(max(ends, default=1)))
    return [
        ArmTerms(arm, source.method(arm), [_plot(name, series, x_range) for name, series in terms.items()])
        for arm, terms in found.items()
    ]


def _plot(name: str, series: Series, x_range: tuple[float, float]) -> Plot:
    first, last = series.points[0], series.points[-1]
    summary = f"{series.arm}: {first[1]:.3g} at step {first[0]:,.0f}, {last[1]:.3g} at step {last[0]:,.0f}"
    curve = Curve(series.arm, name, "distilled", series.points)
    return draw(Plot(name, MEANINGS.get(name, ""), "training step", [curve], summary), x_range, smooth=True, steps=3)


def _names(source: Source, arm: str) -> list[str]:
    """Return the names in the order in which the runs first log them."""
    names: dict[str, None] = {}
    for records in source.records[arm].values():
        for record in records:
            names.update(dict.fromkeys(name for name in record.get("terms") or {} if name.startswith(PREFIX)))
    return list(names)
