"""Masks that are published as MATLAB files, written as PNGs of class indices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segtailor.data.read import UnreadableFile, read_mask, unreadable
from segtailor.errors import SegtailorError

SCRATCH = ".matlab"
"""Where MATLAB files lie, under a data set's root, until all of them are converted."""

Track = Callable[[Sequence[Path], str], Iterable[Path]]


def require_scipy() -> None:
    """Raise ``SegtailorError`` when MATLAB files cannot be read."""
    try:
        import scipy.io
    except ImportError:
        raise SegtailorError(
            'its masks are MATLAB files, and reading them needs the extra data: pip install "segtailor[data]"'
        ) from None
    del scipy


def read_boundaries_mask(path: Path) -> NDArray[np.uint8]:
    """Return the class indices (H,W), 0 to 20, of a file of the Semantic Boundaries Dataset's ``cls`` folder."""
    return _load(path, lambda content: content["GTcls"][0]["Segmentation"][0])


def read_stuff_mask(path: Path) -> NDArray[np.uint8]:
    """Return the labels (H,W) of a file of COCO-Stuff 10k as COCO-Stuff 164k stores them: 0 to 181, 255 unlabelled."""
    # there 0 is unlabelled, and every class one higher
    return _load(path, lambda content: content["S"].astype(np.int64) - 1)


def _load(path: Path, pick: Callable[[dict[str, Any]], NDArray[Any]]) -> NDArray[np.uint8]:
    from scipy.io import loadmat

    try:
        mask: NDArray[np.uint8] = np.asarray(pick(loadmat(path))).astype(np.uint8)
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise SegtailorError(f"cannot read {path} as a mask ({type(error).__name__})") from error
    if mask.ndim != 2:
        raise SegtailorError(f"cannot read {path} as a mask: it is {mask.shape}, not height and width")
    return mask


def convert_stuff(root: Path, track: Track) -> str:
    """Write ``annotations/*.png`` of COCO-Stuff 10k from the MATLAB files in ``SCRATCH/annotations``."""
    files = sorted((root / SCRATCH / "annotations").glob("*.mat"))
    (root / "annotations").mkdir(exist_ok=True)
    for path in track(files, "writing annotations"):
        save(read_stuff_mask(path), root / "annotations" / f"{path.stem}.png")
    return f"annotations: {len(files)} masks"


def merge_boundaries(root: Path, track: Track) -> str:
    """Write ``SegmentationClassAug`` and ``ImageSets/Segmentation/trainaug.txt`` of Pascal VOC 2012 under ``root``.

    The Semantic Boundaries Dataset (Hariharan et al., ICCV 2011) lies in ``SCRATCH/cls``. Images that VOC segments
    itself keep VOC's masks, with their void borders. The list holds all images of both but VOC's validation images:
    10,582.
    """
    lists, out = root / "ImageSets" / "Segmentation", root / "SegmentationClassAug"
    train, val = (set((lists / f"{name}.txt").read_text(encoding="utf-8").split()) for name in ("train", "val"))
    masks = {path.stem: path for path in (root / SCRATCH / "cls").glob("*.mat")}
    masks |= {name: root / "SegmentationClass" / f"{name}.png" for name in train | val}
    out.mkdir(exist_ok=True)
    for path in track([masks[name] for name in sorted(masks)], "writing SegmentationClassAug"):
        save(_any_mask(path), out / f"{path.stem}.png")
    names = sorted(set(masks) - val)
    (lists / "trainaug.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return f"SegmentationClassAug: {len(masks)} masks; trainaug.txt: {len(names)} images"


def _any_mask(path: Path) -> NDArray[np.uint8]:
    if path.suffix == ".mat":
        return read_boundaries_mask(path)
    try:
        mask: NDArray[np.uint8] = read_mask(path)
    except UnreadableFile as error:
        raise unreadable(path, error) from error
    return mask


def save(mask: NDArray[np.uint8], path: Path) -> None:
    """Write ``mask`` (H,W) as a grey PNG of its values: whole, or not at all."""
    part = path.with_name(path.name + ".part")
    Image.fromarray(mask).save(part, "PNG")
    part.replace(path)
