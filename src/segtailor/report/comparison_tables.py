"""The tables of a comparison's page: the leaderboard, and gains as colored cells."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from segtailor.report.read import Source, class_colors
from segtailor.report.svg import nice_ticks, share
from segtailor.results.formatting import (
    MISSING,
    duration,
    interval,
    mean_and_std,
    p_value,
    percent,
    points,
    scaled,
    tone,
    unit_of,
)
from segtailor.results.leaderboard import ArmResult
from segtailor.results.model import Row
from segtailor.results.tables import finished_seeds

LONGEST_REASON = 120  # in the table; the page's list of problems has it whole
Units = tuple[tuple[float, str], tuple[float, str]]


@dataclass
class Figure:
    """One cell: the figure, the number to sort by (empty: always last), and small lines below."""

    text: str
    sort: str = ""
    small: list[str] = field(default_factory=list)
    tone: str = ""


@dataclass
class ArmRow:
    """One arm; ``dots`` are its seeds' places on the strip in percent, ``at`` that of their mean.

    ``marks`` are (status, text) of the runs that are not in the means.
    """

    arm: str
    method: str
    role: str
    seeds: str
    marks: list[tuple[str, str]]
    dots: list[float]
    at: float | None
    each: str
    cells: dict[str, Figure]


@dataclass
class Table:
    """All rows, highest mean first; columns without any figure are not in ``columns``."""

    rows: list[ArmRow]
    columns: list[str]
    low: str
    high: str
    teacher: dict[str, str] | None


def leaderboard(source: Source) -> Table:
    """Return the table, and the teacher's row where it has been scored."""
    arms, teacher = source.board.arms, source.comparison.teacher
    everything = [score for result in arms for score in result.scores.values()]
    low, high = (min(everything), max(everything)) if everything else (0.0, 1.0)
    models: list[ArmResult | Row] = [*arms, *([teacher] if teacher else [])]
    units = unit_of(model.parameters for model in models), unit_of(model.multiply_adds for model in models)
    rows = [_row(source, result, (low, high), units) for result in arms]
    columns = [name for name in rows[0].cells if {row.cells[name].text for row in rows} - {MISSING, "baseline"}]
    shown = None
    if teacher is not None:
        own = _size(teacher, units)
        shown = {"model": teacher.model, "miou": percent(teacher.miou), "parameters": own.text,
                 "multiply_adds": " ".join(own.small)}  # fmt: skip
    return Table(rows, columns, percent(low, 1), percent(high, 1), shown)


def _row(source: Source, result: ArmResult, strip: tuple[float, float], units: Units) -> ArmRow:
    planned = len(source.comparison.seeds)
    return ArmRow(
        arm=result.arm,
        method=source.method(result.arm),
        role=source.role(result.arm),
        seeds="" if len(result.scores) == planned else f"{finished_seeds(source.board, result)} seeds",
        marks=_marks(source, result),
        dots=[100 * share(score, strip) for score in result.scores.values()],
        at=100 * share(result.last.mean, strip) if result.last else None,
        each=", ".join(f"seed {seed}: {percent(score)}" for seed, score in result.scores.items()),
        cells={
            "miou": Figure(mean_and_std(result.last), _number(result.last.mean if result.last else None)),
            "best": _best(result),
            "gain": _gain(result),
            "p": _p(result),
            "rank": Figure(MISSING if result.rank is None else f"{result.rank:.1f}", _number(result.rank)),
            "closed": Figure(percent(result.gap_closed, 0), _number(result.gap_closed)),
            "time": _time(source, result),
            "memory": Figure(scaled(result.peak_bytes, 2.0**30), _number(result.peak_bytes)),
            "parameters": _size(result, units),
        },
    )


def _marks(source: Source, result: ArmResult) -> list[tuple[str, str]]:
    """Return what became of the arm's seeds that are not in the means."""
    found = []
    for seed, reason in result.failed.items():
        found.append(("failed", f"seed {seed} failed{': ' + _short(reason) if reason else ''}"))
    for run in source.comparison.with_status(result.arm, "damaged"):
        found.append(("damaged", f"seed {run.seed} left out: {_short(run.reason)}"))
    for run in source.comparison.with_status(result.arm, "running"):
        records = source.records[result.arm].get(run.seed)
        step = f", step {records[-1]['step']:,}" if records else ""
        found.append(("running", f"seed {run.seed} running{step}"))
    waiting = [str(run.seed) for run in source.comparison.with_status(result.arm, "missing")]
    if waiting:
        found.append(("missing", f"{'seeds' if len(waiting) > 1 else 'seed'} {', '.join(waiting)} not there yet"))
    return found


def _short(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON].rstrip() + " …"


def _best(result: ArmResult) -> Figure:
    found = result.best
    if found is None:
        return Figure(MISSING)
    return Figure(percent(found.mean), _number(found.mean), [] if found.std is None else [f"± {percent(found.std)}"])


