"""The parts of CIRKD: similarities within a batch, the memory of earlier vectors, and the projector between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segtailor.errors import SegtailorError
from segtailor.losses import OUTSIDE, standardize

BLOCK = {"cpu": 2**21, "cuda": 2**24}
"""Similarities held at a time: few enough for a processor's cache, enough to fill a GPU."""
SMALL = 1e-4
"""Vectors shorter than this are not stretched to length 1, so that their gradients stay bounded."""


def directions(maps: Tensor) -> Tensor:
    """Return the vectors of ``maps`` (B,C,h,w) at each position, of length 1: (B,h*w,C).

    >>> directions(torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])).tolist()
    [[[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]]
    """
    return unit(maps.flatten(2).transpose(1, 2).contiguous())


def unit(vectors: Tensor) -> Tensor:
    """Return ``vectors`` (...,C) with length 1; zero vectors stay zero."""
    return F.normalize(vectors, dim=-1, eps=SMALL)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def relation_kl(
    student: tuple[Tensor, Tensor],
    teacher: tuple[Tensor, Tensor],
    weight: Tensor,
    temperature: float,
    multiplicity: Tensor | None = None,
) -> Tensor:
    """Sum over anchors and groups of weight times KL(teacher || student) between softmaxes over the group's keys.

    ``student`` and ``teacher`` are (anchors (N,C), keys (G,n,C)), each with its own C; the logits are their products
    divided by ``temperature``. ``weight`` (N,G). ``multiplicity`` (G,n) says how often each key counts; 0 leaves it
    out, and a group without keys gives 0. The N x G x n similarities are never held at once, and the gradient is
    computed along with the value. Not compiled, since the loop over blocks would be unrolled.

    >>> anchors, keys = torch.eye(2), torch.eye(2).unsqueeze(0)
    >>> teacher = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    >>> round(relation_kl((anchors, keys), (teacher, keys), torch.ones(2, 1), 1.0).item(), 5)
    0.46212
    """
    bias = None
    if multiplicity is not None:
        inside = multiplicity > 0
        bias = torch.where(inside, torch.where(inside, multiplicity, 1).to(weight.dtype).log(), OUTSIDE).flatten()
    total: Tensor = _RelationKL.apply(*student, *teacher, weight, temperature, bias)
    return total


