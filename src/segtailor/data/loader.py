"""Training batches whose content is a function of seed and position alone."""

from __future__ import annotations

import atexit
import signal
import threading
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from segtailor.config import DataConfig
from segtailor.data.augment import augment
from segtailor.data.base import Sample, SegmentationDataset
from segtailor.data.pseudo import Mix, UnlabelledImages, mix_of
from segtailor.errors import SegtailorError
from segtailor.files import VOID, Color, Size


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

    Where ``unlabelled`` says that a row has no labels, its target is void.
    """

    images: Tensor
    target: Tensor
    names: list[str]
    unlabelled: UnlabelledRows | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on ``device``; copies from pinned memory are not waited for."""
        unlabelled = self.unlabelled
        if unlabelled is not None:
            unlabelled = UnlabelledRows(*(tensor.to(device, non_blocking=True) for tensor in unlabelled))
        return Batch(
            self.images.to(device, non_blocking=True), self.target.to(device, non_blocking=True), self.names, unlabelled
        )

    def labelled_part(self) -> Batch:
        """Return the batch without its unlabelled rows; names stay behind."""
        if self.unlabelled is None:
            return self
        rows = self.unlabelled.labelled
        return Batch(self.images.index_select(0, rows), self.target.index_select(0, rows), [])


class UnlabelledSample(NamedTuple):
    """One image without labels, as :class:`Sample`; ``inside`` bool (H,W) is False on padding."""

    image: Tensor
    inside: Tensor
    name: str


def collate(samples: Sequence[Sample | UnlabelledSample] | SegtailorError) -> Batch | SegtailorError:
    """Stack samples of one size into a batch; an error passes through."""
    if isinstance(samples, SegtailorError):
        return samples
    images, names = torch.stack([sample.image for sample in samples]), [sample.name for sample in samples]
    targets: list[Tensor] = []
    kinds: tuple[list[int], list[int]] = [], []
    inside: list[Tensor] = []
    for row, sample in enumerate(samples):
        unlabelled = isinstance(sample, UnlabelledSample)
        kinds[unlabelled].append(row)
        if isinstance(sample, UnlabelledSample):
            inside.append(sample.inside)
            targets.append(torch.full(sample.inside.shape, VOID, dtype=torch.uint8))
        else:
            targets.append(sample.target)
    target = torch.stack(targets)
    if not inside:
        return Batch(images, target, names)
    labelled, rows = (torch.tensor(kind, dtype=torch.int64) for kind in kinds)
    return Batch(images, target, names, UnlabelledRows(rows, labelled, torch.stack(inside)))


# Streams of random numbers that must not be the same: the order of an epoch, and one sample's augmentation, of labelled
# and of unlabelled images.
LABELLED, UNLABELLED = (0, 1), (2, 3)


class Images(Protocol):
    """What a stream reads: a labelled split, or unlabelled images."""

    mean_color: Color

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class Stream:
    """An endless stream: position p is sample ``order[p % len]`` of epoch ``p // len``, augmented."""

    def __init__(self, images: Images, config: DataConfig, seed: int, crop: Size, numbers: tuple[int, int]) -> None:
        self.images, self.config, self.seed, self.crop = images, config, seed, crop
        self.numbers = numbers
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __getitem__(self, position: int) -> Sample:
        """Return the augmented sample at ``position``."""
        for_order, for_sample = self.numbers
        epoch, place = divmod(position, len(self.images))
        if epoch != self._epoch:
            rng = np.random.default_rng((self.seed, for_order, epoch))
            self._epoch, self._order = epoch, rng.permutation(len(self.images))
        sample = self.images[int(self._order[place])]
        rng = np.random.default_rng((self.seed, for_sample, position))
        return augment(sample, rng, self.crop, self.config.scale, self.config.flip, self.images.mean_color)


class TrainingPositions(Dataset[Sample | UnlabelledSample]):
    """The rows of all global batches, numbered through: which image comes there, augmented.

    Labelled and unlabelled rows have a stream each, so that the labelled rows are those of a smaller batch without the
    others.
    """

    def __init__(
        self,
        dataset: SegmentationDataset,
        config: DataConfig,
        seed: int,
        mix: Mix | None = None,
        unlabelled: UnlabelledImages | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise SegtailorError(f"the split {dataset.split} of {dataset.name} holds no images")
        self.seed, self.mix = seed, mix or Mix(1)
        crop: Size = config.crop or config.size or _size(dataset[0])
        self.labelled = Stream(dataset, config, seed, crop, LABELLED)
        self.unlabelled = None if unlabelled is None else Stream(unlabelled, config, seed, crop, UNLABELLED)

    def __getitem__(self, position: int) -> Sample | UnlabelledSample:
        """Return the augmented sample at ``position``."""
        step, row = divmod(position, self.mix.batch)
        unlabelled, place = self.mix.place(row)
        if not unlabelled or self.unlabelled is None:
            return self.labelled[step * self.mix.labelled + place]
        sample = self.unlabelled[step * self.mix.unlabelled + place]
        return UnlabelledSample(sample.image, sample.target != VOID, sample.name)

    def __getitems__(self, positions: list[int]) -> list[Sample | UnlabelledSample] | SegtailorError:
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
    unlabelled: UnlabelledImages | None = None,
) -> Iterator[Batch]:
    """Yield this rank's micro-batches of steps ``start_step + 1`` to ``steps``, in order.

    Row i of step n's global batch is at position ``(n - 1) * global_batch + i``, and what comes there is a function
    of ``seed`` and the position alone: neither ``config.workers`` nor ``world`` nor ``start_step`` changes it. Rank r
    takes rows ``r * global_batch / world`` onwards. A data set smaller than the batch wraps into its next epoch.

    ``unlabelled`` images take the rows that :func:`mix_of` gives them, evenly spread. The n others of a step are then
    those of a batch of n without unlabelled images.

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
    mix = mix_of(config.unlabelled if unlabelled is not None else None, global_batch)
    batches = _batches(TrainingPositions(dataset, config, seed, mix, unlabelled), plan, config.workers)
    # The workers ignore SIGTERM, with which Python would end them on leaving: they are asked to stop before that.
    atexit.register(_close, weakref.ref(batches))
    return batches


def _batches(positions: TrainingPositions, plan: Sequence[list[int]], workers: int) -> Generator[Batch, None, None]:
    loader: DataLoader[Sample | UnlabelledSample] = DataLoader(
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
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise SegtailorError(
            "a data-loading process was killed, probably because memory ran out; lower data.workers or train.batch and "
            "continue with --run.exists resume"
        ) from error
    finally:
        del (
            iterator
        )  # asks the processes to end; those that do not, one of them being dead, would be waited for at exit
        for process in processes:
            process.kill()
        if previous is not None and _in_main_thread():
            signal.signal(signal.SIGCHLD, previous)


def _in_main_thread() -> bool:
    """Return whether this thread may set signal handlers."""
    return threading.current_thread() is threading.main_thread()


def _close(batches: weakref.ref[Generator[Batch, None, None]]) -> None:
    generator = batches()
    if generator is not None:
        generator.close()


def _start_worker(_: int) -> None:
    # One thread each: the processes are the parallelism. Ctrl-C and SIGTERM reach the whole process group, but the
    # main process decides when to stop; it needs batches until the step under way is done.
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _size(sample: Sample) -> Size:
    return int(sample.image.shape[-2]), int(sample.image.shape[-1])
