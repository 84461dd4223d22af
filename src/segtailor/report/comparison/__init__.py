"""The report of a comparison: what each method gains over the student alone, how sure that is, and what it costs."""

from __future__ import annotations

from pathlib import Path

from segtailor.report.comparison.page import page
from segtailor.report.comparison.source import read_source
from segtailor.report.rendering import write_page

__all__ = ["write_comparison_report"]


def write_comparison_report(folder: str | Path) -> Path:
    """Write ``report.html`` into a comparison's folder, finished or still going, and return its path.

    The page is one file that needs no network. Raises SegtailorError when ``comparison.json`` is missing or damaged,
    or the folder cannot be written to; a damaged run is named on the page instead.
    """
    source = read_source(Path(folder))
    return write_page(source.folder / "report.html", "comparison/comparison.html", page(source))
