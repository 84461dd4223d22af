"""The result of a run as a few lines for the terminal."""

from __future__ import annotations

from typing import Any


def format_results(results: dict[str, Any]) -> str:
    """Return a plain table of ``results.json``: one line a model, then the gap closed."""
    head = ("", "model", "parameters", "multiply-adds", "mIoU", "best", "time")
    lines = [head, *(_cells(row) for row in results["rows"])]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    table = []
    for line in lines:
        cells = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ]
        table.append("  ".join(cells).rstrip())
    if results.get("gap_closed") is not None:
        table.append(f"gap closed: {100 * results['gap_closed']:.1f} %")
    return "\n".join(table)


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    best, seconds = row.get("best_miou"), row.get("seconds")
    return (
        row["label"],
        row["model"],
        f"{row['parameters'] / 1e6:.2f} M",
        f"{row['multiply_adds'] / 1e9:.2f} G",
        f"{100 * row['miou']:.2f}",
        f"{100 * best:.2f}" if best is not None else "-",
        f"{seconds:.0f} s" if seconds is not None else "-",
    )
