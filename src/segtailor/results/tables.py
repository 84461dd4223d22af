"""The leaderboard as Markdown, CSV, LaTeX and plain text, and the lines that explain it."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from segtailor.evaluation.confusion import MIOU_RULE
from segtailor.files import write_text
from segtailor.results.formatting import (
    MISSING,
    count,
    duration,
    interval,
    mean_and_std,
    numbered,
    p_value,
    percent,
    points,
    scaled,
)
from segtailor.results.leaderboard import ArmResult, Leaderboard, summarise
from segtailor.results.model import Comparison
from segtailor.results.statistics import MIN_SEEDS, ImageBootstrap, Interval, Spread

Rows = list[list[str]]
Cell = str | int | float | None

_HYPHENS = str.maketrans("−–", "--")
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
    blocks = ["\n".join(aligned(rows)) for rows in _tables(board, detail=False)]
    blocks.append("\n".join(plain(line) for line in header(board)))
    missing = remarks(board)
    if missing:
        blocks.append("\n".join(["missing:", *(plain(line) for line in missing)]))
    return "\n\n".join(blocks)


def aligned(rows: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Return the rows as lines for the terminal: the first ``left`` columns flush left, the others flush right.

    >>> aligned([("", "mIoU"), ("kd", "9.10")])
    ['    mIoU', 'kd  9.10']
    """
    cells = [[plain(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        padded[:left] = [cell.ljust(width) for cell, width in zip(row[:left], widths, strict=False)]
        lines.append("  ".join(padded).rstrip())
    return lines


def latex_escape(text: str) -> str:
    r"""Return ``text`` safe for LaTeX: special characters escaped, a minus in front of a digit as a minus sign.

    >>> print(latex_escape("kd_t4 & 50 %: -0.5"))
    kd\_t4 \& 50 \%: $-$0.5
    """
    escaped = "".join(_LATEX.get(character, character) for character in plain(text))
    return re.sub(r"(?<![\w$-])-(?=\d)", "$-$", escaped)


def plain(text: str) -> str:
    """Return ``text`` on one line, minus signs as hyphens, control characters (which steer a terminal) as blanks."""
    return "".join(character if character.isprintable() else " " for character in text.translate(_HYPHENS))


def csv_table(board: Leaderboard) -> str:
    """Return raw numbers for other programs, one row an arm; an empty cell is "not known".

    Scores and differences are fractions, times seconds, memory bytes; ``..._by_seed`` holds ``seed:value`` pairs. There
    are no comment lines, so the column names are self-explanatory.
    """
    comparison = board.comparison
    rows = [
        {"role": "baseline" if result.arm == comparison.baseline else "arm", **_row(result)} for result in board.arms
    ]
    if comparison.teacher_miou is not None:
        rows.insert(0, {"role": "teacher", "arm": "teacher", "miou_last_mean": comparison.teacher_miou})
    text = io.StringIO()
    heads = ["role", *_row(board.arms[0])]
    writer = csv.DictWriter(text, heads, restval="", lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: f"{cell:.8g}" if isinstance(cell, float) else cell for key, cell in row.items()})
    return text.getvalue()


def _row(result: ArmResult) -> dict[str, Cell]:
    seeds, images = result.over_seeds, result.over_images
    return {
        "arm": result.arm,
        "verdict": result.verdict,
        "seeds_finished": len(result.scores),
        "seeds_failed": len(result.failed),
        "seeds_unfinished": len(result.unfinished),
        "seeds_damaged": len(result.damaged),
        "seeds_paired": len(result.differences),
        "miou_last_mean": result.miou,
        "miou_last_std_over_seeds": _figure(result.last, "std"),
        "miou_last_by_seed": _by_seed(result.scores),
        "miou_best_mean_picked_on_reported_images": _figure(result.best, "mean"),
        "miou_best_std_over_seeds": _figure(result.best, "std"),
        "difference_mean": result.gain,
        "difference_std_over_seeds": _figure(result.difference, "std"),
        "difference_by_seed": _by_seed(result.differences),
        "t95_over_seeds_low": _figure(seeds, "low"),
        "t95_over_seeds_high": _figure(seeds, "high"),
        "bootstrap95_over_images_only_low": _figure(images, "low"),
        "bootstrap95_over_images_only_high": _figure(images, "high"),
        "p_bootstrap_sign_over_images_only": _figure(images, "p"),
        "p_t_over_seeds": result.p,
        "p_t_over_seeds_holm": result.p_holm,
        "rank_mean": result.rank,
        "gap_closed_mean": result.gap_closed,
        "best_other": result.best_other,
        "difference_to_best_other_mean": result.lead,
        "seconds_teacher_shared": result.seconds_shared,
        "seconds_alone": result.seconds_alone,
        "stage_seconds": result.stage_seconds,
        "peak_bytes": result.peak_bytes,
        "parameters": result.parameters,
        "multiply_adds": result.multiply_adds,
    }


def _figure(found: Spread | Interval | ImageBootstrap | None, name: str) -> float | None:
    value: float | None = getattr(found, name, None)
    return value


def _by_seed(values: Mapping[int, float]) -> str:
    return " ".join(f"{seed}:{value:.6f}" for seed, value in values.items())


def header(board: Leaderboard) -> list[str]:
    """Return the lines that explain the table: seeds first, then what each kind of figure means."""
    comparison = board.comparison
    seeds, baseline = comparison.seeds, comparison.baseline
    planned = f"{count(len(seeds), 'seed')} ({', '.join(map(str, seeds))}), {count(len(comparison.arms), 'arm')}"
    lines = [f"{planned}. Every figure is of a run of this comparison; none is a published figure."]
    pairs = [len(result.differences) for result in board.arms if result.arm != baseline]
    if baseline is not None and min(pairs, default=0) < MIN_SEEDS:
        who = "No arm has" if max(pairs, default=0) < MIN_SEEDS else "Not every arm has"
        lines.append(
            f"{who} {MIN_SEEDS} seeds in common with '{baseline}'. Where there are fewer nothing is tested: "
            "the verdict is too few seeds, and a place in the table is no finding."
        )
    lines += [
        "mIoU in %, differences in points; ± is the sample standard deviation over seeds (none for one seed).",
        f"{MIOU_RULE[0].upper()}{MIOU_RULE[1:]}.".replace("MIoU", "mIoU"),
        "Last is the last checkpoint, and all other figures are of it. Best is each run's best evaluation, picked on "
        "the very images reported here, so it reads high.",
    ]
    if baseline is not None:
        lines += _on_differences(board, baseline)
    lines.append(f"Rank: mean over {count(len(board.rank_seeds), 'seed')} that every arm with a result has finished.")
    if any(result.seconds_shared is not None for result in board.arms):
        lines.append(
            "Time: own training, own stages and the arm's share of the teacher's passes that the arms have in common. "
            "Alone: with the whole of those passes. Means over seeds."
        )
    if any(result.peak_bytes is not None for result in board.arms):
        lines.append("Memory: the highest peak of the seeds.")
    return lines


def _on_differences(board: Leaderboard, baseline: str) -> list[str]:
    lines = [
        f"Difference: mean over the seeds that the arm and '{baseline}' have both finished, and each seed. "
        "Over seeds: 95 % interval of Student's t for the mean difference (none below 2 seeds)."
    ]
    drawn = next((result.over_images for result in board.arms if result.over_images), None)
    if drawn is not None:
        lines.append(
            f"Over images: 95 % interval of {drawn.resamples} paired bootstrap resamples of the {drawn.images} images, "
            "given these trained networks; it does not cover the chance of training."
        )
    if board.tested:
        lines.append(
            f"p: two-sided paired t test over seeds, corrected by Holm for {count(board.tested, 'arm')} tested; "
            "differs means p < 0.05, on these images."
        )
    if any(result.gap_closed is not None for result in board.arms):
        lines.append(f"Gap closed: mean difference over (teacher - mean of '{baseline}'); the teacher is one network.")
    return lines


def remarks(board: Leaderboard) -> list[str]:
    """Return what is missing: failed runs with their reasons, runs still going, and the comparison's problems."""
    lines = []
    for result in board.arms:
        for seed, reason in result.failed.items():
            lines.append(f"{result.arm}, seed {seed}: failed{': ' + reason if reason else ''}; not in the means")
    for result in board.arms:
        going = [run.seed for run in board.comparison.with_status(result.arm, "running")]
        lines += [f"{result.arm}: not finished yet: {numbered('seed', going)}"] if going else []
    return lines + board.comparison.problems


def finished_seeds(board: Leaderboard, result: ArmResult) -> str:
    """Return "5" when all seeds are finished, else "3 of 5"."""
    planned = len(board.comparison.seeds)
    return str(planned) if len(result.scores) == planned else f"{len(result.scores)} of {planned}"


def score_rows(board: Leaderboard, detail: bool = True) -> Rows:
    """Return the scores, heads first; ``detail`` adds each seed's difference and the one to the best other arm.

    Columns without a figure in any row are left out.
    """
    baseline = board.comparison.baseline
    columns: dict[str, Callable[[ArmResult], str]] = {
        "arm": lambda result: result.arm,
        "seeds": lambda result: finished_seeds(board, result),
        "mIoU, last": lambda result: mean_and_std(result.last),
        "mIoU, best": lambda result: mean_and_std(result.best),
        f"difference to {baseline}": lambda result: points(result.gain),
    }
    if detail:
        columns["each seed"] = lambda result: (
            ", ".join(points(result.differences.get(seed)) for seed in board.comparison.seeds)
            if result.differences
            else MISSING
        )
    columns |= {
        "95 % over seeds": lambda result: interval(result.over_seeds),
        "95 % over images": lambda result: interval(result.over_images),
        "p (Holm)": lambda result: p_value(result.p_holm),
        "verdict": lambda result: result.verdict,
        "rank": lambda result: MISSING if result.rank is None else f"{result.rank:.1f}",
        "gap closed": lambda result: MISSING if result.gap_closed is None else f"{percent(result.gap_closed, 0)} %",
    }
    if detail:
        columns["to best other"] = lambda result: (
            MISSING if result.lead is None else f"{points(result.lead)} ({result.best_other})"
        )
    rows = _filled(columns, board)
    if board.comparison.teacher_miou is not None:
        teacher = ["teacher", "1", percent(board.comparison.teacher_miou)]
        rows.insert(1, teacher + [MISSING] * (len(rows[0]) - len(teacher)))
    return rows


def cost_rows(board: Leaderboard) -> Rows:
    """Return what each arm costs, heads first; only the head when nothing was measured."""
    columns: dict[str, Callable[[ArmResult], str]] = {
        "arm": lambda result: result.arm,
        "time, teacher shared": lambda result: duration(result.seconds_shared),
        "time, alone": lambda result: duration(result.seconds_alone),
        "own stages in it": lambda result: duration(result.stage_seconds),
        "peak memory": lambda result: scaled(result.peak_bytes, 2**30, "GiB"),
        "parameters": lambda result: scaled(result.parameters, 1e6, "M"),
        "multiply-adds": lambda result: scaled(result.multiply_adds, 1e9, "G"),
    }
    return _filled(columns, board)


def _tables(board: Leaderboard, detail: bool) -> list[Rows]:
    """Return scores and costs; no costs when nothing was measured."""
    costs = cost_rows(board)
    measured = any(cell != MISSING for row in costs[1:] for cell in row[1:])
    return [score_rows(board, detail), *([costs] if measured else [])]


def _listed(lines: list[str]) -> list[str]:
    return [f"- {_markdown(line)}" for line in lines]


def _markdown(text: str) -> str:
    return re.sub(r"([\\`*_<>|\[\]~$&])", r"\\\1", plain(text))


def _filled(columns: dict[str, Callable[[ArmResult], str]], board: Leaderboard) -> Rows:
    """Return heads and cells, without the columns that are empty throughout."""
    body = [[cell(result) for cell in columns.values()] for result in board.arms]
    kept = [place for place in range(len(columns)) if place < 3 or any(row[place] != MISSING for row in body)]
    return [[row[place] for place in kept] for row in [list(columns), *body]]
