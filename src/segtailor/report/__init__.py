"""The report: one HTML page that says what a run, or a comparison, gained and what it cost."""

from __future__ import annotations

from pathlib import Path

from segtailor.report.page import page
from segtailor.report.read import read_run
from segtailor.report.rendering import write_page

__all__ = ["write_report"]


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into the folder of a run or of a comparison, finished or still going; returns its path.

    The page is one file: styles, script, curves and pictures are inside, and it asks the network for nothing. Of a
    run it reads ``results.json``, the metrics it names, ``recipe.yaml`` and ``samples/``; of a comparison
    ``comparison.json``, the arms' files and its pictures. What is missing is left out. Raises SegtailorError when the
    folder holds neither or cannot be written to.
    """
    folder = Path(folder)
    if (folder / "comparison.json").exists():
        # Late: it brings statistics that a run's report does not need.
        from segtailor.report.comparison import write_comparison_report

        return write_comparison_report(folder)
    return write_page(folder / "report.html", "template.html", page(read_run(folder)))
