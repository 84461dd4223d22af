"""The lines that stand with a leaderboard: what its figures are, what they do not say, and what is missing."""

from __future__ import annotations

from segtailor.comparison.leaderboard import ArmResult, Leaderboard
from segtailor.comparison.statistics import MIN_SEEDS
from segtailor.evaluation.confusion import MIOU_RULE


def header(board: Leaderboard) -> list[str]:
    """Return the lines that explain the table: seeds first, then what each kind of figure means."""
    comparison = board.comparison
    seeds, baseline = comparison.seeds, comparison.baseline
    planned = f"{_count(len(seeds), 'seed')} ({', '.join(map(str, seeds))}), {_count(len(comparison.arms), 'arm')}"
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
    lines.append(f"Rank: mean over {_count(len(board.rank_seeds), 'seed')} that every arm with a result has finished.")
    if any(result.seconds_shared is not None for result in board.arms):
        lines.append(
            "Time: own training, own stages and the arm's share of the teacher's passes that the arms have in common. "
            "Alone: with the whole of those passes. Means over seeds; memory is the highest peak."
        )
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
            f"p: two-sided paired t test over seeds, corrected by Holm for {_count(board.tested, 'arm')} tested; "
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
        going = [str(run.seed) for run in board.comparison.with_status(result.arm, "running")]
        if going:
            lines.append(f"{result.arm}: not finished yet: {'seeds' if len(going) > 1 else 'seed'} {', '.join(going)}")
    return lines + board.comparison.problems


def finished_seeds(board: Leaderboard, result: ArmResult) -> str:
    """Return "5" when all seeds are finished, else "3 of 5"."""
    planned = len(board.comparison.seeds)
    return str(planned) if len(result.scores) == planned else f"{len(result.scores)} of {planned}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
