"""The study's tables as Markdown: how far it is, and what each comparison gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from kept import Kept

from segtailor.results.formatting import MISSING, percent, points
from segtailor.results.leaderboard import ArmResult
from segtailor.results.model import Outcome

Cell = Callable[[ArmResult], str]


def state(comparisons: Sequence[Kept]) -> str:
    """Return a row for each comparison: how many of its rows are there, failed, left out, not run."""
    rows = [["tier", "comparison", "arms", "seeds", "rows", "there", "failed", "left out", "not run"]]
    there = total = 0
    for kept in comparisons:
        planned = kept.planned
        statuses = (("finished",), ("failed",), ("damaged",), ("missing", "running"))
        counts = [len(kept.keys(*names)) for names in statuses]
        seeds = ", ".join(map(str, planned.recipe.seeds))
        title = f"`{planned.name}`: {planned.title}" if planned.title else f"`{planned.name}`"
        figures = [len(planned.arms), seeds, sum(counts), *counts]
        rows.append([planned.tier, title, *(str(figure) for figure in figures)])
        there, total = there + counts[0], total + sum(counts)
    return f"{there} of {total} rows are there.\n\n{markdown(rows, left=2)}"


def comparison_table(kept: Kept) -> str:
    """Return a comparison's arms, best first, and what is missing; "Not run." where nothing is there."""
    found, board = kept.found, kept.board
    if found is None or board is None:
        return "\n\n".join(["Not run.", *_notes(kept)])
    if not kept.keys("finished"):
        return "\n\n".join(["No row is there yet.", *_notes(kept)])
    alone = found.finished(found.baseline) if found.baseline else {}
    columns: dict[str, Cell] = {
        "arm": lambda result: f"`{result.arm}`",
        "seeds": lambda result: _seeds(len(result.scores), len(found.seeds)),
        "mIoU": _score,
        "to alone (95 %)": _difference,
        "each seed": lambda result: ", ".join(points(value) for value in result.differences.values()) or MISSING,
        "gap closed": _gap,
        "boundary IoU, to alone": lambda result: paired(found.finished(result.arm), alone, boundary_iou),
        "verdict": verdict,
        "time": lambda result: _times(found.finished(result.arm), alone, kept),
    }
    shown = [result for result in board.arms if result.scores]
    cells = {head: [cell(result) for result in shown] for head, cell in columns.items()}
    filled = {head: column for head, column in cells.items() if any(cell != MISSING for cell in column)}
    rows = [list(filled), *map(list, zip(*filled.values(), strict=True))]
    return "\n\n".join([markdown(rows), _caption(kept), *_notes(kept)])


def markdown(rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """Return ``rows``, heads first, as a table; the first ``left`` columns are words, the others figures.

    >>> print(markdown([["arm", "mIoU"], ["kd", "50.00"]]))
    | arm | mIoU |
    |---|---:|
    | kd | 50.00 |
    """
    rule = "|" + "|".join(["---"] * left + ["---:"] * (len(rows[0]) - left)) + "|"
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], rule, *lines[1:]])


def boundary_iou(outcome: Outcome) -> float | None:
    """Return mIoU near the masks' edges, where it was measured."""
    value: Any = (outcome.boundary or {}).get("miou")
    return float(value) if isinstance(value, int | float) else None


def _notes(kept: Kept) -> list[str]:
    return ["\n".join(f"- {note}" for note in kept.notes)] if kept.notes else []


def _caption(kept: Kept) -> str:
    found = kept.found
    assert found is not None
    text = f"Scored on `{kept.planned.recipe.data.val_split}`; alone is `{found.baseline}`"
    if found.teacher_miou is not None:
        text += f"; the teacher scores {percent(found.teacher_miou)}"
    return f"{text}." if kept.alone else f"{text}, which has no row yet."


def _seeds(there: int, planned: int) -> str:
    return str(there) if there == planned else f"{there} of {planned}"


def _score(result: ArmResult) -> str:
    if result.last is None:
        return MISSING
    return percent(result.last.mean) + ("" if result.last.std is None else f" ± {percent(result.last.std)}")


def _difference(result: ArmResult) -> str:
    if result.difference is None:
        return MISSING
    mean, interval = points(result.difference.mean), result.over_seeds
    return mean if interval is None else f"{mean} ({points(interval.low)} to {points(interval.high)})"


def _gap(result: ArmResult) -> str:
    return MISSING if result.gap_closed is None else f"{percent(result.gap_closed, 0)} %".replace("-", "−")


def verdict(result: ArmResult) -> str:
    """Return the verdict, with p where there are seeds enough for one."""
    if result.verdict == "baseline":
        return "alone"
    if result.p_holm is None:
        return result.verdict
    return f"{result.verdict}, p {f'{result.p_holm:.3f}' if result.p_holm >= 0.001 else '< 0.001'}"


def paired(arm: dict[int, Outcome], alone: dict[int, Outcome], figure: Callable[[Outcome], float | None]) -> str:
    """Return the mean difference over the seeds of both."""
    pairs = [(figure(arm[seed]), figure(alone[seed])) for seed in sorted(arm.keys() & alone.keys())]
    known = [ours - theirs for ours, theirs in pairs if ours is not None and theirs is not None]
    if not known or len(known) < len(pairs) or arm == alone:
        return MISSING
    return points(sum(known) / len(known))


def _times(arm: dict[int, Outcome], alone: dict[int, Outcome], kept: Kept) -> str:
    """Return how long the arm trains for each second of the student alone in the same run, over the seeds of both."""
    seeds = [seed for seed in sorted(arm.keys() & alone.keys()) if (arm[seed].arm, seed) not in kept.apart]
    ours = [arm[seed].seconds_shared for seed in seeds]
    own = {seed: alone[seed].seconds_shared for seed in seeds}
    theirs = [kept.taken.get((arm[seed].arm, seed), {}).get("alone_seconds", own[seed]) for seed in seeds]
    if not seeds or None in ours or None in theirs:
        return MISSING
    whole, part = sum(filter(None, ours)), sum(filter(None, theirs))
    return f"{whole / part:.2f}×" if part else MISSING
