"""The plots of a comparison's page: curves over seeds, gains by distance, costs against gains, ranks, and terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from segtailor.report.comparison_tables import average, heat, seed_gains
from segtailor.report.read import Records, Source, logged
from segtailor.report.svg import (
    Dot,
    Line,
    Plot,
    Point,
    Range,
    draw,
    extent,
    label_dots,
    marks,
    nice_ticks,
    over_seeds,
    score_table,
    share,
    thinned,
)
from segtailor.results.formatting import duration, numbered, percent, points, scaled
from segtailor.results.leaderboard import ArmResult
from segtailor.results.model import Outcome, Row
from segtailor.results.statistics import ranks

CLIMB = 0.2
"""Share of the steps whose steep climb may leave the plots at the bottom: what follows would be a flat line."""
TERM_POINTS = 100
"""Points of a term's curve; every arm has several."""


@dataclass(frozen=True)
class Series:
    """One figure of one arm along the steps, over ``seeds``."""

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
    return Series(tuple(finished), thinned(means, most)) if means else None


def scores(records: Records) -> list[Range]:
    """Return validation mIoU in percent by step; of the averaged weights where a run keeps them."""
    lines = [record for record in records if record["kind"] == "evaluate"]
    averaged = [record for record in lines if record.get("weights") == "ema"]
    return [(step, 100 * miou) for step, miou in logged(averaged or lines, lambda record: record.get("miou"))]


def term(name: str) -> Callable[[Records], list[Range]]:
    """Return the function that finds the term ``name`` by step."""
    return lambda records: logged(records, lambda record: (record.get("terms") or {}).get(name))


def score_curves(source: Source) -> dict[str, Any] | None:
    """Return the validation curves, None before the first evaluation.

    They are all arms in one plot, two of them in front; each beside the student alone; and the means as a table.
    """
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
        lines = [Line(arm, _label(source, arm, found[arm]), source.role(arm), found[arm].points) for arm in arms]
        ends = "; ".join(f"{arm} ends at {percent(found[arm].points[-1][1] / 100)} %" for arm in arms)
        return draw(Plot(title, unit, lines, ends, front=front), (0.0, last), levels, y_range, steps=steps)

    rivals = [arm for arm in found if arm != source.baseline]
    alone = [arm for arm in found if arm == source.baseline]
    front = (*rivals[:1], *(alone or rivals[1:2]))
    return {
        "together": plotted("Validation mIoU, all arms", "%", list(found), front),
        "each": [plotted(arm, "", [*alone, arm], steps=3) for arm in rivals if alone],
        "table": score_table({arm: series.points for arm, series in found.items()}),
    }


def _label(source: Source, arm: str, series: Series) -> str:
    """Return the arm's name, with the seeds behind the line when they are not all."""
    seeds = series.seeds
    if len(seeds) == len(source.comparison.seeds):
        return arm
    consecutive = len(seeds) > 2 and all(after == before + 1 for before, after in pairwise(seeds))
    listed = f"seeds {seeds[0]} to {seeds[-1]}" if consecutive else numbered("seed", seeds)
    return f"{arm} ({listed}{'' if source.comparison.finished(arm) else ', not finished'})"


Band = tuple[int, int | None]
"""Pixels above the first and up to the second away from another label."""


def boundary_gains(source: Source) -> dict[str, Any] | None:
    """Return gains of mIoU over the student alone by band; None where no two runs of one seed were measured.

    They are a plot and colored cells with a row an arm and a column a band; ``shares`` are each band's shares of the
    scored pixels, ``alone`` and ``teacher`` their mIoU there.
    """
    comparison = source.comparison
    alone = comparison.finished(source.baseline) if source.baseline is not None else {}
    levels = _by_band(alone)
    lines, ends, means = [], [], []
    for result in source.rivals:
        own = _by_band(comparison.finished(result.arm))
        gains = [seed_gains(own.get(band, {}), level) for band, level in levels.items()]
        line = [
            (float(place), 100 * sum(each) / len(each), 100 * min(each), 100 * max(each))
            for place, each in enumerate(gains)
            if each
        ]
        if line:
            lines.append(Line(result.arm, result.arm, "distilled", line))
            first, last = (points(line[place][1] / 100) for place in (0, -1))
            ends.append(f"{result.arm} from {first} nearest to {last} furthest")
            means.append([average(each) for each in gains])
    if not lines:
        return None
    arms = [line.name for line in lines]
    names = {float(place): _band_name(band) for place, band in enumerate(levels)}
    plot = Plot("Gain over the student alone", "points of mIoU", lines, "; ".join(ends),
                "distance from a label boundary, pixels", tuple(arms[:2]), names)  # fmt: skip
    margin = 0.35  # so that the outer bands keep clear of the plot's edges
    draw(plot, (-margin, len(levels) - 1 + margin), [("alone", "Student alone", 0.0)],
         extent([line.points for line in lines], [0.0]))  # fmt: skip
    measured = next(rows for run in alone.values() if (rows := _distances(run)))
    pixels = [row.get("pixels") or 0 for row in measured]
    teacher = _by_band({0: comparison.teacher} if comparison.teacher else {})
    return {
        "plot": plot,
        "bands": list(names.values()),
        "shares": [percent(count / sum(pixels), 1) if sum(pixels) else "" for count in pixels],
        "alone": [percent(average(level.values()), 1) for level in levels.values()],
        "teacher": [percent(teacher.get(band, {}).get(0), 1) for band in levels] if teacher else None,
        "arms": arms,
        "heat": heat(means),
    }


