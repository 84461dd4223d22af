"""A micro-batch: samples stacked, labelled and unlabelled ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from segtailor.data.base import Sample
from segtailor.errors import SegtailorError
from segtailor.files import VOID


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
