"""Unlabelled images in training: opened before it, labelled by the teacher in each step, reported after it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segtailor.config import DataConfig
from segtailor.data.base import SegmentationDataset
from segtailor.data.check import check_unlabelled
from segtailor.data.loader import Batch
from segtailor.data.pseudo import UnlabelledImages, check_apart, mix_of, open_unlabelled
from segtailor.engine.launch import on_first_process
from segtailor.engine.logging import read_metrics
from segtailor.engine.module import BatchTarget, TargetKind, target_kind
from segtailor.errors import SegtailorError
from segtailor.files import VOID
from segtailor.losses import Step, full_precision
from segtailor.methods.base import Method
from segtailor.models.network import SegOutput
from segtailor.models.teacher import Teacher

USES: dict[TargetKind, tuple[str, str]] = {
    "supervised": ("labelled images", "passes them over"),
    "pseudo": ("every pixel", "learns from every pixel of them"),
    "pseudo_confident": (
        "confident pixels",
        "takes the teacher's class where it is at least {threshold:g} sure",
    ),
}
"""Where a method learns, by its kind of target: for results, and for a printed line."""


class PseudoLabels:
    """All kinds of targets of a step's micro-batches ``batches``; the teacher's probability counts as sure from
    ``threshold``.

    Padding stays void. Until a micro-batch is labelled, its classes are missing, but which pixels of "pseudo" count is
    known.
    """

    def __init__(self, batches: Sequence[Batch], threshold: float, progress: float) -> None:
        self.batches, self.threshold = batches, threshold
        self.targets: dict[TargetKind, list[Tensor]] = {
            "supervised": [batch.labelled_part().target for batch in batches],
            "pseudo": [_filled(batch, None, None) for batch in batches],
            "pseudo_confident": [batch.target for batch in batches],
        }
        self.steps = {kind: Step(progress, targets) for kind, targets in self.targets.items()}
        self.confident = torch.zeros(2, device=batches[0].target.device)
        """How many pixels of unlabelled images the teacher was sure of, and how many it labelled."""
        self._labelled = [batch.unlabelled is None for batch in batches]

    def of(self, part: int) -> dict[TargetKind, BatchTarget]:
        """Return the targets of micro-batch ``part``."""
        unlabelled = self.batches[part].unlabelled
        rows = {"supervised": None if unlabelled is None else unlabelled.labelled}
        return {kind: BatchTarget(step.targets[part], step, rows.get(kind)) for kind, step in self.steps.items()}

    def label_ahead(self, teacher: Teacher, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        """Label all micro-batches by passes of ``teacher`` over their unlabelled images."""
        for part, batch in enumerate(self.batches):
            if batch.unlabelled is not None:
                rows = batch.unlabelled.rows
                with autocast():
                    output = teacher(batch.images.index_select(0, rows), batch.target.index_select(0, rows))
                self._label(part, teacher, output.logits)

    def label(self, part: int, teacher: Teacher, output: SegOutput) -> None:
        """Label micro-batch ``part`` by the ``output`` of ``teacher`` for it, unless it is labelled already."""
        batch = self.batches[part]
        if not self._labelled[part] and batch.unlabelled is not None:
            self._label(part, teacher, output.logits.index_select(0, batch.unlabelled.rows))

    def _label(self, part: int, teacher: Teacher, logits: Tensor) -> None:
        batch = self.batches[part]
        assert batch.unlabelled is not None
        size, inside = (batch.target.shape[-2], batch.target.shape[-1]), batch.unlabelled.inside
        classes, sure = teacher_classes(teacher, logits, size, self.threshold)
        self.targets["pseudo"][part] = _filled(batch, classes, None)
        self.targets["pseudo_confident"][part] = _filled(batch, classes, sure)
        self._labelled[part] = True
        self.confident += torch.stack([(sure & inside).sum(), inside.sum()])


def _filled(batch: Batch, classes: Tensor | None, sure: Tensor | None) -> Tensor:
    """Return the target with ``classes`` (u,H,W), or 0 before they are known, where ``sure`` on unlabelled images."""
    if batch.unlabelled is None:
        return batch.target
    rows, _, inside = batch.unlabelled
    counted = inside if sure is None else inside & sure
    values = torch.where(counted, 0 if classes is None else classes, VOID).to(torch.uint8)
    return batch.target.index_copy(0, rows, values)


@torch.no_grad()
def teacher_classes(teacher: Teacher, logits: Tensor, size: tuple[int, int], threshold: float) -> tuple[Tensor, Tensor]:
    """Return each pixel's class by the teacher's ``logits`` (B,K,h,w), and whether it is at least ``threshold`` sure.

    Upsampled to ``size`` by the teacher's own rule, one image at a time: classes uint8 (B,H,W) and bool (B,H,W).
    """
    classes, sure = [], []
    for row in range(len(logits)):
        maps = teacher.upsample(full_precision(logits[row : row + 1]), size)[0]
        top, index = maps.max(0)
        # the probability of the top class is 1 / sum(exp(maps - top))
        sure.append((maps - top).exp_().sum(0).mul_(threshold) <= 1)
        classes.append(index.to(torch.uint8))
    return torch.stack(classes), torch.stack(sure)


def check_rows(data: DataConfig, batch: int, micro_batch: int) -> None:
    """Raise ``SegtailorError`` where a micro-batch holds no labelled image, for students that need one in each."""
    mix = mix_of(data.unlabelled, batch)
    if mix.fewest_labelled(micro_batch) == 0:
        raise SegtailorError(
            f"with {mix.unlabelled} unlabelled images in a batch of {batch}, some micro-batches of {micro_batch} hold "
            "no labelled one, from which alone this arm learns; lower data.unlabelled.share or raise train.micro_batch"
        )


def add_unlabelled(
    config: DataConfig, batch: int, data: SegmentationDataset, val: SegmentationDataset, fabric: Any
) -> UnlabelledImages | None:
    """Return the unlabelled images that ``config`` names, if any, checked as ``data.check`` says.

    Prints a warning when some have the name of a validation image. Raises ``SegtailorError`` for a batch too small, a
    folder or files that cannot be read, and images that are validation images.
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


def use_lines(config: DataConfig, methods: Mapping[str, Method]) -> list[str]:
    """Return one line for each method: how it uses unlabelled images; none where there are no such images."""
    if config.unlabelled is None:
        return []
    threshold = config.unlabelled.threshold
    return [
        f"{name}, unlabelled images: {USES[target_kind(method)][1].format(threshold=threshold)}"
        for name, method in methods.items()
    ]


def confident_share(folder: Path) -> float | None:
    """Return the mean of ``confident`` over the steps in the ``metrics.jsonl`` of ``folder``, if it is there."""
    total, steps, before = 0.0, 0, 0
    for line in read_metrics(folder / "metrics.jsonl"):
        if line["kind"] != "train":
            continue
        if "confident" in line:
            total += line["confident"] * (line["step"] - before)
            steps += line["step"] - before
        before = line["step"]
    return total / steps if steps else None
