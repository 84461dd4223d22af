"""The plots of a comparison's page: curves over seeds, gains by distance, costs against gains, ranks, and terms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from segtailor.report.comparison_tables import Heat, heat, mean_gain, seed_gains
from segtailor.report.read import Records, Source, logged
from segtailor.report.svg import (
    Dot,
    Line,
    Mark,
    Plot,
    Point,
    Range,
    draw,
    extent,
    label_dots,
    marks,
    nice_ticks,
    over_seeds,
    share,
    thinned,
)
from segtailor.results.formatting import duration, percent, points, scaled
from segtailor.results.leaderboard import ArmResult
from segtailor.results.statistics import ranks

CLIMB = 0.2
"""Share of the steps whose steep climb may leave the plots at the bottom: what follows would be a flat line."""
TERM_POINTS = 100
"""Points of a term's curve; every arm has several."""


@dataclass(frozen=True)
class Series:
    """One figure of one arm along the steps, over ``seeds``."""

    arm: str
    seeds: tuple[int, ...]
    points: list[Point]


def arm_series(source: Source, arm: str, value: Callable[[Records], list[Range]], most: int = 300) -> Series | None:
    """Return what ``value`` finds in the arm's finished runs, at ``most`` points; None when it finds nothing.

    An arm without a finished run is shown by the one that came furthest: a mean over runs of different length would
    jump where one ends.
    """
    found = {seed: curve for seed, records in source.records[arm].items() if (curve := value(records))}
    finished = {seed: found[seed] for seed in source.comparison.finished(arm) if seed in found}
    if not finished and found:
        furthest = max(found, key=lambda seed: found[seed][-1][0])
        finished = {furthest: found[furthest]}
    means = over_seeds(finished)
    return Series(arm, tuple(finished), thinned(means, most)) if means else None


def scores(records: Records) -> list[Range]:
    """Return validation mIoU in percent by step; of the averaged weights where a run keeps them."""
    lines = [record for record in records if record["kind"] == "evaluate"]
    averaged = [record for record in lines if record.get("weights") == "ema"]
    return [(step, 100 * miou) for step, miou in logged(averaged or lines, lambda record: record.get("miou"))]


def term(name: str) -> Callable[[Records], list[Range]]:
    """Return the function that finds the term ``name`` by step."""
    return lambda records: logged(records, lambda record: (record.get("terms") or {}).get(name))


@dataclass
class ScoreCurves:
    """All arms in one plot, two of them in front; each beside the student alone; and the means as a table."""

    together: Plot
    each: list[Plot]
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def score_curves(source: Source) -> ScoreCurves | None:
    """Return the validation curves; None before the first evaluation."""
    order = [result.arm for result in source.board.arms]
    found = {arm: series for arm in order if (series := arm_series(source, arm, scores)) is not None}
    if not found:
        return None
    last = float(max(series.points[-1][0] for series in found.values()))
    teacher = source.comparison.teacher_miou
    levels = [("teacher", "Teacher", 100 * teacher)] if teacher is not None else []
    late = [[point for point in series.points if point[0] >= CLIMB * last] for series in found.values()]
    late = [curve for curve in late if curve] or [series.points for series in found.values()]
    y_range = extent(late, [level for _, _, level in levels])

    def plotted(title: str, unit: str, arms: list[str], front: tuple[str, ...] = (), steps: int = 5) -> Plot:
        lines = [Line(arm, _label(source, found[arm]), source.role(arm), found[arm].points) for arm in arms]
        ends = "; ".join(f"{arm} ends at {percent(found[arm].points[-1][1] / 100)} %" for arm in arms)
        return draw(Plot(title, unit, lines, ends, front=front), (0.0, last), levels, y_range, steps=steps)

    together = plotted("Validation mIoU, all arms", "%", list(found), _front(source, list(found)))
    rivals = [result.arm for result in source.rivals if result.arm in found]
    alone = source.baseline if source.baseline in found else None
    each = [plotted(arm, "", [alone, arm], steps=3) for arm in rivals] if alone is not None else []
    steps = sorted({point[0] for series in found.values() for point in series.points})
    by_arm = {arm: {point[0]: point[1] for point in series.points} for arm, series in found.items()}
    rows = [
        (f"{step:,.0f}", [percent(means[step] / 100) if step in means else "" for means in by_arm.values()])
        for step in steps
    ]
    return ScoreCurves(together, each, list(found), rows)


def _front(source: Source, arms: list[str]) -> tuple[str, ...]:
    """Return the best arm and the student alone, or what comes next to them."""
    first = next((arm for arm in arms if arm != source.baseline), arms[0])
    second = source.baseline if source.baseline in arms else next((arm for arm in arms if arm != first), None)
    return (first,) if second is None or second == first else (first, second)


