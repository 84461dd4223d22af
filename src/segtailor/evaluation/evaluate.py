"""Scoring a model on a data set, always at the masks' own size."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segtailor.errors import SegtailorError
from segtailor.evaluation.boundary import BoundaryMetrics, BoundarySettings
from segtailor.evaluation.calibration import Agreement, Calibration
from segtailor.evaluation.confusion import EvaluationResult, check_counts, count_images
from segtailor.evaluation.inference import Mode, evaluating, predict_logits
from segtailor.files import VOID, Color, Size


class Metrics:
    """The measures that were asked for; their sums stay on ``device`` until :meth:`result`.

    >>> metrics = Metrics(2, boundary=BoundarySettings())
    >>> metrics.update(torch.tensor([[[0, 0, 1, 1]]]), torch.tensor([[[0, 0, 1, 1]]]))
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
        self._boundary = BoundaryMetrics(num_classes, boundary, device) if boundary else None
        self._calibration = Calibration(num_classes, device) if calibration else None
        self._agreement = Agreement(num_classes, device) if agreement else None

    @property
    def _parts(self) -> dict[str, BoundaryMetrics | Calibration | Agreement]:
        parts = {"boundary": self._boundary, "calibration": self._calibration, "agreement": self._agreement}
        return {name: part for name, part in parts.items() if part is not None}

    def update(
        self,
        output: Tensor,
        target: Tensor,
        teacher_prediction: Tensor | None = None,
        *,
        prediction: Tensor | None = None,
    ) -> None:
        """Add images of one size.

        ``output`` is logits (B,K,H,W), or a prediction (B,H,W) where calibration is not asked for; ``prediction``
        spares an argmax of logits where it is known. ``target`` and ``teacher_prediction`` (B,H,W) are class indices;
        whatever is no class in ``target`` is void. Raises ValueError for an ``output`` or a teacher that is missing.
        """
        if prediction is None:
            prediction = output.argmax(1) if output.ndim == 4 else output
        if self._boundary:
            self._boundary.update(prediction, target)
        if self._calibration:
            if output.ndim != 4:
                raise ValueError("calibration needs logits (B,K,H,W), not a prediction")
            self._calibration.update(output, target, prediction)
        if self._agreement:
            if teacher_prediction is None:
                raise ValueError("agreement needs the teacher's prediction")
            self._agreement.update(prediction, target, teacher_prediction)

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


class LabelledImage(Protocol):
    """One image (3,H,W) uint8 RGB, its target (H,W) and its name; ``data.Sample`` is one."""

    @property
    def image(self) -> Tensor: ...  # noqa: D102
    @property
    def target(self) -> Tensor: ...  # noqa: D102
    @property
    def name(self) -> str: ...  # noqa: D102


class LabelledImages(Protocol):
    """What evaluation asks of a data set; every ``data.SegmentationDataset`` is one."""

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def mean_color(self) -> Color: ...  # noqa: D102
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> LabelledImage: ...


Numbered = tuple[int, LabelledImage]
"""A sample and its place in the data set."""


def evaluate_model(
    model: nn.Module,
    dataset: LabelledImages,
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

    Raises SegtailorError when the model's class count differs from the data set's, when the data set is empty, or when
    a mask holds a value that is no class.
    """
    num_classes = len(dataset.classes)
    networks = [model] if teacher is None else [model, teacher]
    for network in networks:
        check_classes(network, num_classes)
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

    def logits_of(network: nn.Module, images: Tensor, target: Tensor) -> Tensor:
        return predict_logits(
            network,
            images,
            (target.shape[-2], target.shape[-1]),
            mode=mode,
            window=window,
            stride=stride,
            fill=dataset.mean_color,
            target=target,
        )

    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(evaluating(network.to(device)))
        if autocast is not None:
            stack.enter_context(torch.autocast(device.type, autocast))
        for group in _equal_sizes(zip(indices, _read(dataset, indices, workers), strict=True), batch):
            numbers, samples = [number for number, _ in group], [sample for _, sample in group]
            images = torch.stack([sample.image for sample in samples]).to(device)
            target = torch.stack([sample.target for sample in samples]).to(device)
            teacher_prediction = None if teacher is None else logits_of(teacher, images, target).argmax(1)
            logits = logits_of(model, images, target)
            prediction = logits.argmax(1)
            each = count_images(prediction, target, num_classes)
            if own is not None:
                own[numbers] = each[:, :cells].int().cpu()
            found = each.sum(0)
            if world == 1:  # with several processes the check waits for the sum, so that all of them stop together
                check_counts(found, num_classes, _names(samples))
            counts += found
            metrics.update(logits, target, teacher_prediction, prediction=prediction)
    if world > 1:
        dist.all_reduce(counts)
        check_counts(counts, num_classes, "the evaluated split")
        metrics.all_reduce()
        own = None if own is None else _gather(own, device)
    counts = counts.cpu()
    return EvaluationResult(
        confusion=counts[:cells].view(num_classes, num_classes),
        classes=tuple(dataset.classes),
        images=len(scored),
        void_pixels=int(counts[cells + VOID]),
        per_image=None if own is None else own.view(-1, num_classes, num_classes),
        **metrics.result(),
        seconds=time.perf_counter() - began,
    )


def check_classes(model: nn.Module, num_classes: int) -> None:
    """Raise SegtailorError when ``model`` does not have ``num_classes`` classes."""
    own = getattr(model, "num_classes", num_classes)
    if own != num_classes:
        raise SegtailorError(
            f"the model has {own} classes but the data set has {num_classes}; use weights trained on these classes, or "
            "a class map (teacher.class_map in a recipe, --class-map FILE)"
        )


def _read(dataset: LabelledImages, indices: Sequence[int], workers: int) -> Iterator[LabelledImage]:
    """Yield the samples in order; threads, because decoding releases the GIL and an error keeps its one line."""
    if workers == 0:
        yield from (dataset[index] for index in indices)
        return
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        ahead: deque[Future[LabelledImage]] = deque()
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


def _gather(own: Tensor, device: torch.device) -> Tensor:
    """Fill each rank's rows of images that others scored; they are zero, so a sum does it."""
    everyones = own.to(device)
    dist.all_reduce(everyones)
    return everyones.cpu()


def _names(samples: Sequence[LabelledImage]) -> str:
    names = [sample.name for sample in samples]
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
