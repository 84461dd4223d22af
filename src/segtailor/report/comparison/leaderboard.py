"""The leaderboard's rows: every figure as text, with the number that its column is sorted by."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from segtailor.report.comparison.source import Source
from segtailor.report.curves import share
from segtailor.results.formatting import MISSING, duration, percent, points, scaled, unit_of
from segtailor.results.leaderboard import ArmResult
from segtailor.results.statistics import ImageBootstrap, Interval, Spread

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
class Mark:
    """A run that is not in the means: ``kind`` is failed, damaged, running or missing."""

    kind: str
    text: str


@dataclass
class Row:
    """One arm; ``dots`` are its seeds' places on the strip in percent, ``at`` that of their mean."""

    arm: str
    method: str
    role: str
    seeds: str
    marks: list[Mark]
    dots: list[float]
    at: float | None
    each: str
    cells: dict[str, Figure]


@dataclass
class Table:
    """All rows, highest mean first; columns without any figure are not in ``columns``."""

    rows: list[Row]
    columns: list[str]
    low: str
    high: str
    teacher: dict[str, str] | None


def leaderboard(source: Source) -> Table:
    """Return the table, and the teacher's row where it has been scored."""
    arms = source.board.arms
    everything = [score for result in arms for score in result.scores.values()]
    low, high = (min(everything), max(everything)) if everything else (0.0, 1.0)
    teacher: Any = source.comparison.teacher or {}
    parameters = unit_of([teacher.get("parameters"), *(result.parameters for result in arms)])
    costs = unit_of([teacher.get("multiply_adds"), *(result.multiply_adds for result in arms)])
    rows = [_row(source, result, (low, high), (parameters, costs)) for result in arms]
    empty = {MISSING, "baseline"}
    columns = [name for name in rows[0].cells if any(row.cells[name].text not in empty for row in rows)]
    shown = None
    if source.comparison.teacher_miou is not None:
        own = _size(teacher.get("parameters"), teacher.get("multiply_adds"), (parameters, costs))
        shown = {
            "model": str(teacher.get("model") or ""),
            "miou": percent(source.comparison.teacher_miou),
            "parameters": own.text,
            "multiply_adds": " ".join(own.small),
        }
    return Table(rows, columns, percent(low, 1), percent(high, 1), shown)


def _row(source: Source, result: ArmResult, strip: tuple[float, float], units: Units) -> Row:
    finished, planned = len(result.scores), len(source.comparison.seeds)
    return Row(
        arm=result.arm,
        method=source.method(result.arm),
        role=source.role(result.arm),
        seeds="" if finished == planned else f"{finished} of {planned} seeds",
        marks=marks(source, result),
        dots=[100 * share(score, strip) for score in result.scores.values()],
        at=100 * share(result.last.mean, strip) if result.last else None,
        each=", ".join(f"seed {seed}: {percent(score)}" for seed, score in result.scores.items()),
        cells={
            "miou": Figure(_spread(result.last), _number(result.last.mean if result.last else None)),
            "best": _best(result.best),
            "gain": _gain(result),
            "p": _p(result),
            "rank": Figure(MISSING if result.rank is None else f"{result.rank:.1f}", _number(result.rank)),
            "closed": Figure(percent(result.gap_closed, 0).replace("-", "−"), _number(result.gap_closed)),
            "time": _time(source, result),
            "memory": Figure(scaled(result.peak_bytes, 2.0**30), _number(result.peak_bytes)),
            "parameters": _size(result.parameters, result.multiply_adds, units),
        },
    )


def marks(source: Source, result: ArmResult) -> list[Mark]:
    """Return what became of the arm's seeds that are not in the means."""
    found = []
    for seed, reason in result.failed.items():
        found.append(Mark("failed", f"seed {seed} failed{': ' + _short(reason) if reason else ''}"))
    for run in source.comparison.with_status(result.arm, "damaged"):
        found.append(Mark("damaged", f"seed {run.seed} left out: {_short(run.reason)}"))
    for run in source.comparison.with_status(result.arm, "running"):
        records = source.records[result.arm].get(run.seed)
        step = f", step {records[-1]['step']:,}" if records else ""
        found.append(Mark("running", f"seed {run.seed} running{step}"))
    waiting = [str(run.seed) for run in source.comparison.with_status(result.arm, "missing")]
    if waiting:
        found.append(Mark("missing", f"{'seeds' if len(waiting) > 1 else 'seed'} {', '.join(waiting)} not there yet"))
    return found


def _short(reason: str) -> str:
    return reason if len(reason) <= LONGEST_REASON else reason[:LONGEST_REASON].rstrip() + " …"


def _gain(result: ArmResult) -> Figure:
    if result.difference is None:
        return Figure("baseline", "0") if result.verdict == "baseline" else Figure(MISSING)
    mean = result.difference.mean
    lines = [f"{name} {_interval(found)}" for name, found in _intervals(result) if found is not None]
    tone = "" if points(mean).strip("0.") == "" else "gain" if mean > 0 else "loss"
    return Figure(points(mean), _number(mean), lines, tone)


def _intervals(result: ArmResult) -> list[tuple[str, Interval | ImageBootstrap | None]]:
    return [("seeds", result.over_seeds), ("images", result.over_images)]


def _p(result: ArmResult) -> Figure:
    if result.p_holm is None:
        small = [result.verdict] if result.verdict in ("too few seeds", "seeds change nothing") else []
        return Figure(MISSING, small=small)
    text = f"{result.p_holm:.3f}" if result.p_holm >= 0.001 else "< 0.001"
    return Figure(text, _number(result.p_holm), [result.verdict], "strong" if result.verdict == "differs" else "")


def _time(source: Source, result: ArmResult) -> Figure:
    """Return what the arm alone takes, and of that its own training and stages; then its time in this comparison."""
    own = [run.seconds for run in source.comparison.finished(result.arm).values() if run.seconds is not None]
    lines = [f"own {duration(sum(own) / len(own))}"] if own else []
    lines += [f"stages {duration(result.stage_seconds)}"] if result.stage_seconds else []
    if result.seconds_shared is not None and result.seconds_shared != result.seconds_alone:
        lines.append(f"shared {duration(result.seconds_shared)}")
    return Figure(duration(result.seconds_alone), _number(result.seconds_alone), lines)


def _size(parameters: int | None, multiply_adds: int | None, units: Units) -> Figure:
    """Return parameters, and below them multiply-adds, each in its unit."""
    (unit, name), (cost_unit, cost_name) = units
    lines = [] if multiply_adds is None else [f"{scaled(multiply_adds, cost_unit)} {cost_name}"]
    text = MISSING if parameters is None else f"{scaled(parameters, unit)} {name}"
    return Figure(text, _number(parameters), lines)


def _best(found: Spread | None) -> Figure:
    if found is None:
        return Figure(MISSING)
    return Figure(percent(found.mean), _number(found.mean), [] if found.std is None else [f"± {percent(found.std)}"])


def _spread(found: Spread | None) -> str:
    if found is None:
        return MISSING
    return percent(found.mean) + ("" if found.std is None else f" ± {percent(found.std)}")


def _interval(found: Interval | ImageBootstrap) -> str:
    return f"{points(found.low, 1)} to {points(found.high, 1)}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.9g}"