def _label(source: Source, series: Series) -> str:
    """Return the arm's name, with the seeds behind the line when they are not all."""
    seeds = series.seeds
    if len(seeds) == len(source.comparison.seeds):
        return series.arm
    consecutive = len(seeds) > 2 and all(after == before + 1 for before, after in pairwise(seeds))
    listed = f"{seeds[0]} to {seeds[-1]}" if consecutive else ", ".join(map(str, seeds))
    finished = bool(source.comparison.finished(series.arm))
    return f"{series.arm} ({'seeds' if len(seeds) > 1 else 'seed'} {listed}{'' if finished else ', not finished'})"


Band = tuple[int, int | None]
"""Pixels above the first and up to the second away from another label."""


@dataclass
class BoundaryGains:
    """A plot of the gains by distance, and the same as colored cells with a row an arm and a column a band.

    ``shares`` are each band's shares of the scored pixels, ``alone`` and ``teacher`` their mIoU there.
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
    comparison = source.comparison
    alone = {seed: _by_band(run.boundary) for seed, run in comparison.finished(source.baseline).items()}
    bands = next((list(rows) for rows in alone.values() if rows), [])
    levels = {band: {seed: _miou(rows, band) for seed, rows in alone.items()} for band in bands}
    lines, ends, means = [], [], []
    for result in source.rivals:
        own = {seed: _by_band(run.boundary) for seed, run in comparison.finished(result.arm).items()}
        rows = [{seed: _miou(own[seed], band) for seed in result.differences} for band in bands]
        gains = [seed_gains(row, levels[band]) for row, band in zip(rows, bands, strict=True)]
        line = [
            (float(place), 100 * sum(each) / len(each), 100 * min(each), 100 * max(each))
            for place, each in enumerate(gains)
            if each
        ]
        if line:
            lines.append(Line(result.arm, result.arm, "distilled", line))
            first, last = (points(line[place][1] / 100) for place in (0, -1))
            ends.append(f"{result.arm} from {first} nearest to {last} furthest")
            means.append([sum(each) / len(each) if each else None for each in gains])
    if not lines:
        return None
    arms = [line.name for line in lines]
    names = {float(place): _band_name(band) for place, band in enumerate(bands)}
    plot = Plot("Gain over the student alone", "points of mIoU", lines, "; ".join(ends),
                "distance from a label boundary, pixels", tuple(arms[:2]), names)  # fmt: skip
    margin = 0.35  # so that the outer bands keep clear of the plot's edges
    draw(plot, (-margin, len(bands) - 1 + margin), [("alone", "Student alone", 0.0)],
         extent([line.points for line in lines], [0.0]))  # fmt: skip
    measured = next(rows for rows in alone.values() if rows)
    pixels = [measured[band].get("pixels") or 0 for band in bands]
    zero = dict.fromkeys(alone, 0.0)
    teacher = _by_band(comparison.teacher.boundary if comparison.teacher else None)
    return BoundaryGains(
        plot,
        list(names.values()),
        [percent(count / sum(pixels), 1) if sum(pixels) else "" for count in pixels],
        [percent(mean_gain(levels[band], zero), 1) for band in bands],
        [percent(_miou(teacher, band), 1) for band in bands] if teacher else None,
        arms,
        heat(means),
    )


def _by_band(boundary: dict[str, Any] | None) -> dict[Band, dict[str, Any]]:
    """Return an evaluation's scores by band; empty where it measured none."""
    return {(row["above"], row["up_to"]): row for row in (boundary or {}).get("distance", [])}


def _miou(rows: dict[Band, dict[str, Any]], band: Band) -> float | None:
    return rows.get(band, {}).get("miou")


def _band_name(band: Band) -> str:
    above, up_to = band
    if up_to is None:
        return f"> {above}"
    return str(up_to) if up_to == above + 1 else f"{above + 1}–{up_to}"


@dataclass
class Scatter:
    """One plot of gain, upwards, against one cost; ``zero`` is the height of the student alone."""

    title: str
    axis: str
    dots: list[Dot]
    x_ticks: list[Mark]
    y_ticks: list[Mark]
    zero: float
    summary: str


def cost_plots(source: Source) -> list[Scatter]:
    """Return gain against training time and against peak memory, as far as they were measured."""
    most = max((result.seconds_alone or 0.0 for result in source.board.arms), default=0.0)
    unit, name = (1.0, "seconds") if most < 180 else (60.0, "minutes") if most < 3 * 3600 else (3600.0, "hours")
    plots = [
        _scatter(source, "Training time, each arm trained alone", name, unit, lambda result: result.seconds_alone),
        _scatter(source, "Peak memory of training", "GiB", 2.0**30, lambda result: result.peak_bytes),
    ]
    return [plot for plot in plots if plot is not None]


