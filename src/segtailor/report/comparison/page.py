"""What the page says, gathered from its parts."""

from __future__ import annotations

from typing import Any

import yaml

from segtailor._version import __version__
from segtailor.report.comparison.boundary import boundary_gains
from segtailor.report.comparison.classes import class_gains
from segtailor.report.comparison.curves import score_curves
from segtailor.report.comparison.headline import cards, headline, progress
from segtailor.report.comparison.leaderboard import leaderboard
from segtailor.report.comparison.pictures import sample_grid, tailored
from segtailor.report.comparison.ranks import rank_plot
from segtailor.report.comparison.scatter import cost_plots
from segtailor.report.comparison.source import Source
from segtailor.report.comparison.terms import tailoring_terms
from segtailor.results.tables import header, remarks

READING = (
    "Curves: the line is the mean over the seeds that have finished, the band reaches from the lowest to the highest "
    "seed. It is no confidence interval.",
    "Classes and distances: gains are means over the seeds that the arm and the student alone have both finished. "
    "A single cell varies more than mIoU does, and among this many some are large by chance.",
    "Distance: of a pixel from the nearest pixel of another label in the target, along rows, columns and diagonals; "
    "1 touches a boundary. Void counts as another label and is scored nowhere.",
)


def page(source: Source) -> dict[str, Any]:
    """Return everything that the template needs."""
    comparison = source.comparison
    grid = sample_grid(source)
    parts: dict[str, Any] = {
        "leaderboard": leaderboard(source),
        "ranks": rank_plot(source),
        "curves": score_curves(source),
        "classes": class_gains(source),
        "boundary": boundary_gains(source),
        "costs": cost_plots(source),
        "terms": tailoring_terms(source),
        "tailored": tailored(source),
        "grid": grid,
    }
    student = comparison.recipe.get("student")
    return {
        **parts,
        "version": __version__,
        "name": comparison.name,
        "baseline": source.baseline or "none",
        "tested": source.tested,
        "data": str(comparison.data or ""),
        "size": source.plan.get("size"),
        "student": str(student.get("model") or "") if isinstance(student, dict) else "",
        "description": str(comparison.recipe.get("description") or "").strip(),
        "arms": comparison.arms,
        "seeds": comparison.seeds,
        "class_map": [row for row in source.plan.get("class_map") or [] if isinstance(row, dict)],
        "progress": progress(source),
        "headline": headline(source),
        "cards": cards(source),
        "legend": list(
            zip(comparison.classes, ["#{:02x}{:02x}{:02x}".format(*color) for color in source.palette()], strict=True)
        ),
        "problems": [*remarks(source.board), *source.problems],
        "reading": [*(_renamed(line, source.baseline) for line in header(source.board)), *READING],
        "recipe": _recipe(source),
        "environment": {str(key): str(value) for key, value in comparison.environment.items()},
        "sections": _sections(parts),
    }


def _sections(parts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return anchor and name of every section that the page has."""
    names = {
        "leaderboard": "Leaderboard", "ranks": "Ranks", "curves": "Curves", "classes": "Classes",
        "boundary": "Boundaries", "costs": "Cost", "terms": "KT's terms", "tailored": "Tailoring", "grid": "Images",
    }  # fmt: skip
    found = [(key, name) for key, name in names.items() if parts[key]]
    return [*found, ("problems", "Problems"), ("reading", "How to read"), ("again", "Recipe")]


def _renamed(line: str, baseline: str | None) -> str:
    """Return a line with the name that the page's column of differences has."""
    return line.replace("Difference:", f"Against {baseline}:", 1) if line.startswith("Difference:") else line


def _recipe(source: Source) -> str:
    try:
        return (source.folder / "recipe.yaml").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return yaml.safe_dump(source.comparison.recipe, sort_keys=False) if source.comparison.recipe else ""
