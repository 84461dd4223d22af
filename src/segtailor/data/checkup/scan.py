"""Opening all splits of a data set in spite of what is wrong, and looking into every sample in parallel."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from rich.console import Console
from rich.progress import track

from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.data.base import SegmentationDataset
from segtailor.data.checkup.examine import Examined, examine
from segtailor.data.paired import FileDataset
from segtailor.data.pairing import MissingFiles, collect_missing
from segtailor.data.pseudo import UnlabelledImages, open_unlabelled
from segtailor.errors import SegtailorError

TEST = "test"
UNLABELLED = "unlabelled"


class OpenedSplit(NamedTuple):
    """One split, and the files that were left out of it."""

    dataset: SegmentationDataset
    unpaired: MissingFiles


class Opened(NamedTuple):
    """The splits by name, the errors of those that could not be opened, and the unlabelled images, if any."""

    splits: dict[str, OpenedSplit]
    failed: dict[str, str]
    unlabelled: UnlabelledImages | None


def open_splits(config: DataConfig, splits: Sequence[str] | None = None) -> Opened:
    """Open ``splits``, by default the recipe's two and ``test`` where there is one; what lacks a partner is left out.

    Raises ``SegtailorError`` when none can be opened, or one that ``splits`` names.
    """
    whole = config.model_copy(update={"limit": None, "unlabelled": None})
    names = list(dict.fromkeys(splits or (config.train_split, config.val_split)))
    opened: dict[str, OpenedSplit] = {}
    failed: dict[str, str] = {}
    errors: list[SegtailorError] = []
    for name in names:
        try:
            opened[name] = _open(whole, name)
        except SegtailorError as error:
            if splits is not None:
                raise
            failed[name] = str(error)
            errors.append(error)
    if not opened:
        raise errors[0]
    # a hub is not asked for what the recipe does not name
    if splits is None and TEST not in names and config.name != "hf":
        _add_test(whole, opened)
    unlabelled = None
    if config.unlabelled is not None:
        first = next(iter(opened.values())).dataset
        try:
            unlabelled = open_unlabelled(
                config.unlabelled.model_copy(update={"limit": None}), config.size, first.mean_color
            )
        except SegtailorError as error:
            failed[UNLABELLED] = str(error)
    return Opened(opened, failed, unlabelled)


def _open(config: DataConfig, split: str) -> OpenedSplit:
    with collect_missing() as unpaired:
        dataset = create_dataset(config, split, training=split == config.train_split)
    return OpenedSplit(dataset, unpaired)


def _add_test(config: DataConfig, opened: dict[str, OpenedSplit]) -> None:
    try:
        test = _open(config, TEST)
    except SegtailorError:
        return  # there is none
    if isinstance(test.dataset, FileDataset):
        # where a path does not depend on the split, every name opens the same files
        images = {pair.image for pair in test.dataset.pairs}
        for split in opened.values():
            if isinstance(split.dataset, FileDataset) and images == {pair.image for pair in split.dataset.pairs}:
                return
    opened[TEST] = test


def scan(opened: Opened, threads: int | None = None, progress: bool = False) -> list[Examined]:
    """Look into every sample, in ``threads`` (default: one a core, at most 16); with a bar where there is a terminal.

    Decoders release the interpreter's lock, so threads use all cores.
    """
    datasets: dict[str, SegmentationDataset | UnlabelledImages] = {
        name: split.dataset for name, split in opened.splits.items()
    }
    if opened.unlabelled is not None:
        datasets[UNLABELLED] = opened.unlabelled
    console = Console(stderr=True)
    pool = ThreadPoolExecutor(threads or min(16, os.cpu_count() or 1))

    def results() -> Iterator[Examined]:
        for name, dataset in datasets.items():
            yield from pool.map(partial(examine, dataset, name), range(len(dataset)))

    try:
        bar = track(
            results(),
            "checking",
            total=sum(map(len, datasets.values())),
            console=console,
            disable=not (progress and console.is_terminal),
            transient=True,
        )
        return list(bar)
    finally:
        pool.shutdown(cancel_futures=True)
