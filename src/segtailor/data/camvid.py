"""CamVid with 11 classes, the SegNet split (Brostow et al., Pattern Recognition Letters 30, 2009)."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath

from segtailor.config import DataConfig
from segtailor.data.benchmark import BenchmarkDataset, Variant
from segtailor.data.paired import FileDataset
from segtailor.data.pairing import Pair, pair_folders, pair_list, require_folder
from segtailor.errors import SegtailorError

CAMVID = BenchmarkDataset(
    name="camvid",
    title="CamVid: frames of drives through Cambridge, 11 classes, the SegNet split",
    license="CamVid (Brostow et al., 2009): research use",
    root=Path("data/camvid"),
    variants=(
        Variant("default", "camvid", {"train": 367, "val": 101, "test": 233, "trainval": 468, "fit": 295, "dev": 72}),
    ),
    hint="set data.root or SEGTAILOR_CAMVID to the folder that holds CamVid's train, trainannot, val and valannot",
)
# Of each recorded sequence, the share of training frames that `dev` takes from its end.
DEV_SHARE = 5


def create_camvid(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return a split of CamVid: ``SPLIT/`` and ``SPLITannot/``, frames .png or .jpg; ``SPLIT.txt`` lists the frames.

    ``trainval`` is both where the tree does not give it; ``fit`` and ``dev`` are cut from ``train``: see
    :func:`cut_sequences`. The root is ``config.root``, else ``$SEGTAILOR_CAMVID``, else ``data/camvid``. Without a list
    file all frames of the folder are taken.
    """
    variant = CAMVID.variant(config)
    root = require_folder(config.root or Path(os.environ.get("SEGTAILOR_CAMVID") or CAMVID.root), CAMVID.hint)
    given = (root / f"{split}.txt").is_file() or (root / split).is_dir()
    if not given:
        CAMVID.require_split(variant, split, f"A further split is a folder or a list of that name in {root}")
    if split in ("fit", "dev"):
        pairs = cut_sequences(_pairs(root, "train"), split)
    elif split == "trainval" and not given:
        pairs = (*_pairs(root, "train"), *_pairs(root, "val"))
    else:
        pairs = _pairs(root, split)
    return CAMVID.open(pairs, config, variant, split, training)


def _pairs(root: Path, split: str) -> tuple[Pair, ...]:
    listed = root / f"{split}.txt"
    where = f"camvid {split}"
    if listed.is_file():
        return pair_list(listed, root, where)
    images, masks = (CAMVID.folder(root, name) for name in (split, f"{split}annot"))
    return pair_folders(images, masks, where)


def cut_sequences(pairs: tuple[Pair, ...], split: str) -> tuple[Pair, ...]:
    """Return the part ``dev`` of the training frames, the last fifth of each recorded sequence, or the rest, ``fit``.

    A frame's sequence is its name before the first underscore, and its time the number at the name's end. The cut is
    in time, not at random, as frames that follow one another are nearly the same picture. Raises ``SegtailorError``
    when no sequence has five frames.
    """
    sequences: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        sequences[PurePosixPath(pair.name).name.partition("_")[0]].append(pair)
    dev: set[Pair] = set()
    for frames in sequences.values():
        frames.sort(key=lambda pair: (int("0" + re.findall(r"\d*$", pair.name)[0]), pair.name))
        dev.update(frames[len(frames) - len(frames) // DEV_SHARE :])
    if not dev:
        raise SegtailorError(
            f"camvid {split} is cut from train by time, but no recorded sequence there has {DEV_SHARE} frames; a "
            "frame's sequence is its name before the first underscore, as in 0001TP_006690"
        )
    return tuple(pair for pair in pairs if (pair in dev) == (split == "dev"))
