from __future__ import annotations

import re
from pathlib import Path

from segtailor.errors import EXTRAS, install


def test_messages_name_the_packages_of_the_extras() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()  # tomllib is not in Python 3.10
    for extra, packages in EXTRAS.items():
        line = re.search(rf"^{extra} = \[(.*)\]$", text, re.MULTILINE)
        assert line is not None
        assert re.findall(r'"([\w-]+)', line[1]) == packages.split()
        assert install(extra) == f"pip install {packages}"
