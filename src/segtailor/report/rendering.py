"""From a template and its values to one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from segtailor.files import write_atomically


def write_page(path: Path, template: str, values: Mapping[str, Any]) -> Path:
    """Render ``template``, a file of this package's, into ``path``, whole or not at all; every value is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("segtailor", "report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template(template).render(values)
    write_atomically(path, lambda file: file.write(text.encode("utf-8")))
    return path
