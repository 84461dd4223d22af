"""Scoring a model on a data set, always at the masks' own size."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segtailor.data.base import Sample, SegmentationDataset
from segtailor.errors import SegtailorError
from segtailor.evaluation.boundary import BoundaryMetrics, BoundarySettings
from segtailor.evaluation.calibration import Agreement, Calibration
from segtailor.evaluation.confusion import EvaluationResult, check_counts, count_images
from segtailor.evaluation.inference import Mode, evaluating, predict_logits
from segtailor.files import VOID, Size


class Metrics:
    """The measures that were asked for; their sums stay on ``device`` until :meth:`result`.

    >>> metrics = Metrics(2, boundary=BoundarySettings())
    >>> labels = torch.tensor([[[0, 0, 1, 1]]])
    >>> metrics.update(torch.zeros(1, 2, 1, 4), labels, labels)
    >>> metrics.result()["boundary"]["miou"]
    1.0
    """

    def __init__(
        self,
        num_classes: int,
        device: str | torch.device = "cpu",
        *,
        boundary: BoundarySettings | None = None,
        calibration: bool = False,
        agreement: bool = False,
    ) -> None:
        self._parts: dict[str, BoundaryMetrics | Calibration | Agreement] = {}
        if boundary:
            self._parts["boundary"] = BoundaryMetrics(num_classes, boundary, device)
        if calibration:
            self._parts["calibration"] = Calibration(num_classes, device)
        if agreement:
            self._parts["agreement"] = Agreement(num_classes, device)

    def update(self, logits: Tensor, prediction: Tensor, target: Tensor, teacher: Tensor | None = None) -> None:
        """Add images of one size: ``logits`` (B,K,H,W), their ``prediction``, ``target`` and the teacher's prediction.

        The last three are (B,H,W), class indices; whatever is no class in ``target`` is void. Raises ValueError where
        agreement was asked for and ``teacher`` is missing.
        """
        for part in self._parts.values():
            if isinstance(part, BoundaryMetrics):
                part.update(prediction, target)
            elif isinstance(part, Calibration):
                part.update(logits, target, prediction)
            elif teacher is None:
                raise ValueError("agreement needs the teacher's prediction")
            else:
                part.update(prediction, target, teacher)

    def all_reduce(self) -> None:
        """Add up the sums of all processes, once; nothing without a process group."""
        parts = list(self._parts.values())
        if not parts or not (dist.is_available() and dist.is_initialized()):
            return
        total = torch.cat([part.state for part in parts])
        dist.all_reduce(total)
        for part, state in zip(parts, torch.split(total, [len(part.state) for part in parts]), strict=True):
            part.state.copy_(state)

    def result(self) -> dict[str, Any]:
        """Return a section of plain numbers for each measure that was asked for."""
        return {name: part.result() for name, part in self._parts.items()}


Numbered = tuple[int, Sample]
"""A sample and its place in the data set."""


def evaluate_model(
    model: nn.Module,
    dataset: SegmentationDataset,
    *,
    device: str | torch.device = "cpu",
    batch: int = 4,
    mode: Mode = "whole",
    window: Size | None = None,
    stride: Size | None = None,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
    autocast: torch.dtype | None = None,
    workers: int = 0,
    boundary: BoundarySettings | None = None,
    calibration: bool = False,
    teacher: nn.Module | None = None,
    per_image: bool = False,
) -> EvaluationResult:
    """Score ``model`` on the first ``limit`` images (default: all) of ``dataset``; the same on every rank.

    Process ``rank`` of ``world`` scores every ``world``-th image, none twice, and the counts are summed once. ``batch``
    images of equal size go through the model together; ``workers`` threads read ahead. The model is moved to ``device``
    and its train or eval mode is put back afterwards. ``mode``, ``window`` and ``stride`` as in
    :func:`~segtailor.evaluation.inference.predict_logits`.

    Also, where asked for, from the same predictions: ``boundary`` scores, ``calibration``, agreement with ``teacher``
    (seen through the same window), and ``per_image`` confusion matrices, which take N*K*K*4 bytes.

    Raises SegtailorError when the model's classes are not the data set's, when the data set is empty, or when a mask
    holds a value that is no class.
    """
    num_classes = len(dataset.classes)
    networks = [model] if teacher is None else [model, teacher]
    for network in networks:
        check_classes(network, dataset.classes)
    if len(dataset) == 0:
        raise SegtailorError("nothing to evaluate: the split holds no images")
    began = time.perf_counter()
    device = torch.device(device)
    scored = range(len(dataset))[:limit]
    indices = scored[rank::world]
    cells = num_classes * num_classes
    counts = torch.zeros(cells + 256, dtype=torch.int64, device=device)
    own = torch.zeros(len(scored), cells, dtype=torch.int32) if per_image else None
    metrics = Metrics(num_classes, device, boundary=boundary, calibration=calibration, agreement=teacher is not None)

    infer = partial(predict_logits, mode=mode, window=window, stride=stride, fill=dataset.mean_color)
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(evaluating(network.to(device)))
        if autocast is not None:
            stack.enter_context(torch.autocast(device.type, autocast))
        for group in _equal_sizes(zip(indices, _read(dataset, indices, workers), strict=True), batch):
            numbers, samples = [number for number, _ in group], [sample for _, sample in group]
            images = torch.stack([sample.image for sample in samples]).to(device)
            target = torch.stack([sample.target for sample in samples]).to(device)
            size = target.shape[-2], target.shape[-1]
            guide = None if teacher is None else infer(teacher, images, size, target=target).argmax(1)
            logits = infer(model, images, size, target=target)
            prediction = logits.argmax(1)
            each = count_images(prediction, target, num_classes)
            if own is not None:
                own[numbers] = each[:, :cells].int().cpu()
            found = each.sum(0)
            if world == 1:  # with several processes the check waits for the sum, so that all of them stop together
                names = [sample.name for sample in samples]
                check_counts(found, num_classes, names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}")
            counts += found
            metrics.update(logits, prediction, target, guide)
    if world > 1:
        dist.all_reduce(counts)
        check_counts(counts, num_classes, "the evaluated split")
        metrics.all_reduce()
        if own is not None:  # the rows of images that others scored are zero, so a sum fills them
            own = own.to(device)
            dist.all_reduce(own)
    counts = counts.cpu()
    return EvaluationResult(
        confusion=counts[:cells].view(num_classes, num_classes),
        classes=tuple(dataset.classes),
        images=len(scored),
        void_pixels=int(counts[cells + VOID]),
        per_image=None if own is None else own.cpu().view(-1, num_classes, num_classes),
        **metrics.result(),
        seconds=time.perf_counter() - began,
    )


def check_classes(model: nn.Module, classes: Sequence[str]) -> None:
    """Raise SegtailorError when ``model`` has another number of classes, or knows one of ``classes`` by another number.

    A name that only one side has is accepted: data sets spell their classes in several ways.
    """
    count = getattr(model, "num_classes", len(classes))
    remedy = "use weights trained on these classes, or a class map (teacher.class_map in a recipe, --class-map FILE)"
    if count != len(classes):
        raise SegtailorError(f"the model has {count} classes but the data set has {len(classes)}; {remedy}")
    own = getattr(model, "classes", ())
    for index, name in enumerate(classes):
        if isinstance(own, tuple) and name in own and own[index] != name:
            raise SegtailorError(
                f"the classes are in another order: '{name}' is class {own.index(name)} of the model and class {index} "
                f"of the data; {remedy}"
            )


def _read(dataset: SegmentationDataset, indices: Sequence[int], workers: int) -> Iterator[Sample]:
    """Yield the samples in order; threads, because decoding releases the GIL and an error keeps its one line."""
    if workers == 0:
        yield from (dataset[index] for index in indices)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        ahead: deque[Future[Sample]] = deque()
        for index in indices:
            ahead.append(pool.submit(dataset.__getitem__, index))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _equal_sizes(numbered: Iterator[Numbered], batch: int) -> Iterator[list[Numbered]]:
    """Group a stream into batches of one image size and one mask size, holding few images at a time."""
    waiting: dict[tuple[torch.Size, torch.Size], list[Numbered]] = {}
    for number, sample in numbered:
        size = sample.image.shape, sample.target.shape
        waiting.setdefault(size, []).append((number, sample))
        if len(waiting[size]) == batch:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) >= 8 * batch:  # many sizes: let the group that waited longest go
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()
