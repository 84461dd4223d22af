"""The leaderboard as CSV: raw numbers for other programs, one row an arm.

Scores and differences are fractions, times seconds, memory bytes; ``..._by_seed`` holds ``seed:value`` pairs. There
are no comment lines, so each column's name says what it is.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping

from segtailor.comparison.bootstrap import ImageBootstrap
from segtailor.comparison.leaderboard import ArmResult, Leaderboard
from segtailor.comparison.statistics import Interval, Spread

Cell = str | int | float | None


def csv_table(board: Leaderboard) -> str:
    """Return the CSV text; an empty cell is "not known"."""
    comparison = board.comparison
    rows = [{"role": "arm", **_row(result)} for result in board.arms]
    for row in rows:
        if row["arm"] == comparison.baseline:
            row["role"] = "baseline"
    if comparison.teacher_miou is not None:
        rows.insert(0, {"role": "teacher", "arm": "teacher", "miou_last_mean": comparison.teacher_miou})
    text = io.StringIO()
    heads = ["role", *_row(board.arms[0])]
    writer = csv.DictWriter(text, heads, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows([{head: _text(row.get(head)) for head in heads} for row in rows])
    return text.getvalue()


def _row(result: ArmResult) -> dict[str, Cell]:
    last, best, difference = result.last, result.best, result.difference
    seeds, images = result.over_seeds, result.over_images
    other = list(result.to_best_other.values())
    return {
        "arm": result.arm,
        "verdict": result.verdict,
        "seeds_finished": len(result.scores),
        "seeds_failed": len(result.failed),
        "seeds_unfinished": len(result.unfinished),
        "seeds_damaged": len(result.damaged),
        "seeds_paired": len(result.differences),
        "miou_last_mean": _figure(last, "mean"),
        "miou_last_std_over_seeds": _figure(last, "std"),
        "miou_last_by_seed": _by_seed(result.scores),
        "miou_best_mean_picked_on_reported_images": _figure(best, "mean"),
        "miou_best_std_over_seeds": _figure(best, "std"),
        "difference_mean": _figure(difference, "mean"),
        "difference_std_over_seeds": _figure(difference, "std"),
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
        "difference_to_best_other_mean": sum(other) / len(other) if other else None,
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


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    return f"{cell:.8g}" if isinstance(cell, float) else str(cell)
