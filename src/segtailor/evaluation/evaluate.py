"""Scoring a model on a data set, always at the masks' own size."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segtailor.errors import SegtailorError
from segtailor.evaluation.confusion import VOID, EvaluationResult, check_counts, count_pixels
from segtailor.evaluation.inference import Color, Mode, Size, evaluating, predict_logits


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
) -> EvaluationResult:
    """Score ``model`` on the first ``limit`` images (default: all) of ``dataset``; the same on every rank.

    Process ``rank`` of ``world`` scores every ``world``-th image, none twice, and the counts are summed once. ``batch``
    images of equal size go through the model together; ``workers`` threads read ahead. The model is moved to ``device``
    and its train or eval mode is put back afterwards. ``mode``, ``window`` and ``stride`` as in
    :func:`~segtailor.evaluation.inference.predict_logits`.

    Raises SegtailorError when the model's class count differs from the data set's, when the data set is empty, or when
    a mask holds a value that is no class.
    """
    num_classes = len(dataset.classes)
    check_classes(model, num_classes)
    if len(dataset) == 0:
        raise SegtailorError("nothing to evaluate: the split holds no images")
    began = time.perf_counter()
    device = torch.device(device)
    model.to(device)
    indices = list(range(len(dataset)))[:limit][rank::world]
    sees_target = bool(getattr(model, "sees_target", False))
    counts = torch.zeros(num_classes * num_classes + 256, dtype=torch.int64, device=device)
    precision = nullcontext() if autocast is None else torch.autocast(device.type, autocast)
    with evaluating(model), precision:
        for samples in _equal_sizes(_read(dataset, indices, workers), batch):
            images = torch.stack([sample.image for sample in samples]).to(device)
            target = torch.stack([sample.target for sample in samples]).to(device)
            logits = predict_logits(
                model,
                images,
                (target.shape[-2], target.shape[-1]),
                mode=mode,
                window=window,
                stride=stride,
                fill=dataset.mean_color,
                target=target if sees_target else None,
            )
            found = count_pixels(logits.argmax(1), target, num_classes)
            if world == 1:  # with several processes the check waits for the sum, so that all of them stop together
                check_counts(found, num_classes, _names(samples))
            counts += found
    if world > 1:
        dist.all_reduce(counts)
        check_counts(counts, num_classes, "the evaluated split")
    counts = counts.cpu()
    cells = num_classes * num_classes
    return EvaluationResult(
        confusion=counts[:cells].view(num_classes, num_classes),
        classes=tuple(dataset.classes),
        images=min(len(dataset), limit if limit is not None else len(dataset)),
        seconds=time.perf_counter() - began,
        void_pixels=int(counts[cells + VOID]),
    )


def check_classes(model: nn.Module, num_classes: int) -> None:
    """Raise SegtailorError when ``model`` does not have ``num_classes`` classes."""
    own = getattr(model, "num_classes", num_classes)
    if own != num_classes:
        raise SegtailorError(
            f"the model has {own} classes but the data set has {num_classes}; use weights trained on these classes"
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


def _equal_sizes(samples: Iterator[LabelledImage], batch: int) -> Iterator[list[LabelledImage]]:
    """Group a stream into batches of one image size and one mask size, holding few images at a time."""
    waiting: dict[tuple[torch.Size, torch.Size], list[LabelledImage]] = {}
    for sample in samples:
        size = sample.image.shape, sample.target.shape
        waiting.setdefault(size, []).append(sample)
        if len(waiting[size]) == batch:
            yield waiting.pop(size)
        elif sum(map(len, waiting.values())) >= 8 * batch:  # many sizes: let the group that waited longest go
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def _names(samples: Sequence[LabelledImage]) -> str:
    names = [sample.name for sample in samples]
    return names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
