"""The leaderboard as Markdown, CSV, LaTeX and plain text."""

from __future__ import annotations

import re
from pathlib import Path

from segtailor.comparison.cells import Rows, cost_rows, score_rows
from segtailor.comparison.leaderboard import Leaderboard, summarise
from segtailor.comparison.notes import header, remarks
from segtailor.comparison.sheet import csv_table
from segtailor.engine.runs import write_text
from segtailor.results.model import Comparison

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "[": "{[}",  # a bracket after a line's end would be read as its space
    "±": r"$\pm$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def write_tables(comparison: Comparison, folder: str | Path) -> Leaderboard:
    """Write ``table.md``, ``table.csv`` and ``table.tex`` into ``folder``, each whole or not at all.

    Returns the leaderboard that they show, so that the bootstrap runs once. Raises SegtailorError when the disk is
    full or read-only.
    """
    board = summarise(comparison)
    texts = {"table.md": markdown_table(board), "table.csv": csv_table(board), "table.tex": latex_table(board)}
    for name, text in texts.items():
        write_text(Path(folder) / name, text)
    return board


def markdown_table(board: Leaderboard) -> str:
    """Return title, header lines, the table of scores, the table of costs, and what is missing, as Markdown."""
    lines = [f"### {_markdown(board.comparison.name)}", "", *_listed(header(board)), ""]
    for rows in _tables(board, detail=True):
        cells = [[_markdown(cell) for cell in row] for row in rows]
        rule = ["---"] + ["---:"] * (len(rows[0]) - 1)
        lines += [f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]]] + [""]
    missing = remarks(board)
    if missing:
        lines += ["Missing:", "", *_listed(missing), ""]
    return "\n".join(lines)


def latex_table(board: Leaderboard) -> str:
    r"""Return a ``table*`` environment for booktabs (``\usepackage{booktabs}``); the header lines are its notes."""
    lines = [r"% needs \usepackage{booktabs}", r"\begin{table*}", r"\centering", r"\footnotesize"]
    lines.append(rf"\caption{{{latex_escape(board.comparison.name)}}}")
    for rows in _tables(board, detail=False):
        cells = [" & ".join(latex_escape(cell) for cell in row) + r" \\" for row in rows]
        lines += [
            rf"\begin{{tabular}}{{l{'r' * (len(rows[0]) - 1)}}}",
            *[r"\toprule", cells[0], r"\midrule", *cells[1:], r"\bottomrule"],
            r"\end{tabular}",
            r"\par\medskip",
        ]
    notes = [latex_escape(line) for line in header(board) + remarks(board)]
    lines += [r"\begin{minipage}{\textwidth}", r"\scriptsize", " \\\\\n".join(notes), r"\end{minipage}"]
    return "\n".join([*lines, r"\end{table*}", ""])


def text_table(board: Leaderboard) -> str:
    """Return the leaderboard for the terminal: aligned columns, then the header lines and what is missing."""
    blocks = []
    for rows in _tables(board, detail=False):
        cells = [[_plain(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = []
        for first, *others in cells:
            padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *padded]).rstrip())
        blocks.append("\n".join(lines))
    blocks.append("\n".join(_plain(line) for line in header(board)))
    missing = remarks(board)
    if missing:
        blocks.append("\n".join(["missing:", *(_plain(line) for line in missing)]))
    return "\n\n".join(blocks)


def latex_escape(text: str) -> str:
    r"""Return ``text`` safe for LaTeX: special characters escaped, a minus in front of a digit as a minus sign.

    >>> print(latex_escape("kd_t4 & 50 %: -0.5"))
    kd\_t4 \& 50 \%: $-$0.5
    """
    escaped = "".join(_LATEX.get(character, character) for character in _plain(text))
    return re.sub(r"(?<![\w$-])-(?=\d)", "$-$", escaped)


def _tables(board: Leaderboard, detail: bool) -> list[Rows]:
    """Return scores and costs; no costs when nothing was measured."""
    costs = cost_rows(board)
    measured = any(cell != "-" for row in costs[1:] for cell in row[1:])
    return [score_rows(board, detail), *([costs] if measured else [])]


def _listed(lines: list[str]) -> list[str]:
    return [f"- {_markdown(line)}" for line in lines]


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_<>|\[\]~$&])", r"\\\1", _plain(text))


def _plain(text: str) -> str:
    """Return ``text`` on one line and without control characters, which could steer a terminal."""
    return "".join(character if character.isprintable() else " " for character in text)
