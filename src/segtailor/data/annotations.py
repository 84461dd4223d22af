"""Finding the one file that names the images of a split, and the file that names their classes."""

from __future__ import annotations

from pathlib import Path

from segtailor.config import DataConfig
from segtailor.data.pairs import require_folder
from segtailor.errors import SegtailorError

PLACEHOLDER = "{split}"


def annotation_file(config: DataConfig, split: str, kind: str) -> Path:
    """Return ``config.annotations`` with ``{split}`` filled in, under ``config.root`` when it is not found as it is.

    ``kind`` says in errors what the file is. Raises ``SegtailorError`` when the field or the file is missing.
    """
    if config.annotations is None:
        raise SegtailorError(f"the data set '{config.name}' needs data.annotations: {kind}")
    if config.root is not None:
        require_folder(config.root, "set data.root to the folder under which the images lie, or leave it out")
    given = Path(str(config.annotations).replace(PLACEHOLDER, split))
    places = [given] if config.root is None else [given, config.root / given]
    for path in dict.fromkeys(places):
        if path.is_file():
            return path
    looked = " and ".join(str(path) for path in dict.fromkeys(places))
    raise SegtailorError(f"no such file: {looked} ({kind}, for the split {split}); mend data.annotations")


def class_file(config: DataConfig, annotations: Path) -> Path | None:
    """Return ``config.classes``, else the ``classes.yaml`` of the root or beside ``annotations``, if there is one."""
    if config.classes is not None:
        return config.classes
    places = [annotations.parent] if config.root is None else [config.root, annotations.parent]
    return next((place / "classes.yaml" for place in places if (place / "classes.yaml").is_file()), None)
