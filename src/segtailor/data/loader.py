"""Training batches whose content is a function of seed and position alone."""

from __future__ import annotations

import atexit
import signal
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from segtailor.config import DataConfig
from segtailor.data.augment import augment
from segtailor.data.base import Sample, SegmentationDataset
from segtailor.data.pseudo import Mix, UnlabelledImages, mix_of
from segtailor.errors import SegtailorError
from segtailor.files import VOID, Size

T = TypeVar("T")


class UnlabelledRows(NamedTuple):
    """Where a micro-batch has no labels.

    ``rows`` (u,) and ``labelled`` (b - u,) are the indices of the two kinds; ``inside`` bool (u,H,W) is False on the
    padding of the unlabelled ones.
    """

    rows: Tensor
    labelled: Tensor
    inside: Tensor


class Batch(NamedTuple):
    """A micro-batch: ``images`` uint8 RGB (b,3,H,W), ``target`` uint8 (b,H,W), and the samples' names.

    The targets of the rows that ``unlabelled`` lists are void.
    """

    images: Tensor
    target: Tensor
    names: list[str]
    unlabelled: UnlabelledRows | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``; copies from pinned memory are asynchronous."""
        unlabelled = self.unlabelled
        if unlabelled is not None:
            unlabelled = UnlabelledRows(*(tensor.to(device, non_blocking=True) for tensor in unlabelled))
        return Batch(
            self.images.to(device, non_blocking=True), self.target.to(device, non_blocking=True), self.names, unlabelled
        )

    def labelled_part(self) -> Batch:
        """Return the batch without its unlabelled rows and without names."""
        if self.unlabelled is None:
            return self
        rows = self.unlabelled.labelled
        return Batch(self.images.index_select(0, rows), self.target.index_select(0, rows), [])


# Numbers of distinct random streams: the order of an epoch and one sample's augmentation, for labelled and for
# unlabelled images.
LABELLED, UNLABELLED = (0, 1), (2, 3)


class Stream:
    """An endless stream: position p is sample ``order[p % len]`` of epoch ``p // len``, augmented."""

    def __init__(
        self,
        images: SegmentationDataset | UnlabelledImages,
        config: DataConfig,
        seed: int,
        crop: Size,
        numbers: tuple[int, int],
    ) -> None:
        self.images, self.config, self.seed, self.crop = images, config, seed, crop
        self.numbers = numbers
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, position: int) -> Sample:
        for_order, for_sample = self.numbers
        epoch, place = divmod(position, len(self.images))
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, for_order, epoch))
            self._epoch, self._order = epoch, rng.permutation(len(self.images))
        sample = self.images[int(self._order[place])]
        rng = np.random.default_rng((self.seed, for_sample, position))
        return augment(sample, rng, self.crop, self.config.scale, self.config.flip, self.images.mean_color)


