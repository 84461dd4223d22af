"""The first lines: what this comparison allows to say, and no more."""

from __future__ import annotations

from dataclasses import dataclass

from segtailor.report.comparison.source import Source
from segtailor.report.page import Card
from segtailor.results.formatting import percent, points
from segtailor.results.leaderboard import ArmResult
from segtailor.results.statistics import MIN_SEEDS


@dataclass
class Progress:
    """How many of the planned runs are there."""

    planned: int
    finished: int
    failed: int
    damaged: int
    going: int

    @property
    def text(self) -> str:
        """The counts that are not 0."""
        parts = [f"{self.finished} of {self.planned} runs are finished"]
        parts += [f"{count} {word}" for count, word in ((self.failed, "failed"), (self.damaged, "damaged")) if count]
        return ", ".join(parts + ([f"{self.going} running or waiting"] if self.going else []))


def progress(source: Source) -> Progress:
    """Count the runs by what became of them."""
    found = [run.status for run in source.comparison.runs.values()]
    going = found.count("running") + found.count("missing")
    return Progress(len(found), found.count("finished"), found.count("failed"), found.count("damaged"), going)


def headline(source: Source) -> list[str]:
    """Return two or three sentences. Below 5 seeds they give points and never call them a difference."""
    rivals = [result for result in source.rivals if result.last is not None]
    if not rivals:
        return ["No arm beside the student alone has a result yet."]
    top = rivals[0]
    if not any(result.differences for result in rivals):
        why = "has no result yet" if source.baseline else "is not among the arms"
        return [f"The student alone {why}, so this page cannot say what a method gains.", _highest(top, rivals)]
    lines = _tested(source) if source.tested else [_untested(source)]
    alone = source.board[source.baseline] if source.baseline else None
    if alone is not None and alone.last is not None and top.last is not None and top.last.mean <= alone.last.mean:
        lines.append(f"No arm has a higher mean than the student alone ({percent(alone.last.mean)} % mIoU).")
        return lines
    if top.difference is not None:
        each = ", ".join(points(gain) for gain in top.differences.values())
        by_seed = f" (by seed: {each})" if 1 < len(top.differences) < MIN_SEEDS else ""
        against = f"{points(top.difference.mean)} points against the student alone{by_seed}."
        lines.append(f"{_highest(top, rivals)} {against}")
    if len(rivals) > 1:
        lines.append(f"As the highest of {len(rivals)} arms, picked on the images reported here, it reads high.")
    return lines


def cards(source: Source) -> list[Card]:
    """Return the headline's numbers."""
    found = []
    alone = source.board[source.baseline] if source.baseline else None
    if alone is not None and alone.last is not None:
        found.append(Card("Student alone", percent(alone.last.mean), "%", _spread(alone), "alone"))
    top = next((result for result in source.rivals if result.last is not None), None)
    if top is not None and top.last is not None:
        found.append(Card(f"Highest mean: {top.arm}", percent(top.last.mean), "%", _spread(top), "distilled"))
    teacher = source.comparison.teacher_miou
    if teacher is not None:
        found.append(Card("Teacher", percent(teacher), "%", "one network", "teacher"))
    if top is not None and top.gap_closed is not None:
        closed = percent(top.gap_closed, 0).replace("-", "−")
        found.append(Card(f"Gap closed by {top.arm}", closed, "%", "alone 0 %, teacher 100 %"))
    least = min((len(result.scores) for result in source.board.arms if result.scores), default=0)
    most = max((len(result.scores) for result in source.board.arms), default=0)
    note = "enough for a test" if least >= MIN_SEEDS else f"a test needs {MIN_SEEDS} of every arm"
    found.append(Card("Seeds finished", str(most) if least == most else f"{least} to {most}", "", note))
    return found


def _untested(source: Source) -> str:
    most = max(len(result.differences) for result in source.rivals)
    seeds = "1 seed" if most == 1 else f"{most} seeds"
    return (
        f"With {seeds} nothing is tested: the figures below are points, and a place in the table is no finding. "
        f"A test needs {MIN_SEEDS} seeds."
    )


def _tested(source: Source) -> list[str]:
    """Say which arms differ, which do not, and which have too few seeds."""
    differ = [result for result in source.rivals if result.verdict == "differs" and result.difference is not None]
    above = [_with_points(result) for result in differ if result.difference and result.difference.mean > 0]
    below = [_with_points(result) for result in differ if result.difference and result.difference.mean <= 0]
    rule = "p < 0.05 after Holm's correction, on these images"
    lines = []
    if above:
        lines.append(f"Above the student alone ({rule}): {', '.join(above)}.")
    if below:
        lines.append(f"Below the student alone ({rule}): {', '.join(below)}.")
    shown = sum(result.verdict == "no difference shown" for result in source.rivals)
    few = [result.arm for result in source.rivals if result.verdict == "too few seeds" and result.scores]
    if shown:
        arms = "1 arm" if shown == 1 else f"{shown} arms"
        lines.append(f"For {arms} no difference is shown, which does not say that there is none.")
    if few:
        lines.append(f"Too few seeds for a test: {', '.join(few)}.")
    return lines


def _with_points(result: ArmResult) -> str:
    return f"{result.arm} ({points(result.difference.mean if result.difference else None)} points)"


def _highest(top: ArmResult, rivals: list[ArmResult]) -> str:
    which = "The highest mean is that of" if len(rivals) > 1 else "The mean of"
    verb = ":" if len(rivals) > 1 else " is"
    return f"{which} {top.arm}{verb} {percent(top.last.mean if top.last else None)} % mIoU,"


def _spread(result: ArmResult) -> str:
    if result.last is None or result.last.std is None:
        return "mIoU, one seed"
    return f"mIoU, ± {percent(result.last.std)} over {result.last.count} seeds"
