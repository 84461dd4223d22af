"""Checking a whole data set: open, look into every sample, find, report."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from segtailor.config import DataConfig
from segtailor.data.base import SegmentationDataset
from segtailor.data.checkup.classes import find_classes, tally
from segtailor.data.checkup.colors import find_palettes, find_stored_colors, find_unknown_colors
from segtailor.data.checkup.damage import (
    find_limits,
    find_missing,
    find_rotated,
    find_sizes,
    find_unreadable,
    unreadable_files,
)
from segtailor.data.checkup.duplicates import find_duplicates
from segtailor.data.checkup.examine import Examined
from segtailor.data.checkup.finding import SEVERITIES, Finding
from segtailor.data.checkup.histogram import draw_histogram
from segtailor.data.checkup.report import HISTOGRAM, CheckReport, write_report
from segtailor.data.checkup.rules import OWN, Rules, rules_of
from segtailor.data.checkup.scan import Opened, open_splits, scan
from segtailor.data.checkup.values import find_values
from segtailor.data.masks import ColorValues
from segtailor.data.paired import MaskDataset
from segtailor.errors import SegtailorError

# Kinds of findings that change the classes of every mask they name.
MISREAD = frozenset(
    {
        "binary-mask",
        "colors-read-as-grey",
        "labels-one-too-high",
        "labels-one-too-low",
        "wrong-palette",
        "zero-label-not-reduced",
    }
)


def check_data(
    config: DataConfig,
    *,
    splits: Sequence[str] | None = None,
    out: Path | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> CheckReport:
    """Look into every image and mask of ``splits`` and write what is wrong with them into the folder ``out``.

    ``splits`` are by default the recipe's two, and ``test`` where there is one; ``out`` is ``runs/data-check-NAME``. It
    gets report.json, report.txt and classes.png. Defects are in the report, not raised: ``SegtailorError`` is raised
    when no split, or one of ``splits``, can be opened, and when ``out`` cannot be written.
    """
    begin = time.perf_counter()
    opened = open_splits(config, splits)
    folder = out or Path("runs") / f"data-check-{_label(config)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SegtailorError(
            f"cannot write the report into {folder}: {error.strerror}; choose another --out"
        ) from error
    samples = scan(opened, threads, progress)
    by_split: defaultdict[str, list[Examined]] = defaultdict(list)
    for sample in samples:
        by_split[sample.split].append(sample)
    tallies = [tally(split.dataset, name, by_split[name]) for name, split in opened.splits.items()]
    first = next(iter(opened.splits.values())).dataset
    findings = _find(config, opened, by_split)
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    report = CheckReport(
        config=config,
        name=_label(config),
        classes=first.classes,
        findings=findings,
        tallies=tallies,
        unreadable=unreadable_files(samples),
        samples=len(samples),
        seconds=time.perf_counter() - begin,
        folder=folder,
    )
    draw_histogram(folder / HISTOGRAM, report.name, first.classes, first.palette, tallies)
    write_report(report)
    return report


def _find(config: DataConfig, opened: Opened, by_split: dict[str, list[Examined]]) -> list[Finding]:
    samples = [sample for found in by_split.values() for sample in found]
    limits = {"data.limit": config.limit}
    if config.unlabelled is not None:
        limits["data.unlabelled.limit"] = config.unlabelled.limit
    findings = [
        *find_missing(opened),
        *find_limits(opened, config.train_split, limits),
        *find_unreadable(samples),
        *find_sizes(samples),
        *find_rotated(samples),
    ]
    for rules, masks in _by_rules(config, opened, by_split):
        findings += [*find_stored_colors(rules, masks), *find_palettes(rules, masks), *find_values(rules, masks)]
    colored = [split.dataset for split in opened.splits.values() if _holds_colors(split.dataset)]
    if colored:
        findings += find_unknown_colors(colored[0].palette, samples)
    # masks that are misread would add classes that they do not hold, and lack those that they do
    misread = {place.path for finding in findings if finding.kind in MISREAD for place in finding.places}
    tallies = [
        tally(split.dataset, name, [sample for sample in by_split[name] if sample.mask not in misread])
        for name, split in opened.splits.items()
    ]
    findings += find_classes(tallies, next(iter(opened.splits.values())).dataset.classes, config.train_split)
    return findings + find_duplicates(dict(by_split), config.train_split)


def _by_rules(
    config: DataConfig, opened: Opened, by_split: dict[str, list[Examined]]
) -> list[tuple[Rules, list[Examined]]]:
    """Return the masks by what their values mean: splits may differ in that, as raw ids and train ids do."""
    groups: list[tuple[Rules, list[Examined]]] = []
    for name, split in opened.splits.items():
        rules = rules_of(split.dataset, config)
        if rules is None:
            continue
        for known, masks in groups:
            if known == rules:
                masks += by_split[name]
                break
        else:
            groups.append((rules, list(by_split[name])))
    return groups


def _holds_colors(dataset: SegmentationDataset) -> bool:
    return isinstance(dataset, MaskDataset) and isinstance(dataset.values, ColorValues)


def _label(config: DataConfig) -> str:
    """Return what the data go by: the data set's name, or that of the folder, table or source of a user's own."""
    if config.name not in (*OWN, "coco-json", "packed"):
        return config.name
    place = (
        config.source
        or (config.root and config.root.resolve().name)
        or (config.annotations and config.annotations.resolve().parent.name)
    )
    return re.sub(r"[^\w.-]+", "-", str(place or config.name)).strip("-.") or config.name
