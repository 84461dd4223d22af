"""Which mask belongs to which image, checked from the file names when a data set is opened."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from segtailor.data.base import Count, some
from segtailor.data.image_io import IMAGE_SUFFIXES, MASK_SUFFIXES, list_files
from segtailor.errors import SegtailorError

# Why a listing leaves a file out: kinds of findings of `segtailor data check`.
NO_MASK, NO_IMAGE = "image-without-mask", "mask-without-image"
TWICE, NO_CLASS = "several-files-of-one-name", "mask-of-no-class"
MISSING_IMAGE, MISSING_MASK, NOT_AN_IMAGE = "missing-image", "missing-mask", "not-an-image"

MissingFiles = dict[str, list[str]]
"""Paths, or listed names, by what is wrong with them."""

_found: ContextVar[MissingFiles | None] = ContextVar("missing_files", default=None)


@contextmanager
def collect_missing(found: MissingFiles) -> Iterator[None]:
    """While the block runs, listings skip the files that they cannot use and record them in ``found``."""
    token = _found.set(found)
    try:
        yield
    finally:
        _found.reset(token)


def record_missing(files: Mapping[str, Iterable[Path | str]]) -> bool:
    """Record ``files`` by what is wrong with them and return True; False when a listing must raise instead."""
    found = _found.get()
    if found is None:
        return False
    for problem, paths in files.items():
        if listed := [str(path) for path in paths]:
            found.setdefault(problem, []).extend(listed)
    return True


class Pair(NamedTuple):
    """An image file, its mask file, and the name of both."""

    image: Path
    mask: Path
    name: str


def require_folder(folder: Path, hint: str) -> Path:
    """Return ``folder``; raises ``SegtailorError`` when it is missing."""
    if not folder.is_dir():
        raise SegtailorError(f"no such folder: {folder}; {hint}")
    return folder


def pair_folders(
    images: Path,
    masks: Path,
    where: str,
    image_key: Callable[[str], str | None] = lambda stem: stem,
    mask_key: Callable[[str], str | None] = lambda stem: stem,
) -> tuple[Pair, ...]:
    """Pair the files below ``images`` and ``masks`` by path without suffix, sorted by name.

    ``image_key`` and ``mask_key`` turn that path (with ``/``) into the common name, or into None for files to skip.
    Raises ``SegtailorError`` for images without mask, masks without image, and two files of one name.
    """
    found_images = files_by_key(images, IMAGE_SUFFIXES, image_key, where)
    # a JPEG is listed as well, so that a folder of JPEG masks is called that when it is read
    found_masks = files_by_key(masks, MASK_SUFFIXES | {".jpg", ".jpeg"}, mask_key, where)
    if not found_images and not found_masks:
        raise SegtailorError(f"no images in {images} and no masks in {masks} ({where}); check data.root and the layout")
    no_mask = sorted(found_images.keys() - found_masks.keys())
    no_image = sorted(found_masks.keys() - found_images.keys())
    problems = []
    if no_mask:
        problems.append(f"{Count(len(no_mask)):image} without a mask: {some(no_mask)}")
    if no_image:
        problems.append(f"{Count(len(no_image)):mask} without an image: {some(no_image)}")
        stems = {_name(key) for key in no_image}
        if others := sorted({path.suffix.lower() for path in _other_files(images) if path.stem in stems}):
            problems.append(f"{' and '.join(others)} files are not read: save them as PNG or JPEG")
    both = sorted(found_images.keys() & found_masks.keys())
    unpaired = {NO_MASK: [found_images[key] for key in no_mask], NO_IMAGE: [found_masks[key] for key in no_image]}
    if problems and not (both and record_missing(unpaired)):
        raise SegtailorError(f"{where}: {'; '.join(problems)}; add or remove files in {images} and {masks}")
    record_missing({NOT_AN_IMAGE: _other_files(images)})
    return tuple(Pair(found_images[key], found_masks[key], key) for key in both)


def _other_files(images: Path) -> list[Path]:
    return sorted(path for path in list_files(images) if path.suffix.lower() not in IMAGE_SUFFIXES)


def files_by_key(
    folder: Path, suffixes: frozenset[str], key_of: Callable[[str], str | None], where: str
) -> dict[str, Path]:
    """Return the files below ``folder`` by what ``key_of`` makes of their path without suffix (with ``/``).

    Hidden files, other suffixes and files whose key is None are skipped; two files of one key are an error.
    """
    found: defaultdict[str, list[Path]] = defaultdict(list)
    for path in list_files(folder):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        key = key_of(stem) if path.suffix.lower() in suffixes else None
        if key is not None:  # macOS writes accents as separate characters
            found[unicodedata.normalize("NFC", key)].append(path)
    repeated = sorted(key for key, paths in found.items() if len(paths) > 1)
    if repeated and not record_missing({TWICE: (path for key in repeated for path in sorted(found[key]))}):
        raise SegtailorError(
            f"{where}: {Count(len(repeated)):name belongs|names belong} to several files in {folder}: {some(repeated)}"
        )
    return {key: min(paths) for key, paths in found.items()}


def pair_list(path: Path, root: Path, where: str) -> tuple[Pair, ...]:
    """Read a list file with one ``image mask`` pair a line (blanks or a tab between), in its order.

    Paths are under ``root``; leading folders that ``root`` already replaces, as in ``/SegNet/CamVid/train/x.png``,
    are dropped. Empty lines and lines that begin with ``#`` are skipped. Raises ``SegtailorError`` for a line that
    is no pair and for files that are missing.
    """
    pairs: list[Pair] = []
    missing: dict[str, list[str]] = {"image": [], "mask": []}
    for number, line in enumerate(_read_lines(path, where), 1):
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        fields = [field.strip() for field in text.split("\t")] if "\t" in text else text.split()
        if len(fields) != 2:
            raise SegtailorError(f"{path}, line {number}: expected 'image mask', found {len(fields)} fields")
        image, mask = (_under(root, field) for field in fields)
        if image is None:
            missing["image"].append(fields[0])
        if mask is None:
            missing["mask"].append(fields[1])
        if image is not None and mask is not None:
            pairs.append(Pair(image, mask, _name(fields[0])))
    check_missing(missing, bool(pairs), f"{where}: of the files listed in {path}", f"looked under {root}")
    if not pairs:
        raise SegtailorError(f"{path} (the list of {where}) names no files")
    return tuple(pairs)


def check_missing(missing: Mapping[str, Sequence[str]], any_left: bool, of: str, advice: str) -> None:
    """Raise ``SegtailorError`` for listed files that are ``missing``: names by kind, ``image`` and ``mask``.

    While :func:`collect_missing` runs they are recorded instead, if there are ``any_left``.
    """
    problems = [f"{Count(len(names)):{kind}} missing: {some(list(names))}" for kind, names in missing.items() if names]
    if problems and not (any_left and record_missing({MISSING_IMAGE: missing["image"], MISSING_MASK: missing["mask"]})):
        raise SegtailorError(f"{of}, {'; '.join(problems)}; {advice}")


def _under(root: Path, text: str) -> Path | None:
    parts = PurePosixPath(text.replace("\\", "/")).parts
    candidates = [Path(text)] if Path(text).is_absolute() else []
    candidates += [root.joinpath(*parts[start:]) for start in range(len(parts)) if parts[start] != "/"]
    return next((path for path in candidates if path.is_file()), None)


def _name(text: str) -> str:
    return PurePosixPath(text.replace("\\", "/")).stem


def _read_lines(path: Path, where: str) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        raise SegtailorError(f"no such file: {path} (the list of {where}); check data.root") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SegtailorError(f"cannot read {path} (the list of {where}): {type(error).__name__}") from error


def read_ids(path: Path, where: str) -> list[str]:
    """Return the first word of each line of the list at ``path``; raises ``SegtailorError`` when it names nothing."""
    ids = [line.split()[0] for line in _read_lines(path, where) if line.strip()]
    if not ids:
        raise SegtailorError(f"{path} (the list of {where}) names no images")
    return ids


def read_split_ids(lists: Path, split: str, name: str) -> list[str]:
    """Return the ids in ``SPLIT.txt`` of the folder ``lists``; ``trainval`` is both where it has no list."""
    if split == "trainval" and not (lists / "trainval.txt").is_file():
        return read_split_ids(lists, "train", name) + read_split_ids(lists, "val", name)
    return read_ids(lists / f"{split}.txt", f"{name} {split}")


def files_by_stem(folders: Iterable[Path], suffixes: Sequence[str]) -> dict[str, Path]:
    """Return the files in ``folders`` by name without suffix; earlier folders, then earlier suffixes, come first."""
    found: dict[str, Path] = {}
    for folder in filter(Path.is_dir, folders):
        listed = [path for path in folder.iterdir() if path.suffix.lower() in suffixes]
        for path in sorted(listed, key=lambda path: (suffixes.index(path.suffix.lower()), path)):
            found.setdefault(path.stem, path)
    return found


def pair_ids(ids: Sequence[str], images: dict[str, Path], masks: dict[str, Path], where: str) -> tuple[Pair, ...]:
    """Return image and mask of each of ``ids``, in their order; ``where`` names split and folders in errors.

    Raises ``SegtailorError`` for images and masks that are missing.
    """
    missing = {
        kind: [name for name in ids if name not in found] for kind, found in (("image", images), ("mask", masks))
    }
    both = [name for name in ids if name in images and name in masks]
    check_missing(missing, bool(both), f"{where}: of {len(ids)} listed names", "check data.root")
    return tuple(Pair(images[name], masks[name], name) for name in both)
