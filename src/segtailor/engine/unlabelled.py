"""What a learner is given of images without labels: the teacher's classes as targets, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor

from segtailor.config import DataConfig, TrainConfig
from segtailor.data.loader import Batch
from segtailor.data.pseudo import mix_of
from segtailor.engine.launch import split_batch
from segtailor.errors import SegtailorError
from segtailor.files import VOID
from segtailor.losses import Step, full_precision
from segtailor.methods.base import Method
from segtailor.models.network import SegOutput
from segtailor.models.teacher import Teacher

Reading = Literal["every pixel", "confident pixels", "labelled images"]
"""Where a method learns: beside labelled images from all or only the confident pixels of the others, or not there."""


def reading_of(method: Method) -> Reading:
    """Return where ``method`` learns.

    A teacher of its own is shown the labels, so it has nothing to say about images without any. A method that reads
    classes trusts those of the teacher only where it is sure; one that does not learns from every pixel.
    """
    if method.teacher != "recipe":
        return "labelled images"
    return "confident pixels" if method.labels == "classes" else "every pixel"


class Handed:
    """What a method is given of a micro-batch: its ``target``, and which ``rows`` of the outputs, None for all.

    ``counted`` are the targets of the whole step, one a micro-batch, that its means divide by.
    """

    def __init__(self, target: Tensor, counted: Sequence[Tensor], rows: Tensor | None = None) -> None:
        self.target, self.counted, self.rows = target, counted, rows

    def step(self, step: Step) -> Step:
        """Return ``step`` with the method's targets in place of the task's."""
        return Step(step.progress, self.counted)

    def part_of(self, output: SegOutput) -> SegOutput:
        """Return the method's rows of ``output``; tensors that it does not read may be empty."""
        rows = self.rows
        if rows is None:
            return output

        def chosen(tensor: Tensor | None) -> Any:
            return tensor if tensor is None or tensor.numel() == 0 else tensor.index_select(0, rows)

        return SegOutput(
            logits=chosen(output.logits),
            aux_logits=chosen(output.aux_logits),
            feature=chosen(output.feature),
            classifier_input=chosen(output.classifier_input),
            stages=tuple(chosen(stage) for stage in output.stages),
            taps={name: chosen(value) for name, value in output.taps.items()},
        )


class Handout:
    """What a student and its methods are given of a micro-batch: for the task the labelled rows, and :class:`Handed`.

    A plain class, which neither precision plugins nor data parallelism take apart.
    """

    def __init__(self, task: Handed, methods: Mapping[str, Handed]) -> None:
        self.task, self.methods = task, methods


class StepTargets:
    """The targets of a step's micro-batches ``batches``, for each way of reading them.

    Where a method learns from every pixel, unlabelled images hold the teacher's class; where from confident ones, only
    if its probability is at least ``threshold``, else void. Padding stays void. Until :meth:`label` was called for a
    micro-batch, its classes are not there, but which pixels of the former count is.
    """

    def __init__(self, batches: Sequence[Batch], threshold: float) -> None:
        self.batches, self.threshold = batches, threshold
        self.targets: dict[Reading, list[Tensor]] = {
            "labelled images": [batch.labelled_part().target for batch in batches],
            "every pixel": [_filled(batch, None, None) for batch in batches],
            "confident pixels": [batch.target for batch in batches],
        }
        self._labelled = [batch.unlabelled is None for batch in batches]
        self.confident = torch.zeros(2, device=batches[0].target.device)
        """How many pixels of unlabelled images the teacher was sure of, and how many it labelled."""

    def label_ahead(self, teacher: Teacher, autocast: Callable[[], AbstractContextManager[Any]]) -> None:
        """Label all micro-batches by passes of ``teacher`` over their unlabelled images."""
        for part, batch in enumerate(self.batches):
            if batch.unlabelled is not None:
                rows = batch.unlabelled.rows
                with autocast():
                    output = teacher(batch.images.index_select(0, rows), batch.target.index_select(0, rows))
                self._label(part, teacher, output.logits)

    def label(self, part: int, teacher: Teacher, output: SegOutput) -> None:
        """Label micro-batch ``part`` by what ``teacher`` said of it, unless it is labelled already."""
        batch = self.batches[part]
        if not self._labelled[part] and batch.unlabelled is not None:
            self._label(part, teacher, output.logits.index_select(0, batch.unlabelled.rows))

    def _label(self, part: int, teacher: Teacher, logits: Tensor) -> None:
        batch = self.batches[part]
        assert batch.unlabelled is not None
        size, inside = (batch.target.shape[-2], batch.target.shape[-1]), batch.unlabelled.inside
        classes, sure = teacher_classes(teacher, logits, size, self.threshold)
        self.targets["every pixel"][part] = _filled(batch, classes, None)
        self.targets["confident pixels"][part] = _filled(batch, classes, sure)
        self._labelled[part] = True
        self.confident += torch.stack([(sure & inside).sum(), inside.sum()])

    def handout(self, part: int, readings: Mapping[str, Reading]) -> Handout:
        """Return what is given out of micro-batch ``part`` to a student whose methods learn as ``readings`` says."""
        unlabelled = self.batches[part].unlabelled
        rows = None if unlabelled is None else unlabelled.labelled

        def handed(reading: Reading) -> Handed:
            targets = self.targets[reading]
            return Handed(targets[part], targets, rows if reading == "labelled images" else None)

        return Handout(handed("labelled images"), {name: handed(reading) for name, reading in readings.items()})


@torch.no_grad()
def teacher_classes(teacher: Teacher, logits: Tensor, size: tuple[int, int], threshold: float) -> tuple[Tensor, Tensor]:
    """Return the class of each pixel by the teacher's ``logits`` (B,K,h,w), and whether it is at least so sure of it.

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


def check_rows(train: TrainConfig, data: DataConfig, world: int) -> None:
    """Raise ``SegtailorError`` where a micro-batch holds no labelled image: for learners that need one in each."""
    micro, _ = split_batch(train.batch, train.micro_batch, world)
    mix = mix_of(data.unlabelled, train.batch)
    if mix.fewest_labelled(micro) == 0:
        raise SegtailorError(
            f"with {mix.unlabelled} unlabelled images in a batch of {mix.batch}, some micro-batches of {micro} hold no "
            "labelled one, from which alone this arm learns; lower data.unlabelled.share or raise train.micro_batch"
        )


def _filled(batch: Batch, classes: Tensor | None, sure: Tensor | None) -> Tensor:
    """Return the target with ``classes`` (u,H,W), or 0 before they are known, where ``sure`` on unlabelled images."""
    if batch.unlabelled is None:
        return batch.target
    rows, _, inside = batch.unlabelled
    counted = inside if sure is None else inside & sure
    values = torch.where(counted, 0 if classes is None else classes, VOID).to(torch.uint8)
    return batch.target.index_copy(0, rows, values)