def _distances(run: Outcome | Row) -> list[dict[str, Any]]:
    """Return an evaluation's scores by distance; empty where it measured none."""
    found: list[dict[str, Any]] = (run.boundary or {}).get("distance", [])
    return found


def _by_band(runs: Mapping[int, Outcome] | Mapping[int, Row]) -> dict[Band, dict[int, float | None]]:
    """Return the runs' mIoU by band, then by seed."""
    found: dict[Band, dict[int, float | None]] = {}
    for seed, run in runs.items():
        for row in _distances(run):
            found.setdefault((row["above"], row["up_to"]), {})[seed] = row.get("miou")
    return found


def _band_name(band: Band) -> str:
    above, up_to = band
    if up_to is None:
        return f"> {above}"
    return str(up_to) if up_to == above + 1 else f"{above + 1}–{up_to}"


def cost_plots(source: Source) -> list[dict[str, Any]]:
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
) -> dict[str, Any] | None:
    """Return one plot of gain, upwards, against a cost; ``zero`` is the height of the student alone."""
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
    return {
        "title": title,
        "axis": axis,
        "dots": dots,
        "x_ticks": marks(x_ticks, x_range),
        "y_ticks": marks(y_ticks, y_range),
        "zero": 100 * share(0.0, y_range),
        "summary": "; ".join(f"{dot.name}: {dot.gain}, {dot.cost}" for dot in dots),
    }


def rank_plot(source: Source) -> dict[str, Any] | None:
    """Return the ranks over the seeds that every arm with a result has finished, best mean first; None without any.

    A row's ``places`` are (percent along the track, dots below its middle), one a seed, none hidden; ``ticks`` are
    (percent, rank), of which a narrow page has no room for the ``minor``.
    """
    seeds = list(source.board.rank_seeds)
    ranked = [result for result in source.board.arms if result.rank is not None]
    if not seeds or len(ranked) < 2:
        return None
    by_arm = ranks([[result.scores[seed] for result in ranked] for seed in seeds]).T.tolist()
    last = len(ranked)
    span = (1.0, float(last))
    rows: list[dict[str, Any]] = []
    for result, own in zip(ranked, by_arm, strict=True):
        mean = result.rank or 0.0
        rows.append({
            "arm": result.arm,
            "role": source.role(result.arm),
            "mean": f"{mean:.1f}",
            "each": ", ".join(f"{rank:g}" for rank in own),
            "at": 100 * share(mean, span),
            "places": [
                (100 * share(rank, span), own[:number].count(rank) - (own.count(rank) - 1) / 2)
                for number, rank in enumerate(own)
            ],
        })  # fmt: skip
    step = 1 if last <= 15 else 5
    numbers = sorted({1, last, *range(step, last + 1, step)})
    return {
        "rows": sorted(rows, key=lambda row: row["at"]),
        "seeds": seeds,
        "ticks": [(100 * share(number, span), number) for number in numbers],
        "minor": {number for number in numbers if number not in (1, last) and (number % 5 or last - number < 2)},
        "layers": round(2 * max(layer for row in rows for _, layer in row["places"])),
    }


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

    def plotted(arm: str, name: str, points: list[Point]) -> Plot:
        (first, start, *_), (last, end, *_) = points[0], points[-1]
        summary = f"{arm}: {start:.3g} at step {first:,.0f}, {end:.3g} at step {last:,.0f}"
        return draw(Plot(name, "", [Line(arm, name, "distilled", points)], summary), x_range, smooth=True, steps=3)

    return [
        (arm, source.method(arm), [plotted(arm, name, series.points) for name, series in terms.items()])
        for arm, terms in found.items()
        if terms
    ]
