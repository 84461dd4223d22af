"""What a repository's card says of the licence of its weights."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import yaml

NVIDIA = "NVIDIA's SegFormer weights, or trained from them: not for commercial use"
# what a card or a configuration says of weights that come from NVIDIA's
NVIDIA_MARKS = re.compile(r"nvlabs/segformer|nvidia/(segformer|mit)", re.IGNORECASE)


def licence_of(rest: str, origin: str) -> dict[str, str]:
    """Return the licence that the repository's card names, for `Network.licences`; ``origin`` is what its
    configuration says that it was made from.

    A repository on the hub without one gets ``unknown``; a user's own folder gets nothing.
    """
    text, local = _read_card(rest), Path(rest).expanduser().is_dir()
    front = _front_matter(text)
    named = front.get("license")
    named = ", ".join(map(str, named)) if isinstance(named, list) else str(named or "")
    if named == "other":
        named = f"other ({front.get('license_name') or front.get('license_link') or 'see its card'})"
    if any(NVIDIA_MARKS.search(said) for said in (rest, origin, text)) and not named.startswith(("apache", "mit")):
        return {"model": NVIDIA}
    if named:
        return {"model": named if local else f"{named} ({rest})"}
    return {} if local else {"model": f"unknown ({rest} names none)"}


def _read_card(rest: str) -> str:
    """Return the text of the repository's README.md, empty where there is none."""
    folder = Path(rest).expanduser()
    try:
        path: Any = folder / "README.md"
        if not folder.is_dir():
            from segtailor.models.adapters.hf_files import quiet

            with quiet():
                hub: Any = importlib.import_module("transformers.utils.hub")
                path = hub.cached_file(rest, "README.md", _raise_exceptions_for_missing_entries=False)
        return "" if path is None else Path(path).read_text(encoding="utf-8", errors="replace")
    except Exception:  # no card, no connection: the licence is unknown then
        return ""


def _front_matter(text: str) -> dict[str, Any]:
    match = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        found = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, dict) else {}