def _scatter(
    source: Source, title: str, axis: str, unit: float, cost: Callable[[ArmResult], float | None]
) -> Scatter | None:
    known = [
        (result, value, [100 * gain for gain in result.differences.values()] or [0.0])
        for result in source.board.arms
        if (value := cost(result)) is not None and (result.differences or result.arm == source.baseline)
    ]
    if not any(result.differences for result, _, _ in known):
        return None
    costs = [value / unit for _, value, _ in known]
    margin = 0.05 * (max(costs) - min(costs))
    x_ticks = nice_ticks(max(0.0, min(costs) - margin), max(costs) + margin, 6)
    every = [gain for _, _, gains in known for gain in gains]
    y_ticks = nice_ticks(min(0.0, *every), max(0.0, *every))
    x_range, y_range = (x_ticks[0], x_ticks[-1]), (y_ticks[0], y_ticks[-1])
    dots = []
    for number, (result, value, gains) in enumerate(known, start=1):
        mean = sum(gains) / len(gains)
        y, low, high = (100 * share(height, y_range) for height in (mean, min(gains), max(gains)))
        text = scaled(value, unit, axis) if axis == "GiB" else duration(value)
        gain = "the student alone" if result.arm == source.baseline else f"{points(mean / 100)} points"
        x = 100 * share(value / unit, x_range)
        dots.append(Dot(number, result.arm, source.role(result.arm), x, y, low, high, text, gain))
    label_dots(dots)
    summary = "; ".join(f"{dot.name}: {dot.gain}, {dot.cost}" for dot in dots)
    zero = 100 * share(0.0, y_range)
    return Scatter(title, axis, dots, marks(x_ticks, x_range), marks(y_ticks, y_range), zero, summary)


@dataclass
class RankRow:
    """One arm's ranks: ``places`` are (percent along the track, dots below its middle), one a seed, none hidden."""

    arm: str
    role: str
    mean: str
    each: str
    at: float
    places: list[tuple[float, float]]


@dataclass
class Ranks:
    """The rank plot, best mean first; ``ticks`` are (percent, rank)."""

    rows: list[RankRow]
    seeds: list[int]
    ticks: list[tuple[float, int]]
    layers: int

    @property
    def minor(self) -> set[int]:
        """The numbers that a narrow page has no room for."""
        last = self.ticks[-1][1]
        return {number for _, number in self.ticks if number not in (1, last) and (number % 5 or last - number < 2)}


def rank_plot(source: Source) -> Ranks | None:
    """Return the ranks over the seeds that every arm with a result has finished; None without such a seed."""
    seeds = list(source.board.rank_seeds)
    ranked = [result for result in source.board.arms if result.rank is not None]
    if not seeds or len(ranked) < 2:
        return None
    by_seed = [ranks([result.scores[seed] for result in ranked]) for seed in seeds]
    span = (1.0, float(len(ranked)))
    rows = []
    for place, result in enumerate(ranked):
        own = [row[place] for row in by_seed]
        dots = [
            (100 * share(rank, span), own[:number].count(rank) - (own.count(rank) - 1) / 2)
            for number, rank in enumerate(own)
        ]
        mean = result.rank or 0.0
        each = ", ".join(f"{rank:g}" for rank in own)
        rows.append(RankRow(result.arm, source.role(result.arm), f"{mean:.1f}", each, 100 * share(mean, span), dots))
    rows.sort(key=lambda row: row.at)
    step = 1 if len(ranked) <= 15 else 5
    numbers = sorted({1, len(ranked), *range(step, len(ranked) + 1, step)})
    deepest = max(layer for row in rows for _, layer in row.places)
    return Ranks(rows, seeds, [(100 * share(number, span), number) for number in numbers], round(2 * deepest))


def arm_terms(source: Source) -> list[tuple[str, str, list[Plot]]]:
    """Return each arm, its method, and a plot of each of the method's terms, all with one axis of steps."""
    found: dict[str, dict[str, Series]] = {}
    for result in source.board.arms:
        records = [record for run in source.records[result.arm].values() for record in run]
        names = dict.fromkeys(name for record in records for name in record.get("terms") or {})
        terms = {name: arm_series(source, result.arm, term(name), TERM_POINTS) for name in names if "." in name}
        found[result.arm] = {name: series for name, series in terms.items() if series is not None}
    ends = [series.points[-1][0] for terms in found.values() for series in terms.values()]
    x_range = (0.0, float(max(ends, default=1)))
    return [
        (arm, source.method(arm), [_term_plot(name, series, x_range) for name, series in terms.items()])
        for arm, terms in found.items()
        if terms
    ]


def _term_plot(name: str, series: Series, x_range: Range) -> Plot:
    first, last = series.points[0], series.points[-1]
    summary = f"{series.arm}: {first[1]:.3g} at step {first[0]:,.0f}, {last[1]:.3g} at step {last[0]:,.0f}"
    line = Line(series.arm, name, "distilled", series.points)
    return draw(Plot(name, "", [line], summary), x_range, smooth=True, steps=3)