def _probabilities(anchors: Tensor, keys: Tensor, groups: int, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits and softmax over each group's keys, both (r,G,n), and the log of its denominator (r,G)."""
    logits = anchors @ keys.t() if bias is None else torch.addmm(bias, anchors, keys.t())
    logits = logits.view(len(anchors), groups, -1)
    probabilities = logits.softmax(-1)
    # Of the largest logit the softmax is at least 1/n: cheaper than a sum of exponentials, and as exact.
    return logits, probabilities, logits.amax(-1).sub_(probabilities.amax(-1).log_())


class _RelationKL(torch.autograd.Function):
    """With p = softmax(anchor . key / T): dL/dlogit = weight (p_s - p_t), from which both sides' gradients follow."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        keys: Tensor,
        guide_anchors: Tensor,
        guide_keys: Tensor,
        weight: Tensor,
        temperature: float,
        bias: Tensor | None,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        groups, shape = len(keys), keys.shape
        keys, guide_keys = keys.flatten(0, 1), guide_keys.flatten(0, 1)
        anchors, guide_anchors = anchors / temperature, guide_anchors / temperature
        grad_anchors = torch.empty_like(anchors) if wanted[0] else None
        grad_keys = torch.zeros_like(keys) if wanted[1] else None
        total = weight.new_zeros(())
        rows = max(1, BLOCK.get(anchors.device.type, BLOCK["cuda"]) // max(1, len(keys)))
        for start in range(0, len(anchors), rows):
            part = slice(start, start + rows)
            own, found, own_rate = _probabilities(anchors[part], keys, groups, bias)
            guide, expected, guide_rate = _probabilities(guide_anchors[part], guide_keys, groups, bias)
            divergence = guide.sub_(own).mul_(expected).sum(-1).add_(own_rate).sub_(guide_rate)
            total += (divergence * weight[part]).sum()
            if not any(wanted):
                continue
            slope = found.sub_(expected).mul_(weight[part].unsqueeze(-1)).flatten(1)
            if grad_anchors is not None:
                torch.mm(slope, keys, out=grad_anchors[part])
            if grad_keys is not None:
                grad_keys.addmm_(slope.t(), anchors[part])
        ctx.save_for_backward(
            None if grad_anchors is None else grad_anchors.div_(temperature),
            None if grad_keys is None else grad_keys.view(shape),
        )
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        grad_anchors, grad_keys = (None if saved is None else saved * gradient for saved in ctx.saved_tensors)
        return grad_anchors, grad_keys, None, None, None, None, None


def minibatch_relations(
    student: Tensor, teacher: Tensor, counts: Tensor | None, temperature: float, within_image: bool = True
) -> Tensor:
    """Sum over pixels of the mean over images of KL(teacher || student) between softmaxes over an image's pixels.

    ``student`` (B,C,h,w), ``teacher`` (B,C',h,w); ``counts`` (B,h*w) says how many label pixels each position stands
    for, as an anchor and as a key (1 where None). The mean is over the images that have any, an anchor's own among
    them only ``within_image``; without a pair the value is 0.
    """
    anchors, guides = directions(student), directions(teacher)
    images = len(anchors)
    weight = anchors.new_ones(anchors.shape[:2]) if counts is None else counts.to(anchors.dtype)
    present = (weight.sum(1) > 0).to(anchors.dtype)
    pairs = torch.ones(images, images, dtype=anchors.dtype, device=anchors.device)
    if not within_image:
        pairs.fill_diagonal_(0)
    share = pairs / (pairs @ present).clamp(min=1).unsqueeze(1)
    total: Tensor = relation_kl(
        (anchors.flatten(0, 1), anchors),
        (guides.flatten(0, 1), guides),
        (weight.unsqueeze(2) * share.unsqueeze(1)).flatten(0, 1),
        temperature,
        counts,
    )
    return total


def pooled(maps: Tensor, counts: Tensor | None, side: int) -> Tensor:
    """Average ``maps`` (B,C,h,w) over squares of ``side``, each position as often as ``counts`` (B,h*w) says.

    >>> pooled(torch.tensor([[[[1.0, 4.0, 7.0]]]]), torch.tensor([[1.0, 2.0, 0.0]]), 2).tolist()
    [[[[3.0, 0.0]]]]
    """
    if counts is None:
        return F.avg_pool2d(maps, side, ceil_mode=True)
    weight = counts.view(len(maps), 1, *maps.shape[-2:]).to(maps.dtype)
    return _sums(maps * weight, side) / _sums(weight, side).clamp(min=1)


def pooled_counts(counts: Tensor, size: Sequence[int], side: int) -> Tensor:
    """Sum ``counts`` (B,h*w) over squares of ``side``: (B, squares)."""
    return _sums(counts.view(len(counts), 1, *size), side).flatten(1)


def _sums(maps: Tensor, side: int) -> Tensor:
    return F.avg_pool2d(maps, side, ceil_mode=True, divisor_override=1)


class RelationProjector(nn.Module):
    """Two linear layers with batch norm and ReLU between, on rows (N,C); with ``valid`` (N), void is not seen."""

    def __init__(self, own: int, guide: int) -> None:
        super().__init__()
        self.first = nn.Linear(own, guide, bias=False)
        # Used in training alone, so nothing would read running statistics.
        self.norm = nn.BatchNorm1d(guide, track_running_stats=False)
        self.last = nn.Linear(guide, guide, bias=False)

    def forward(self, rows: Tensor, valid: Tensor | None) -> Tensor:
        """Return (N, the teacher's width)."""
        hidden = self.first(rows)
        if valid is None:
            hidden = self.norm(hidden)
        else:
            # Batch norm over the valid rows: one image whose positions are all rows of the batch.
            maps = standardize(hidden.t()[None, :, None], valid.unsqueeze(0), self.norm.eps)
            hidden = torch.addcmul(self.norm.bias, maps[0, :, 0].t(), self.norm.weight)
        lifted: Tensor = self.last(hidden.relu())
        return lifted


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
        """Draw ``number`` vectors of each class, (K * number, C), and which of them exist (K * number).

        Drawn with replacement from the slots that hold a vector, each class apart; ``shared`` draws the same slots
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
