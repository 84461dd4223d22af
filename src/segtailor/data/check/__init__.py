"""Checking images and masks: ``segtailor data check``, and the check before step 0 of a run."""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from segtailor.config import DataConfig
from segtailor.data import BENCHMARKS
from segtailor.data.base import Count, SegmentationDataset, some
from segtailor.data.check.files import find_damaged, find_duplicates, find_missing, unreadable_files
from segtailor.data.check.offset import HIGH, LOW, OWN, ZERO, Encoding, encoding_of
from segtailor.data.check.report import SEVERITIES, CheckReport, Finding
from segtailor.data.check.scan import UNLABELLED, Opened, SampleStats, count_classes, open_splits, scan
from segtailor.data.check.values import count_unknown, find_binary, find_classes, find_unknown_colors, find_values
from segtailor.data.masks import ColorValues
from segtailor.data.paired import FileDataset, MaskDataset, Subset
from segtailor.data.pseudo import WHERE, UnlabelledImages
from segtailor.errors import SegtailorError
from segtailor.files import VOID

__all__ = ["CheckReport", "check_data", "check_files", "check_unlabelled"]

# Kinds of findings that change the classes of every mask they name.
MISREAD = {"binary-mask", "colors-read-as-grey", "wrong-palette", HIGH, LOW, ZERO}


def check_data(
    config: DataConfig,
    *,
    splits: Sequence[str] | None = None,
    out: Path | None = None,
    threads: int | None = None,
    progress: bool = False,
) -> CheckReport:
    """Read every image and mask of ``splits`` and write a report of all defects into the folder ``out``.

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
    datasets = opened.splits
    unlabelled = {UNLABELLED: opened.unlabelled} if opened.unlabelled is not None else {}
    samples = scan({**datasets, **unlabelled}, threads, progress=progress)
    by_split: defaultdict[str, list[SampleStats]] = defaultdict(list)
    for sample in samples:
        by_split[sample.split].append(sample)
    first = next(iter(datasets.values()))
    report = CheckReport(
        config=config,
        name=_label(config),
        classes=first.classes,
        palette=first.palette,
        findings=sorted(_find(config, opened, by_split), key=lambda finding: SEVERITIES.index(finding.severity)),
        tallies=[count_classes(dataset, name, by_split[name]) for name, dataset in datasets.items()],
        unreadable=unreadable_files(samples),
        samples=len(samples),
        seconds=time.perf_counter() - begin,
        folder=folder,
    )
    report.write()
    return report


def _find(config: DataConfig, opened: Opened, by_split: dict[str, list[SampleStats]]) -> list[Finding]:
    samples = [sample for group in by_split.values() for sample in group]
    datasets = opened.splits
    findings = [*find_missing(opened, config), *find_damaged(samples)]
    # splits may differ in the meaning of their masks' values, as raw ids and train ids do
    groups: list[tuple[Encoding, list[SampleStats]]] = []
    for name, dataset in datasets.items():
        encoding = encoding_of(dataset, config)
        same = next((masks for known, masks in groups if known == encoding), None)
        if same is not None:
            same += by_split[name]
        elif encoding is not None:
            groups.append((encoding, list(by_split[name])))
    for encoding, masks in groups:
        findings += find_values(encoding, masks)
    for dataset in datasets.values():
        if isinstance(dataset, MaskDataset) and isinstance(dataset.values, ColorValues):
            findings += find_unknown_colors(dataset.palette, samples)
            break
    # misread masks would distort the counts of classes
    misread = {at.path for finding in findings if finding.kind in MISREAD for at in finding.locations}
    tallies = [
        count_classes(dataset, name, (sample for sample in by_split[name] if sample.mask not in misread))
        for name, dataset in datasets.items()
    ]
    findings += find_classes(tallies, next(iter(datasets.values())).classes, config.train_split)
    return findings + find_duplicates(dict(by_split), config.train_split)


def _label(config: DataConfig) -> str:
    """Return a short name of the data: the data set's, or that of its folder or source."""
    if config.name not in (*OWN, "coco-json", "packed"):
        return config.name
    folder = config.root or (config.annotations and config.annotations.parent)
    place = config.source or (folder and folder.resolve().name)
    return re.sub(r"[^\w.-]+", "-", str(place or config.name)).strip("-.") or config.name


def check_files(dataset: SegmentationDataset, config: DataConfig | None = None, threads: int | None = None) -> None:
    """Read every image and mask of ``dataset`` in ``threads`` (default: one a core, at most 16) and report once.

    Raises one SegtailorError, on one line, that counts and names unreadable or truncated files or rows, masks of
    another size than their image, and mask values that are neither class nor void; with ``config`` also a split whose
    masks hold only 0 and 255 where 255 is no class. Drawn scenes and readers with rules of their own pass.
    """
    whole = dataset.whole if isinstance(dataset, Subset) else dataset
    if not isinstance(whole, MaskDataset):
        return
    if problems := list(_problems(whole, scan({dataset.split: dataset}, threads, pictures=False), config)):
        unit, advice = "rows", ""
        if isinstance(dataset, FileDataset):
            unit, advice = (
                "pairs",
                "; fix or remove these files and run again; `segtailor data check` lists all of them",
            )
        raise SegtailorError(
            f"{dataset.name} {dataset.split}, {len(dataset)} {unit} checked: {'; '.join(problems)}{advice}"
        )


def check_unlabelled(images: UnlabelledImages, threads: int | None = None) -> None:
    """Decode every image in ``threads`` (default: one a core, at most 16); unreadable ones raise one SegtailorError."""
    if bad := unreadable_files(scan({UNLABELLED: images}, threads, pictures=False)):
        raise SegtailorError(
            f"{images.folder} ({WHERE}), {len(images)} images checked: {Count(len(bad)):file} cannot be read: "
            f"{some(list(map(str, bad)))}; fix or remove these files and run again"
        )


def _problems(dataset: MaskDataset, samples: Sequence[SampleStats], config: DataConfig | None) -> Iterator[str]:
    unit = "file" if isinstance(dataset, FileDataset) else "row"
    if unreadable := unreadable_files(samples):
        yield f"{Count(len(unreadable)):{unit}} cannot be read: {some(list(map(str, unreadable)))}"
    for finding in find_damaged(samples):
        if finding.kind == "size-mismatch":
            yield f"{finding.text}: {some(list(map(str, finding.locations)))}"
    values = dataset.values
    _, pixels, holding, first = count_unknown(samples, lambda value: values.meaning(value) is not None)
    texts = [
        f"{values.describe(value)} ({pixels[value]} pixels in {Count(holding[value]):{unit}}, first {first[value]})"
        for value in sorted(pixels)
    ]
    if texts:
        hint = "" if unit == "file" or not values.hint else f"; {values.hint}"
        kinds = Count(len(texts))
        yield f"masks hold {kinds:value that is|values that are} neither class nor void: {some(texts)}{hint}"
    # a benchmark's void is 255, and a few of its masks may hold one class
    encoding = encoding_of(dataset, config) if config is not None and config.name not in BENCHMARKS else None
    read = [sample for sample in samples if sample.values]
    no_others = all(mask.values.keys() <= {0, VOID} for mask in read)
    if encoding is not None and encoding.stored and VOID not in encoding.declared and no_others:
        for finding in find_binary(encoding, read):
            yield f"{finding.text} (fix: {'; '.join(finding.fix())})"