class TrainingPositions(Dataset[Batch | SegtailorError]):
    """The rows of all global batches, numbered consecutively: which image each is, augmented.

    Labelled and unlabelled rows have a stream each, so that the labelled rows are those of a smaller batch without the
    others.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        config: DataConfig,
        seed: int,
        mix: Mix,
        unlabelled: UnlabelledImages | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise SegtailorError(f"the split {dataset.split} of {dataset.name} holds no images")
        self.seed, self.mix = seed, mix
        crop: Size = config.crop or config.size or _size(dataset[0])
        self.labelled = Stream(dataset, config, seed, crop, LABELLED)
        self.unlabelled = None if unlabelled is None else Stream(unlabelled, config, seed, crop, UNLABELLED)

    def __getitems__(self, positions: list[int]) -> Batch | SegtailorError:
        """Return the batch at ``positions``; a user's error is returned as a value, so that it stays one line."""
        try:
            return self.batch(positions)
        except SegtailorError as error:
            return error

    def batch(self, positions: list[int]) -> Batch:
        """Return the batch at ``positions``; raises ``SegtailorError`` for a file that cannot be used."""
        samples: list[Sample] = []
        kinds: tuple[list[int], list[int]] = [], []  # labelled and unlabelled rows
        for row, position in enumerate(positions):
            step, row_of_step = divmod(position, self.mix.batch)
            is_unlabelled, place = self.mix.place(row_of_step)
            kinds[is_unlabelled].append(row)
            if is_unlabelled and self.unlabelled is not None:
                samples.append(self.unlabelled[step * self.mix.unlabelled + place])
            else:
                samples.append(self.labelled[step * self.mix.labelled + place])
        images, names = torch.stack([sample.image for sample in samples]), [sample.name for sample in samples]
        target = torch.stack([sample.target for sample in samples])
        if not kinds[1]:
            return Batch(images, target, names)
        labelled, rows = (torch.tensor(kind, dtype=torch.int64) for kind in kinds)
        inside = target[rows] != VOID
        target[rows] = VOID
        return Batch(images, target, names, UnlabelledRows(rows, labelled, inside))


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
    unlabelled: UnlabelledImages | None = None,
) -> Iterator[Batch]:
    """Yield this rank's micro-batches of steps ``start_step + 1`` to ``steps``, in order.

    Row i of step n's global batch has the position ``(n - 1) * global_batch + i``, and its sample is a function of
    ``seed`` and the position alone: neither ``config.workers`` nor ``world`` nor ``start_step`` changes it. Rank r
    takes rows ``r * global_batch / world`` onwards. A data set smaller than the batch wraps into its next epoch.

    ``unlabelled`` images take the rows that :func:`mix_of` gives them, evenly spread. The n other rows of a step are
    those of a batch of n without unlabelled images.

    Raises SegtailorError when the batch does not split evenly, and for files that cannot be read.
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
    mix = mix_of(config.unlabelled if unlabelled is not None else None, global_batch)
    batches = _batches(TrainingPositions(dataset, config, seed, mix, unlabelled), plan, config.workers)
    # The workers ignore SIGTERM, by which Python ends them at exit: they have to be stopped before that.
    atexit.register(_close, weakref.ref(batches))
    return batches


def _batches(positions: TrainingPositions, plan: Sequence[list[int]], workers: int) -> Generator[Batch, None, None]:
    loader: DataLoader[Batch | SegtailorError] = DataLoader(
        positions,
        batch_sampler=plan,
        num_workers=min(workers, len(plan)),
        collate_fn=as_is,
        worker_init_fn=_start_worker,
        pin_memory=torch.cuda.is_available(),
        prefetch_factor=4 if workers and plan else None,
        # only seeds torch in the workers, where nothing draws from it; the global generator stays untouched
        generator=torch.Generator().manual_seed(positions.seed),
    )
    iterator = iter(loader)
    processes = list(getattr(iterator, "_workers", ()))
    # PyTorch's handler of SIGCHLD raises wherever the main process is. Without it, a dead worker is found where its
    # batch is fetched: between two steps.
    handled = bool(processes) and hasattr(signal, "SIGCHLD") and _in_main_thread()
    previous = signal.signal(signal.SIGCHLD, signal.SIG_DFL) if handled else None
    try:
        for batch in iterator:
            if isinstance(batch, SegtailorError):
                raise batch
            yield batch
    except (RuntimeError, ConnectionError, EOFError) as error:  # the latter two while a tensor is passed
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise SegtailorError(
            "a data-loading process was killed, probably because memory ran out; lower data.workers or train.batch and "
            "continue with --run.exists resume"
        ) from error
    finally:
        del iterator  # stops the processes; when one is dead, others may not end and would block the exit
        for process in processes:
            process.kill()
            process.join(5)
        if previous is not None and _in_main_thread():
            signal.signal(signal.SIGCHLD, previous)


def _in_main_thread() -> bool:
    """Return whether this thread may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def _close(batches: weakref.ref[Generator[Batch, None, None]]) -> None:
    generator = batches()
    if generator is not None:
        generator.close()


def as_is(batch: T) -> T:
    """Return ``batch``: samples that need no collating."""
    return batch


def _start_worker(_: int) -> None:
    # One thread each: the processes are the parallelism. Ctrl-C and SIGTERM reach the whole process group, but the
    # main process decides when to stop; it needs batches until the step under way is done.
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _size(sample: Sample) -> Size:
    return int(sample.image.shape[-2]), int(sample.image.shape[-1])
