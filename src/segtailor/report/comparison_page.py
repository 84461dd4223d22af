"""The page of a comparison: the headline, which claims only what the seeds support, and every section below it."""

from __future__ import annotations

from typing import Any

import yaml

from segtailor.report.comparison_plots import arm_terms, boundary_gains, cost_plots, rank_plot, score_curves
from segtailor.report.comparison_tables import class_gains, leaderboard
from segtailor.report.pictures import sample_grid, tailored_images
from segtailor.report.read import Source, class_colors
from segtailor.report.run_page import Card
from segtailor.results.formatting import count, percent, points
from segtailor.results.leaderboard import ArmResult
from segtailor.results.statistics import MIN_SEEDS, Spread
from segtailor.results.tables import header, remarks

READING = (
    "Curves: the line is the mean over the seeds that have finished, the band reaches from the lowest to the highest "
    "seed. It is no confidence interval.",
    "Classes and distances: gains are means over the seeds that the arm and the student alone have both finished. "
    "A single cell varies more than mIoU does, and among this many some are large by chance.",
    "Distance: of a pixel from the nearest pixel of another label in the target, along rows, columns and diagonals; "
    "1 touches a boundary. Void counts as another label and is scored nowhere.",
)
SECTIONS = {
    "leaderboard": "Leaderboard", "ranks": "Ranks", "curves": "Curves", "classes": "Classes", "boundary": "Boundaries",
    "costs": "Cost", "terms": "Terms", "tailored": "Altered logits", "grid": "Images",
}  # fmt: skip


def page(source: Source) -> dict[str, Any]:
    """Return everything that the template needs."""
    comparison = source.comparison
    parts: dict[str, Any] = {
        "leaderboard": leaderboard(source),
        "ranks": rank_plot(source),
        "curves": score_curves(source),
        "classes": class_gains(source),
        "boundary": boundary_gains(source),
        "costs": cost_plots(source),
        "terms": arm_terms(source),
        "tailored": tailored_images(source),
        "grid": sample_grid(source),
    }
    sections = [(key, name) for key, name in SECTIONS.items() if parts[key]]
    return {
        **dict(comparison),
        **parts,
        "sections": [*sections, ("problems", "Problems"), ("reading", "How to read"), ("again", "Recipe")],
        "baseline": source.baseline or "none",
        "tested": source.tested,
        "student": comparison.recipe.get("student", {}).get("model", ""),
        "description": str(comparison.recipe.get("description") or "").strip(),
        "progress": _progress(source),
        "headline": _headline(source),
        "cards": _cards(source),
        "legend": class_colors(comparison.classes, comparison.palette),
        "problems": [*remarks(source.board), *source.problems],
        "reading": [*header(source.board), *READING],
        "recipe": _recipe(source),
    }


def _progress(source: Source) -> dict[str, Any]:
    """Count the runs by status; the text has the counts that are not 0."""
    found = [run.status for run in source.comparison.runs.values()]
    finished, going = found.count("finished"), found.count("running") + found.count("missing")
    parts = [f"{finished} of {len(found)} runs are finished"]
    parts += [f"{found.count(word)} {word}" for word in ("failed", "damaged") if word in found]
    parts += [f"{going} running or waiting"] if going else []
    return {"all": finished == len(found), "going": going > 0, "text": ", ".join(parts)}


def _headline(source: Source) -> list[str]:
    """Return two or three sentences. Below 5 seeds they give points and never call them a difference."""
    rivals = [result for result in source.rivals if result.last is not None]
    if not rivals:
        return ["No arm beside the student alone has a result yet."]
    top = rivals[0]
    if not any(result.differences for result in rivals):
        why = "has no result yet" if source.baseline else "is not among the arms"
        return [f"The student alone {why}, so the gains of the methods are unknown.", f"{_highest(top, rivals)}."]
    if source.tested:
        lines = _tested(source)
    else:
        seeds = count(max(len(result.differences) for result in rivals), "seed")
        lines = [
            f"With {seeds} nothing is tested: the figures below are points, and a place in the table is no finding. "
            f"A test needs {MIN_SEEDS} seeds."
        ]
    alone = source.board[source.baseline].miou if source.baseline else None
    if alone is not None and (top.miou or 0.0) <= alone:
        return [*lines, f"No arm has a higher mean than the student alone ({percent(alone)} % mIoU)."]
    if top.differences:
        each = ", ".join(points(gain) for gain in top.differences.values())
        by_seed = f" (by seed: {each})" if 1 < len(top.differences) < MIN_SEEDS else ""
        against = f"{points(top.gain)} points against the student alone{by_seed}."
        lines.append(f"{_highest(top, rivals)}, {against}")
    if len(rivals) > 1:
        lines.append(f"As the highest of {len(rivals)} arms, picked on the images reported here, it reads high.")
    return lines


def _tested(source: Source) -> list[str]:
    """Return which arms differ, which do not, and which have too few seeds."""
    differ = [result for result in source.rivals if result.verdict == "differs"]
    rule = "p < 0.05 after Holm's correction, on these images"
    lines = []
    for side, is_above in (("Above", True), ("Below", False)):
        named = [f"{arm.arm} ({points(arm.gain)} points)" for arm in differ if ((arm.gain or 0.0) > 0) == is_above]
        lines += [f"{side} the student alone ({rule}): {', '.join(named)}."] if named else []
    shown = sum(result.verdict == "no difference shown" for result in source.rivals)
    few = [result.arm for result in source.rivals if result.verdict == "too few seeds" and result.scores]
    if shown:
        lines.append(f"For {count(shown, 'arm')} no difference is shown, which does not mean that there is none.")
    if few:
        lines.append(f"Too few seeds for a test: {', '.join(few)}.")
    return lines


def _highest(top: ArmResult, rivals: list[ArmResult]) -> str:
    start = f"The highest mean is that of {top.arm}:" if len(rivals) > 1 else f"The mean of {top.arm} is"
    return f"{start} {percent(top.miou)} % mIoU"


def _cards(source: Source) -> list[Card]:
    """Return the headline's numbers."""
    top = next((result for result in source.rivals if result.last), None)
    shown = [("Student alone", result, "alone") for result in source.board.arms if result.arm == source.baseline]
    shown += [(f"Highest mean: {top.arm}", top, "distilled")] if top else []
    found = [Card(label, percent(result.miou), "%", _spread(result.last), tone) for label, result, tone in shown
             if result.last]  # fmt: skip
    teacher = source.comparison.teacher_miou
    if teacher is not None:
        found.append(Card("Teacher", percent(teacher), "%", "one network", "teacher"))
    if top and top.gap_closed is not None:
        closed = percent(top.gap_closed, 0)
        found.append(Card(f"Gap closed by {top.arm}", closed, "%", "alone 0 %, teacher 100 %"))
    least = min((len(result.scores) for result in source.board.arms if result.scores), default=0)
    most = max((len(result.scores) for result in source.board.arms), default=0)
    note = "enough for a test" if least >= MIN_SEEDS else f"a test needs {MIN_SEEDS} of every arm"
    found.append(Card("Seeds finished", str(most) if least == most else f"{least} to {most}", "", note))
    return found


def _spread(found: Spread) -> str:
    return "mIoU, one seed" if found.std is None else f"mIoU, ± {percent(found.std)} over {found.count} seeds"


def _recipe(source: Source) -> str:
    try:
        return (source.comparison.folder / "recipe.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return yaml.safe_dump(source.comparison.recipe, sort_keys=False) if source.comparison.recipe else ""
