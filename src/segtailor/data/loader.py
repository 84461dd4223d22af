"""Training batches whose content is a function of seed and position alone."""

from __future__ import annotations

import atexit
import signal
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from segtailor.config import DataConfig
from segtailor.data.augment import augment
from segtailor.data.base import Sample, SegmentationDataset
from segtailor.data.read import Size
from segtailor.errors import SegtailorError

# Streams of random numbers that must not be the same: the order of an epoch, and one sample's augmentation.
ORDER, AUGMENT = 0, 1


class Batch(NamedTuple):
    """A micro-batch: ``images`` uint8 RGB (b,3,H,W), ``target`` uint8 (b,H,W), and the samples' names."""

    images: Tensor
    target: Tensor
    names: list[str]


class TrainingPositions(Dataset[Sample]):
    """The endless training stream: position p is sample ``order[p % len]`` of epoch ``p // len``, augmented."""

    def __init__(self, dataset: SegmentationDataset, config: DataConfig, seed: int) -> None:
        if len(dataset) == 0:
            raise SegtailorError(f"the split {dataset.split} of {dataset.name} holds no images")
        self.dataset, self.config, self.seed = dataset, config, seed
        self.crop: Size = config.crop or config.size or _size(dataset[0])
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, position: int) -> Sample:
        """Return the augmented sample at ``position``."""
        epoch, place = divmod(position, len(self.dataset))
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, ORDER, epoch))
            self._epoch, self._order = epoch, self.dataset.order(epoch, rng)
        sample = self.dataset[int(self._order[place])]
        rng = np.random.default_rng((self.seed, AUGMENT, position))
        return augment(sample, rng, self.crop, self.config.scale, self.config.flip, self.dataset.mean_color)

    def __getitems__(self, positions: list[int]) -> list[Sample] | SegtailorError:
        """Return the samples at ``positions``; a user's error is handed on as a value, so that it stays one line."""
        try:
            return [self[position] for position in positions]
        except SegtailorError as error:
            return error


def train_batches(
    dataset: SegmentationDataset,
    config: DataConfig,
    *,
    seed: int,
    global_batch: int,
    micro_batch: int,
    rank: int = 0,
    world: int = 1,
    start_step: int = 0,
    steps: int,
) -> Iterator[Batch]:
    """Yield this rank's micro-batches of steps ``start_step + 1`` to ``steps``, in order.

    Row i of step n's global batch stands at position ``(n - 1) * global_batch + i``, and what comes there is a function
    of ``seed`` and the position alone: neither ``config.workers`` nor ``world`` nor ``start_step`` changes it. Rank r
    takes rows ``r * global_batch / world`` onwards. A data set smaller than the batch wraps into its next epoch.

    Raises SegtailorError when the batch does not split evenly, and for files that turn out bad while training.
    """
    if global_batch % world or (global_batch // world) % micro_batch:
        raise SegtailorError(
            f"a batch of {global_batch} does not split into {world} processes with micro-batches of {micro_batch}; "
            "change train.batch or train.micro_batch"
        )
    rows = global_batch // world
    firsts = [
        step * global_batch + rank * rows + first
        for step in range(start_step, steps)
        for first in range(0, rows, micro_batch)
    ]
    plan = [list(range(first, first + micro_batch)) for first in firsts]
    batches = _batches(TrainingPositions(dataset, config, seed), plan, config.workers)
    # The workers ignore SIGTERM, with which Python would end them on leaving: they are asked to stop before that.
    atexit.register(_close, weakref.ref(batches))
    return batches


def _batches(positions: TrainingPositions, plan: Sequence[list[int]], workers: int) -> Generator[Batch, None, None]:
    loader: DataLoader[Sample] = DataLoader(
        positions,
        batch_sampler=plan,
        num_workers=min(workers, len(plan)),
        collate_fn=collate,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers and plan else None,
        # only seeds torch in the workers, where nothing draws from it; its own so that the global state stays as it was
        generator=torch.Generator().manual_seed(positions.seed),
    )
    for batch in loader:
        if isinstance(batch, SegtailorError):
            raise batch
        yield batch


def _close(batches: weakref.ref[Generator[Batch, None, None]]) -> None:
    generator = batches()
    if generator is not None:
        generator.close()


def collate(samples: Sequence[Sample] | SegtailorError) -> Batch | SegtailorError:
    """Stack samples of one size into a batch; an error passes through."""
    if isinstance(samples, SegtailorError):
        return samples
    images = torch.stack([sample.image for sample in samples])
    target = torch.stack([sample.target for sample in samples])
    return Batch(images, target, [sample.name for sample in samples])


def _start_worker(_: int) -> None:
    # One thread each: the processes are the parallelism. Ctrl-C and SIGTERM reach the whole process group, but the
    # main process decides when to stop; it needs batches until the step under way is done.
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _size(sample: Sample) -> Size:
    return int(sample.image.shape[-2]), int(sample.image.shape[-1])
