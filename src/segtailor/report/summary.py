"""The result of a run as a few lines for the terminal."""

from __future__ import annotations

from segtailor.results.model import Row, RunResults


def format_results(results: RunResults) -> str:
    """Return a plain table of a run's results: one line a model, then the gap closed."""
    head = ("", "model", "parameters", "multiply-adds", "mIoU", "best", "time")
    lines = [head, *(_cells(row) for row in results.rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    table = []
    for line in lines:
        cells = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        table.append("  ".join(cells).rstrip())
    if results.gap_closed is not None:
        table.append(f"gap closed: {100 * results.gap_closed:.1f} %")
    return "\n".join(table)


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