def _gain(result: ArmResult) -> Figure:
    if result.difference is None:
        return Figure("baseline", "0") if result.verdict == "baseline" else Figure(MISSING)
    mean = result.difference.mean
    intervals = {"seeds": result.over_seeds, "images": result.over_images}
    lines = [f"{name} {interval(found, 1)}" for name, found in intervals.items() if found is not None]
    return Figure(points(mean), _number(mean), lines, tone(points(mean)))


def _p(result: ArmResult) -> Figure:
    if result.p_holm is None:
        why = [result.verdict] if result.verdict in ("too few seeds", "seeds change nothing") else []
        return Figure(MISSING, small=why)
    strong = "strong" if result.verdict == "differs" else ""
    return Figure(p_value(result.p_holm), _number(result.p_holm), [result.verdict], strong)


def _time(source: Source, result: ArmResult) -> Figure:
    """Return what the arm alone takes, and of that its own training and stages; then its time in this comparison."""
    own = [run.seconds for run in source.comparison.finished(result.arm).values() if run.seconds is not None]
    lines = [f"own {duration(sum(own) / len(own))}"] if own else []
    lines += [f"stages {duration(result.stage_seconds)}"] if result.stage_seconds else []
    if result.seconds_shared is not None and result.seconds_shared != result.seconds_alone:
        lines.append(f"shared {duration(result.seconds_shared)}")
    return Figure(duration(result.seconds_alone), _number(result.seconds_alone), lines)


def _size(model: ArmResult | Row, units: Units) -> Figure:
    """Return parameters, and below them multiply-adds, each in its unit."""
    lines = [] if model.multiply_adds is None else [scaled(model.multiply_adds, *units[1])]
    return Figure(scaled(model.parameters, *units[0]), _number(model.parameters), lines)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"


@dataclass
class Cell:
    """One gain: ``text`` in points, ``tone`` gain, loss or empty, ``strength`` from 0 to 1 of the scale."""

    text: str
    tone: str = ""
    strength: float = 0.0
    sort: str = ""


@dataclass
class Heat:
    """Cells by row and column; ``most`` is the scale's end in points."""

    rows: list[list[Cell]]
    most: float


@dataclass
class ClassGains:
    """Colored cells with a row a class and a column an arm; ``alone`` is the student alone's IoU, and what sorts it."""

    classes: list[tuple[str, str]]
    alone: list[tuple[str, str]]
    arms: list[str]
    heat: Heat


def class_gains(source: Source) -> ClassGains | None:
    """Return gains of IoU over the student alone, means over the seeds of both; None without such seeds."""
    arms = [result for result in source.rivals if result.differences]
    if source.baseline is None or not arms:
        return None
    comparison = source.comparison
    alone = comparison.finished(source.baseline)
    runs = {result.arm: comparison.finished(result.arm) for result in arms}
    gains, levels = [], []
    for place in range(len(comparison.classes)):
        gains.append([
            mean_gain({seed: runs[result.arm][seed].iou[place] for seed in result.differences},
                      {seed: run.iou[place] for seed, run in alone.items()})
            for result in arms
        ])  # fmt: skip
        level = mean_gain({seed: run.iou[place] for seed, run in alone.items()}, dict.fromkeys(alone, 0.0))
        levels.append((percent(level, 1), _number(level)))
    classes = class_colors(comparison.classes, comparison.palette)
    return ClassGains(classes, levels, [result.arm for result in arms], heat(gains))


def heat(gains: Sequence[Sequence[float | None]]) -> Heat:
    """Color fractions by their size; the scale ends at the 98th percentile, so that one cell does not pale the rest.

    >>> heat([[0.02, -0.01, None]]).rows[0][1]
    Cell(text='−1.0', tone='loss', strength=0.5, sort='-0.01')
    """
    sizes = sorted(100 * abs(gain) for row in gains for gain in row if gain is not None)
    top = sizes[math.ceil(0.98 * len(sizes)) - 1] if sizes else 0.0
    most = nice_ticks(0.0, top or 1.0, 4)[-1]
    return Heat([[_cell(gain, most) for gain in row] for row in gains], most)


def seed_gains(arm: Mapping[int, float | None], alone: Mapping[int, float | None]) -> list[float]:
    """Return arm minus alone for each seed that has both.

    >>> seed_gains({0: 0.75, 1: None, 2: 0.5}, {0: 0.5, 1: 0.5, 3: 0.1})
    [0.25]
    """
    pairs = [(value, alone.get(seed)) for seed, value in arm.items()]
    return [mine - other for mine, other in pairs if mine is not None and other is not None]


def mean_gain(arm: Mapping[int, float | None], alone: Mapping[int, float | None]) -> float | None:
    """Return the mean of :func:`seed_gains`; None where there are none."""
    gains = seed_gains(arm, alone)
    return sum(gains) / len(gains) if gains else None


def _cell(gain: float | None, most: float) -> Cell:
    text = points(gain, 1)
    color = tone(text)
    strength = min(1.0, 100 * abs(gain) / most) if gain is not None and color else 0.0
    return Cell(text, color, round(strength, 3), "" if gain is None else f"{gain:.6g}")
