"""The report: one HTML page that says what a run gained and what it cost."""

from __future__ import annotations

from pathlib import Path

from segtailor.models.atomic import write_atomically
from segtailor.report.page import page
from segtailor.report.read import read_run

__all__ = ["write_report"]


def write_report(run_folder: str | Path) -> Path:
    """Write ``report.html`` into a run folder, finished or still going, and return its path.

    The page is one file: styles, script, curves and pictures are inside, and it asks the network for nothing. Reads
    ``results.json``, the metrics it names, ``recipe.yaml`` and ``samples/``; what is missing is left out. Raises
    SegtailorError when the folder holds no run or cannot be written to.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    folder = Path(run_folder)
    run = read_run(folder)
    environment = Environment(
        loader=PackageLoader("segtailor", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template("template.html").render(page(run))
    path = folder / "report.html"
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))
    return path
