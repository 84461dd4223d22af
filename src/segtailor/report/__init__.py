"""The report: one HTML page with the gains and costs of a run or a comparison."""

from __future__ import annotations

from pathlib import Path

from segtailor._version import __version__
from segtailor.files import write_text
from segtailor.report import comparison_page, run_page
from segtailor.report.read import read_run, read_source

__all__ = ["write_report"]


def write_report(folder: str | Path) -> Path:
    """Write ``report.html`` into the folder of a run or of a comparison, finished or still running; returns its path.

    The page is one file: styles, script, curves and pictures are inside, and it asks the network for nothing. Of a
    run it reads ``results.json``, the metrics it names, ``recipe.yaml`` and ``samples/``; of a comparison
    ``comparison.json``, the arms' files and its pictures. What is missing is left out; a damaged run of a comparison
    is named on the page. Raises SegtailorError when the folder holds neither, or a damaged ``results.json`` or
    ``comparison.json``, or cannot be written to.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    folder, path = Path(folder), Path(folder) / "report.html"
    if (folder / "comparison.json").exists():
        template, values = "comparison.html", comparison_page.page(read_source(folder))
    else:
        template, values = "run.html", run_page.page(read_run(folder))
    environment = Environment(
        loader=PackageLoader("segtailor", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template(template).render(values, version=__version__)
    write_text(path, text)
    return path
