"""Opening every file of a split before training starts."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from segtailor.data.base import SegmentationDataset, some
from segtailor.data.image_io import UnreadableFile, read_image, turn_upright
from segtailor.data.paired import FileDataset, MaskDataset, shape
from segtailor.data.pairing import Pair
from segtailor.errors import SegtailorError


class Finding(NamedTuple):
    """What is wrong with one pair."""

    unreadable: list[str]
    sizes: str | None
    unknown: dict[int, int]
    mask: str


def check_files(dataset: SegmentationDataset, threads: int | None = None) -> None:
    """Decode every image and mask of ``dataset`` in ``threads`` (default: one a core, at most 16) and report once.

    Raises one SegtailorError, on one line, that counts and names unreadable or truncated files, masks of another size
    than their image, and mask values that are neither class nor void. Rows of a table of images are checked one by one;
    drawn scenes pass.
    """
    threads = threads or min(16, os.cpu_count() or 1)
    if not isinstance(dataset, FileDataset):
        whole = getattr(dataset, "whole", dataset)
        if isinstance(whole, MaskDataset):
            _check_rows(dataset, threads)
        return
    with ThreadPoolExecutor(threads) as pool:
        findings = [found for found in pool.map(lambda pair: _examine(dataset, pair), dataset.pairs) if found]
    if findings:
        lines = _lines(findings, dataset.values.describe)
        raise SegtailorError(
            f"{dataset.name} {dataset.split}, {len(dataset)} pairs checked: {'; '.join(lines)}; "
            "mend or remove these files and run again; `segtailor data check` lists all of them"
        )


def _check_rows(dataset: SegmentationDataset, threads: int) -> None:
    def problem(index: int) -> str | None:
        try:
            dataset[index]
        except SegtailorError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(threads) as pool:
        problems = [found for found in pool.map(problem, range(len(dataset))) if found]
    if problems:
        raise SegtailorError(
            f"{dataset.name} {dataset.split}, {len(dataset)} rows checked: {len(problems)} cannot be used: "
            f"{some(problems)}"
        )


def _examine(dataset: FileDataset, pair: Pair) -> Finding | None:
    unreadable = []
    image = mask = None
    try:
        image = read_image(pair.image)
    except UnreadableFile as error:
        unreadable.append(f"{pair.image} ({error})")
    try:
        mask = dataset.read_mask(pair)
    except UnreadableFile as error:
        unreadable.append(f"{pair.mask} ({error})")
    sizes = None
    if image is not None and mask is not None:
        image = turn_upright(image, pair.image, mask.shape)
    if image is not None and mask is not None and tuple(image.shape[-2:]) != mask.shape:
        sizes = f"{pair.mask} ({shape(mask.shape)}, image {shape(image.shape)})"
    unknown = {}
    if mask is not None and dataset.values.to_target(mask) is None:
        unknown = dataset.values.unknown(mask)
    if not (unreadable or sizes or unknown):
        return None
    return Finding(unreadable, sizes, unknown, str(pair.mask))


def _lines(findings: list[Finding], describe: Callable[[int], str]) -> list[str]:
    lines = []
    unreadable = [text for finding in findings for text in finding.unreadable]
    if unreadable:
        lines.append(f"{_files(len(unreadable))} cannot be read: {some(unreadable)}")
    sizes = [finding.sizes for finding in findings if finding.sizes]
    if sizes:
        lines.append(f"{_files(len(sizes), 'mask')} not of the image's size: {some(sizes)}")
    values: dict[int, tuple[int, int, str]] = {}
    for finding in findings:
        for value, count in finding.unknown.items():
            pixels, files, first = values.get(value, (0, 0, finding.mask))
            values[value] = (pixels + count, files + 1, first)
    if values:
        texts = [
            f"{describe(value)} ({pixels} pixels in {_files(files)}, first {first})"
            for value, (pixels, files, first) in sorted(values.items())
        ]
        kind = "value that is" if len(values) == 1 else "values that are"
        lines.append(f"masks hold {len(values)} {kind} neither class nor void: {some(texts)}")
    return lines


def _files(count: int, kind: str = "file") -> str:
    return f"{count} {kind}{'' if count == 1 else 's'}"
