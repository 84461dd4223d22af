"""A leaderboard as rows of short strings, the same for every format; ``None`` figures are a dash."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from segtailor.comparison.bootstrap import ImageBootstrap
from segtailor.comparison.leaderboard import ArmResult, Leaderboard
from segtailor.comparison.notes import finished_seeds
from segtailor.comparison.statistics import Interval, Spread

NONE = "-"
Rows = list[list[str]]


def score_rows(board: Leaderboard, detail: bool = True) -> Rows:
    """Return the scores, heads first; ``detail`` adds each seed's difference and the one to the best other arm.

    Columns without a figure in any row are left out.
    """
    baseline = board.comparison.baseline
    columns: dict[str, Callable[[ArmResult], str]] = {
        "arm": lambda result: result.arm,
        "seeds": lambda result: finished_seeds(board, result),
        "mIoU, last": lambda result: _spread(result.last),
        "mIoU, best": lambda result: _spread(result.best),
        f"difference to {baseline}": lambda result: _points(result.difference.mean if result.difference else None),
    }
    if detail:
        columns["each seed"] = lambda result: _each_seed(board.comparison.seeds, result)
    columns |= {
        "95 % over seeds": lambda result: _interval(result.over_seeds),
        "95 % over images": lambda result: _interval(result.over_images),
        "p (Holm)": lambda result: _p(result.p_holm),
        "verdict": lambda result: result.verdict,
        "rank": lambda result: NONE if result.rank is None else f"{result.rank:.1f}",
        "gap closed": lambda result: NONE if result.gap_closed is None else f"{100 * result.gap_closed:.0f} %",
    }
    if detail:
        columns["to best other"] = _best_other
    rows = _filled(columns, board)
    if board.comparison.teacher_miou is not None:
        teacher = ["teacher", "1", f"{100 * board.comparison.teacher_miou:.2f}"]
        rows.insert(1, teacher + [NONE] * (len(rows[0]) - len(teacher)))
    return rows


def cost_rows(board: Leaderboard) -> Rows:
    """Return what each arm costs, heads first; only the head when nothing was measured."""
    columns: dict[str, Callable[[ArmResult], str]] = {
        "arm": lambda result: result.arm,
        "time, teacher shared": lambda result: duration(result.seconds_shared),
        "time, alone": lambda result: duration(result.seconds_alone),
        "own stages in it": lambda result: duration(result.stage_seconds),
        "peak memory": lambda result: _scaled(result.peak_bytes, 2**30, "GiB"),
        "parameters": lambda result: _scaled(result.parameters, 1e6, "M"),
        "multiply-adds": lambda result: _scaled(result.multiply_adds, 1e9, "G"),
    }
    return _filled(columns, board)


def duration(seconds: float | None) -> str:
    """Return a time in the unit that suits it.

    >>> duration(42.4), duration(600.0), duration(9000.0)
    ('42 s', '10.0 min', '2.5 h')
    """
    if seconds is None:
        return NONE
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _filled(columns: dict[str, Callable[[ArmResult], str]], board: Leaderboard) -> Rows:
    """Return heads and cells, without the columns that are empty throughout."""
    body = [[cell(result) for cell in columns.values()] for result in board.arms]
    kept = [place for place in range(len(columns)) if place < 3 or any(row[place] != NONE for row in body)]
    return [[row[place] for place in kept] for row in [list(columns), *body]]


def _each_seed(seeds: Sequence[int], result: ArmResult) -> str:
    """Return the differences in the comparison's order of seeds, a dash where there is no pair."""
    cells = [_points(result.differences.get(seed)) for seed in seeds]
    return ", ".join(cells) if result.differences else NONE


def _best_other(result: ArmResult) -> str:
    if result.best_other is None or not result.to_best_other:
        return NONE
    values = result.to_best_other.values()
    return f"{_points(sum(values) / len(values))} ({result.best_other})"


def _spread(found: Spread | None) -> str:
    if found is None:
        return NONE
    return f"{100 * found.mean:.2f}" + ("" if found.std is None else f" ± {100 * found.std:.2f}")


def _points(difference: float | None) -> str:
    return NONE if difference is None else f"{100 * difference:+.2f}"


def _interval(found: Interval | ImageBootstrap | None) -> str:
    return NONE if found is None else f"{_points(found.low)} to {_points(found.high)}"


def _p(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{value:.3f}" if value >= 0.001 else "< 0.001"


def _scaled(value: int | None, unit: float, name: str) -> str:
    return NONE if value is None else f"{value / unit:.2f} {name}"
