"""Masks that are published as MATLAB files, written as PNGs of class indices."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segtailor.data.coco_stuff import read_labels
from segtailor.data.image_io import UnreadableFile, read_mat, unreadable
from segtailor.data.paired import read_index_mask
from segtailor.data.pairing import Pair

SCRATCH = ".matlab"
"""The folder of MATLAB files, under a data set's root, until all of them are converted."""

Track = Callable[[Sequence[Path], str], Iterable[Path]]


def convert_stuff(root: Path, track: Track) -> str:
    """Write ``annotations/*.png`` of COCO-Stuff 10k from the MATLAB files in ``SCRATCH/annotations``."""
    files = sorted((root / SCRATCH / "annotations").glob("*.mat"))
    _rewrite(files, read_labels, root / "annotations", track)
    return f"annotations: {len(files)} masks"


def merge_boundaries(root: Path, track: Track) -> str:
    """Write ``SegmentationClassAug`` and ``ImageSets/Segmentation/trainaug.txt`` of Pascal VOC 2012 under ``root``.

    The Semantic Boundaries Dataset (Hariharan et al., ICCV 2011) is in ``SCRATCH/cls``. Images that VOC segments
    keep VOC's masks, with their void borders. The list holds all images of both but VOC's validation images:
    10,582.
    """
    lists = root / "ImageSets" / "Segmentation"
    train, val = (set((lists / f"{name}.txt").read_text(encoding="utf-8").split()) for name in ("train", "val"))
    masks = {path.stem: path for path in (root / SCRATCH / "cls").glob("*.mat")}
    masks |= {name: root / "SegmentationClass" / f"{name}.png" for name in train | val}
    files = [masks[name] for name in sorted(masks)]
    _rewrite(files, read_boundaries_mask, root / "SegmentationClassAug", track)
    names = sorted(set(masks) - val)
    (lists / "trainaug.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    return f"SegmentationClassAug: {len(masks)} masks; trainaug.txt: {len(names)} images"


def read_boundaries_mask(pair: Pair) -> NDArray[Any]:
    """Return the class indices (H,W), 0 to 20, of ``pair``: a MATLAB file of ``cls``, or one of VOC's PNGs."""
    return read_mat(pair.mask, "GTcls", "Segmentation") if pair.mask.suffix == ".mat" else read_index_mask(pair)


def _rewrite(files: Sequence[Path], read: Callable[[Pair], NDArray[Any]], folder: Path, track: Track) -> None:
    """Write the mask that each of ``files`` holds into ``folder`` as a grey PNG of its values: whole, or not at all."""
    folder.mkdir(exist_ok=True)
    for path in track(files, f"writing {folder.name}"):
        try:
            mask = read(Pair(path, path, path.stem)).astype(np.uint8)
        except UnreadableFile as error:
            raise unreadable(path, error) from error
        part = folder / f"{path.stem}.png.part"
        Image.fromarray(mask).save(part, "PNG")
        part.replace(part.with_suffix(""))
