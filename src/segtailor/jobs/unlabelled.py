"""The unlabelled images of a run: opened and checked before it starts, told before and after it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from segtailor.config import DataConfig
from segtailor.data.base import SegmentationDataset
from segtailor.data.pseudo import (
    UnlabelledImages,
    check_apart,
    check_unlabelled,
    mix_of,
    open_unlabelled,
)
from segtailor.engine.launch import on_first_process
from segtailor.engine.logging import read_metrics
from segtailor.engine.unlabelled import Reading, reading_of
from segtailor.errors import SegtailorError
from segtailor.methods.base import Method

WORDS: dict[Reading, str] = {
    "every pixel": "learns from every pixel of them",
    "confident pixels": "takes the teacher's class where it is at least {threshold:g} sure",
    "labelled images": "passes them over",
}


def add_unlabelled(
    config: DataConfig, batch: int, data: SegmentationDataset, val: SegmentationDataset, fabric: Any
) -> UnlabelledImages | None:
    """Return the unlabelled images that ``config`` names, if any, checked as ``data.check`` says.

    Says it on the terminal when some go by the name of a validation image. Raises ``SegtailorError`` for a batch too
    small, a folder or files that cannot be read, and images that are validation images.
    """
    if config.unlabelled is None:
        return None
    mix = mix_of(config.unlabelled, batch)
    images = open_unlabelled(config.unlabelled, config.size, data.mean_color)
    if config.check:
        on_first_process(fabric, partial(check_unlabelled, images))
    warning = on_first_process(fabric, partial(check_apart, images, val))
    if fabric.is_global_zero:
        print(
            f"unlabelled: {len(images)} images of {images.folder} beside {len(data)} labelled ones; "
            f"{mix.unlabelled} in each batch of {mix.batch}",
            file=sys.stderr,
        )
        if warning is not None:
            print(f"warning: {warning}", file=sys.stderr)
    return images


def refuse_unlabelled(config: DataConfig) -> None:
    """Raise ``SegtailorError`` where a training without a teacher is given unlabelled images."""
    if config.unlabelled is not None:
        raise SegtailorError(
            "data.unlabelled needs a teacher, and `segtailor train` has none; remove it, or use `segtailor distill`"
        )


def reading_lines(config: DataConfig, methods: Mapping[str, Method]) -> list[str]:
    """Return one line for each method: what it makes of unlabelled images; none where there are no such images."""
    if config.unlabelled is None:
        return []
    threshold = config.unlabelled.threshold
    return [
        f"{name}, unlabelled images: {WORDS[reading_of(method)].format(threshold=threshold)}"
        for name, method in methods.items()
    ]


def unlabelled_facts(
    config: DataConfig,
    batch: int,
    data: SegmentationDataset,
    images: UnlabelledImages | None,
    readings: Mapping[str, Reading],
    folder: Path,
) -> dict[str, Any]:
    """Return what results say of a run in ``folder`` with unlabelled images; nothing without any.

    ``confident`` is the share of their pixels of which the teacher was at least ``threshold`` sure, over the run; None
    where no method learns from them.
    """
    if images is None or config.unlabelled is None:
        return {}
    mix = mix_of(config.unlabelled, batch)
    return {
        "unlabelled": {
            "images": len(images),
            "labelled_images": len(data),
            "rows": mix.unlabelled,
            "labelled_rows": mix.labelled,
            "threshold": config.unlabelled.threshold,
            "confident": confident_share(folder),
            "methods": dict(readings),
        }
    }


def confident_share(folder: Path) -> float | None:
    """Return the mean of ``confident`` over the steps that ``metrics.jsonl`` in ``folder`` tells of, if it does."""
    total, steps, before = 0.0, 0, 0
    for line in read_metrics(folder / "metrics.jsonl"):
        if line["kind"] != "train":
            continue
        if "confident" in line:
            total += line["confident"] * (line["step"] - before)
            steps += line["step"] - before
        before = line["step"]
    return total / steps if steps else None
