"""The results of a run or a comparison as a short table: for the terminal, and for a notebook."""

from __future__ import annotations

from pathlib import Path

from segtailor.evaluation.format import html_table
from segtailor.results.leaderboard import Leaderboard
from segtailor.results.model import Row, RunResults

_HEAD = ("", "model", "parameters", "multiply-adds", "mIoU", "best", "time")


def format_results(results: RunResults) -> str:
    """Return a plain table of a run's results: one line a model, then the gap closed."""
    lines = [_HEAD, *(_cells(row) for row in results.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = []
    for line in lines:
        cells = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        table.append("  ".join(cells).rstrip())
    if results.gap_closed is not None:
        table.append(_gap(results.gap_closed))
    return "\n".join(table)


def html_results(results: RunResults, report: Path) -> str:
    """Return the same table as HTML, with a link to ``report``."""
    gap = [] if results.gap_closed is None else [_gap(results.gap_closed)]
    return html_table(results.name, [_HEAD, *(_cells(row) for row in results.rows)], gap, str(report))


def html_board(board: Leaderboard, report: Path) -> str:
    """Return a comparison's leaderboard as HTML, with a link to ``report``."""
    lines = [("arm", "seeds", "mIoU", "difference", "verdict")]
    for arm in board.arms:
        mean = "-" if arm.last is None else f"{100 * arm.last.mean:.2f}"
        gain = "-" if arm.difference is None else f"{100 * arm.difference.mean:+.2f}"
        lines.append((arm.arm, str(len(arm.scores)), mean, gain, arm.verdict))
    baseline = board.comparison.baseline
    notes = [] if baseline is None else [f"difference to {baseline}, in points"]
    return html_table(board.comparison.name, lines, notes, str(report))


def _gap(closed: float) -> str:
    return f"gap closed: {100 * closed + 0.0:.1f} %".replace("-0.0 ", "0.0 ")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.label,
        row.model,
        f"{row.parameters / 1e6:.2f} M" if row.parameters is not None else "-",
        f"{row.multiply_adds / 1e9:.2f} G" if row.multiply_adds is not None else "-",
        f"{100 * row.miou:.2f}",
        f"{100 * row.best_miou:.2f}" if row.best_miou is not None else "-",
        f"{row.seconds:.0f} s" if row.seconds is not None else "-",
    )
