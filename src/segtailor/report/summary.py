"""The results of a run or a comparison as a short table: for the terminal, and for a notebook."""

from __future__ import annotations

from pathlib import Path

from segtailor.evaluation.format import html_table
from segtailor.results.formatting import duration, percent, points, scaled
from segtailor.results.leaderboard import Leaderboard
from segtailor.results.model import Row, RunResults
from segtailor.results.tables import aligned, plain

_HEAD = ("", "model", "parameters", "multiply-adds", "mIoU", "best", "time")


def format_results(results: RunResults) -> str:
    """Return a plain table of a run's results: one line a model, then the gap closed."""
    return "\n".join([*aligned([_HEAD, *map(_cells, results.rows)], left=2), *map(plain, _gap(results))])


def html_results(results: RunResults, report: Path) -> str:
    """Return the same table as HTML, with a link to ``report``."""
    return html_table(results.name, [_HEAD, *map(_cells, results.rows)], _gap(results), str(report))


def html_board(board: Leaderboard, report: Path) -> str:
    """Return a comparison's leaderboard as HTML, with a link to ``report``."""
    lines = [("arm", "seeds", "mIoU", "difference", "verdict")]
    for arm in board.arms:
        lines.append((arm.arm, str(len(arm.scores)), percent(arm.miou), points(arm.gain), arm.verdict))
    baseline = board.comparison.baseline
    notes = [] if baseline is None else [f"difference to {baseline}, in points"]
    return html_table(board.comparison.name, lines, notes, str(report))


def _gap(results: RunResults) -> list[str]:
    return [] if results.gap_closed is None else [f"gap closed: {percent(results.gap_closed, 1)} %"]


def _cells(row: Row) -> tuple[str, ...]:
    sizes = scaled(row.parameters, 1e6, "M"), scaled(row.multiply_adds, 1e9, "G")
    return (row.label, row.model, *sizes, percent(row.miou), percent(row.best_miou), duration(row.seconds))
