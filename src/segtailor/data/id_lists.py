"""Splits that are lists of names: one a line, whose image and mask lie in folders of their own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from segtailor.data.base import some
from segtailor.data.pairs import Pair
from segtailor.data.unpaired import MISSING_IMAGE, MISSING_MASK, leave_out
from segtailor.errors import SegtailorError


def read_ids(path: Path, where: str) -> list[str]:
    """Return the first word of each line of the list at ``path``; raises ``SegtailorError`` when it names nothing."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise SegtailorError(f"no such file: {path} (the list of {where}); check data.root") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SegtailorError(f"cannot read {path} (the list of {where}): {type(error).__name__}") from error
    ids = [line.split()[0] for line in lines if line.strip()]
    if not ids:
        raise SegtailorError(f"{path} (the list of {where}) names no images")
    return ids


def files_by_stem(folders: Iterable[Path], suffixes: Sequence[str]) -> dict[str, Path]:
    """Return the files in ``folders`` by name without suffix; earlier folders, then earlier suffixes, come first."""
    found: dict[str, Path] = {}
    for folder in folders:
        if not folder.is_dir():
            continue
        names = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes)
        for path in sorted(names, key=lambda path: suffixes.index(path.suffix.lower())):
            found.setdefault(path.stem, path)
    return found


def pair_ids(ids: Sequence[str], images: dict[str, Path], masks: dict[str, Path], where: str) -> tuple[Pair, ...]:
    """Return image and mask of each of ``ids``, in their order; ``where`` names split and folders in errors.

    Raises ``SegtailorError`` for images and masks that are missing.
    """
    problems = []
    unpaired = {MISSING_IMAGE: [name for name in ids if name not in images],
                MISSING_MASK: [name for name in ids if name not in masks]}  # fmt: skip
    for kind, missing in zip(("image", "mask"), unpaired.values(), strict=True):
        if missing:
            problems.append(f"{len(missing)} {kind}{'' if len(missing) == 1 else 's'} missing: {some(missing)}")
    both = [name for name in ids if name in images and name in masks]
    if problems and not (both and leave_out(unpaired)):
        raise SegtailorError(f"{where}: of {len(ids)} listed names, {'; '.join(problems)}; check data.root")
    return tuple(Pair(images[name], masks[name], name) for name in both)
