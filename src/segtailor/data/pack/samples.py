"""Reading and encoding the samples that go into a pack, in several processes."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from segtailor.data.base import SegmentationDataset
from segtailor.data.pack.encode import Encoding, Loss, decode_image, encode_image, encode_target, measure_loss
from segtailor.data.paired import FileDataset
from segtailor.errors import SegtailorError
from segtailor.files import Size

SUFFIXES = {"raw": ".npy", "png": ".png", "jpeg": ".jpg"}


class Encoded(NamedTuple):
    """A sample as it goes into a shard; ``image_suffix`` says what kind of file the image is."""

    name: str
    image: bytes
    image_suffix: str
    image_size: Size
    target: bytes
    target_size: Size
    loss: Loss


class Encoder(Dataset[Encoded | SegtailorError]):
    """The encoded samples of ``source``; a user's error is a value, so that it stays one line among processes."""

    def __init__(self, source: SegmentationDataset, encoding: Encoding, quality: int) -> None:
        self.source, self.encoding, self.quality = source, encoding, quality

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Encoded | SegtailorError:
        """Return sample ``index``, encoded."""
        try:
            return self.encode(index)
        except SegtailorError as error:
            return error

    def encode(self, index: int) -> Encoded:
        """Return sample ``index``, encoded; raises ``SegtailorError`` when it cannot be read."""
        sample = self.source[index]
        size, target_size = _size(sample.image.shape), _size(sample.target.shape)
        content, suffix = self._image(index, sample.image)
        loss = Loss()
        if self.encoding == "jpeg":
            stored = decode_image(np.frombuffer(content, np.uint8), self.encoding, size, target_size)
            loss = measure_loss(sample.image, stored)
        target = encode_target(sample.target, self.source.palette)
        return Encoded(sample.name, content, suffix, size, target, target_size, loss)

    def _image(self, index: int, image: torch.Tensor) -> tuple[bytes, str]:
        if self.encoding == "keep":
            path = self._file(index)
            return path.read_bytes(), path.suffix.lower()
        return encode_image(image, self.encoding, self.quality), SUFFIXES[self.encoding]

    def _file(self, index: int) -> Path:
        assert isinstance(self.source, FileDataset)
        return self.source.pairs[index].image


def encode_samples(encoder: Encoder, start: int, workers: int) -> Iterator[Encoded]:
    """Yield the encoded samples from ``start`` on, in order; raises ``SegtailorError`` for the first unreadable one."""
    rest = range(start, len(encoder))
    loader: DataLoader[Any] = DataLoader(
        encoder,
        batch_size=None,
        sampler=rest,
        num_workers=min(workers, len(rest)),
        collate_fn=_as_is,
        worker_init_fn=_start_worker,
        prefetch_factor=4 if workers and rest else None,
    )
    for encoded in loader:
        if isinstance(encoded, SegtailorError):
            raise encoded
        yield encoded


def _as_is(encoded: Any) -> Any:
    return encoded


def _start_worker(_: int) -> None:
    # one thread each: the processes are the parallelism; Ctrl-C is the main process's to answer
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _size(shape: torch.Size) -> Size:
    return int(shape[-2]), int(shape[-1])
