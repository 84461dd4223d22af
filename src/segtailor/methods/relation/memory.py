"""What is kept of earlier batches: for each class a ring of the teacher's vectors."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from segtailor.errors import SegtailorError
from segtailor.methods.relation.divergence import unit


def class_pixels(labels: Tensor, num_classes: int, most: int) -> tuple[Tensor, Tensor]:
    """Choose up to ``most`` random positions of each class in each image.

    ``labels`` (B,n) int64, ``num_classes`` where a position is void. Returns positions (B,K,most) and how many of them,
    from the front, are meant (B,K).
    """
    shuffled = torch.rand(labels.shape, device=labels.device).argsort(1)
    grouped = labels.gather(1, shuffled).argsort(dim=1, stable=True)
    order = shuffled.gather(1, grouped)  # by class, at random within each
    counts = count_labels(labels, num_classes)
    start = counts.cumsum(1) - counts
    place = (start.unsqueeze(2) + torch.arange(most, device=labels.device)).clamp(max=labels.shape[1] - 1)
    index = order.gather(1, place.flatten(1)).view(place.shape)
    return index, counts.clamp(max=most)


def raster_pixels(labels: Tensor, num_classes: int, most: int) -> tuple[Tensor, Tensor]:
    """Choose positions as the published code does: a class of c pixels gets some of the image's first c positions."""
    counts = count_labels(labels, num_classes)
    position = torch.arange(labels.shape[1], device=labels.device)
    draws = torch.rand(*counts.shape, labels.shape[1], device=labels.device)
    draws = draws.masked_fill_(position >= counts.unsqueeze(2), 2)
    index = draws.topk(min(most, labels.shape[1]), largest=False).indices
    return index, counts.clamp(max=most)


def count_labels(labels: Tensor, num_classes: int) -> Tensor:
    """Count the positions of each class, without void: int64 (B,K)."""
    counts = labels.new_zeros(len(labels), num_classes + 1)
    return counts.scatter_add_(1, labels, torch.ones_like(labels))[:, :num_classes]


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Return the vectors of ``rows`` (B,n,C) at the positions ``index`` (B,K,V): (B,K,V,C)."""
    image = torch.arange(len(rows), device=rows.device).view(-1, 1, 1)
    flat = (index + image * rows.shape[1]).flatten()
    return rows.flatten(0, 1).index_select(0, flat).view(*index.shape, -1)


def class_means(rows: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Return the direction of each class's mean of ``rows`` (B,n,C) in each image, (B,K,1,C), and which exist (B,K)."""
    classes = torch.arange(num_classes, device=labels.device).view(-1, 1)
    belongs = labels.unsqueeze(1) == classes
    # A product, not index_add: the sum's order must not change from run to run.
    return unit(torch.bmm(belongs.to(rows.dtype), rows)).unsqueeze(2), belongs.any(2).long()


def from_all_processes(values: Tensor) -> Tensor:
    """Concatenate ``values`` of all processes along the first axis; every process must give the same shape."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return values
    parts = [torch.empty_like(values, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, values.contiguous())
    return torch.cat(parts)


class VectorQueue(nn.Module):
    """The last ``size`` vectors of each class, first in first out.

    ``queue`` (K * size + 1, C) is class after class; its last row takes what is not meant. ``pointer`` (K) is the next
    slot, ``filled`` (K) how many slots hold a vector. With ``noise`` the queue starts full of random directions.
    """

    queue: Tensor
    pointer: Tensor
    filled: Tensor

    def __init__(self, num_classes: int, size: int, width: int, noise: bool = False) -> None:
        super().__init__()
        self.num_classes, self.size = num_classes, size
        shape = (num_classes * size + 1, width)
        self.register_buffer("queue", unit(torch.randn(shape)) if noise else torch.zeros(shape))
        self.register_buffer("pointer", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("filled", torch.full((num_classes,), size if noise else 0, dtype=torch.int64))

    @torch.no_grad()
    def enqueue(self, vectors: Tensor, counts: Tensor, legacy: bool = False) -> None:
        """Append, image after image, the first ``counts`` (I,K) of ``vectors`` (I,K,V,C) to each class.

        A step that brings more than the queue holds leaves the newest. ``legacy``: an image that reaches a class's end
        overwrites its last slots, and the next image begins at its first. Raises :class:`SegtailorError` where that
        could happen twice in one step.
        """
        images, classes, most = vectors.shape[:3]
        rank = torch.arange(most, device=vectors.device)
        meant = rank < counts.unsqueeze(2)
        total = counts.sum(0)
        before = counts.cumsum(0) - counts
        if legacy:
            if images * most > self.size:
                raise SegtailorError(
                    f"legacy_enqueue needs queues of at least {images * most} vectors for each class, and has "
                    f"{self.size}: {images} images bring up to {most} each; lengthen them or turn it off"
                )
            after = self.pointer + before + counts
            beyond = after >= self.size
            wrapping = beyond & (beyond.cumsum(0) == 1)
            reached, taken = (after * wrapping).sum(0), (counts * wrapping).sum(0)
            base = torch.where(wrapping, self.size - counts, after - counts - reached * beyond)
            slot = base.unsqueeze(2) + rank
            meant = meant & (beyond.unsqueeze(2) | (slot < (self.size - taken).unsqueeze(1)))  # else overwritten
            self.pointer.copy_(after[-1] - reached)
        else:
            order = before.unsqueeze(2) + rank
            meant = meant & (order >= (total - self.size).unsqueeze(1))
            slot = (self.pointer.unsqueeze(1) + order) % self.size
            self.pointer.add_(total).remainder_(self.size)
        self.filled.add_(total).clamp_(max=self.size)
        start = torch.arange(classes, device=vectors.device).unsqueeze(1) * self.size
        row = torch.where(meant, start + slot, self.num_classes * self.size)
        self.queue.index_copy_(0, row.flatten(), vectors.masked_fill(~meant.unsqueeze(3), 0).flatten(0, 2))

    def sample(self, number: int, shared: bool = False) -> tuple[Tensor, Tensor]:
        """Draw ``number`` vectors of each class, (K * number, C), and say which of them exist (K * number).

        Drawn with replacement from the slots that hold a vector, for each class anew; ``shared`` draws the same slots
        for all classes, without replacement and from the whole queue, hence at most ``size``.
        """
        device = self.queue.device
        if shared:
            slot = torch.randperm(self.size, device=device)[:number].expand(self.num_classes, -1)
        else:
            draws = torch.rand(self.num_classes, number, device=device) * self.filled.unsqueeze(1)
            slot = torch.minimum(draws.long(), (self.filled - 1).unsqueeze(1)).clamp(min=0)
        start = torch.arange(self.num_classes, device=device).unsqueeze(1) * self.size
        exists = (self.filled > 0).unsqueeze(1).expand_as(slot)
        return self.queue.index_select(0, (start + slot).flatten()), exists.flatten()
