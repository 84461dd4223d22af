"""Models of segtailor's own in a Hugging Face repository, on the hub or in a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from segtailor.errors import SegtailorError

CONFIG, WEIGHTS = "config.json", "model.safetensors"
OWN = "segtailor"
"""The key of ``config.json`` that says that segtailor wrote the repository."""


def own_weights(name: str) -> Path | None:
    """Return the weights file of the repository or folder ``name`` if `segtailor publish` wrote it, else None.

    A repository on the hub is looked up with huggingface_hub, where that is installed. Raises SegtailorError for a
    repository of ours whose weights are missing.
    """
    folder = Path(name)
    if folder.is_dir():
        return _checked(folder) if _is_own(folder / CONFIG) else None
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/")):
        return None
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError:
        return None  # the reader of transformers' repositories names the missing extra
    from segtailor.models.adapters.hf_files import quiet

    try:
        with quiet():
            config = Path(hf_hub_download(name, CONFIG))
            if not _is_own(config):
                return None
            return Path(hf_hub_download(name, WEIGHTS))
    except Exception:  # not there, private, or no connection: told by the reader that comes next
        return None


def _checked(folder: Path) -> Path:
    path = folder / WEIGHTS
    if not path.is_file():
        raise SegtailorError(f"{folder} is a repository of segtailor's without {WEIGHTS}; fetch it whole")
    return path


def _is_own(config: Path) -> bool:
    try:
        content: Any = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and OWN in content
