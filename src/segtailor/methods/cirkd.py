"""Cross-image relational distillation: how alike pixels are, within a batch and to a memory of earlier ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from segtailor.errors import SegtailorError
from segtailor.losses import OUTSIDE, Step, nearest_labels, standardize, valid_counts, valid_pixels
from segtailor.methods.base import Channels, Method, VariantOptions, option, read_pair, widths_of
from segtailor.models.network import SegOutput

BLOCK = {"cpu": 2**21, "cuda": 2**24}
"""Similarities held at a time: few enough for a processor's cache, enough to fill a GPU."""
SMALL = 1e-4
"""Vectors shorter than this are not stretched to length 1, so that their gradients stay bounded."""
CODE = "CIRKD's code"


class CIRKDOptions(VariantOptions):
    """Options of ``cirkd``."""

    minibatch: NonNegativeFloat = option(1.0, "weight of the relations within the batch; 0 drops the term", source=CODE)
    memory_pixel: NonNegativeFloat = option(
        0.1,
        "weight of the relations to remembered pixels; 0 drops the term and its queue",
        source=f"{CODE} (its VOC runs: 0.01)",
    )
    memory_region: NonNegativeFloat = option(
        0.1,
        "weight of the relations to remembered class means; 0 drops the term and its queue",
        source=f"{CODE} (its VOC runs: 0.01)",
    )
    temperature: PositiveFloat = option(0.1, "divides the cosines", source=CODE)
    kd_temperature: PositiveFloat = option(
        1.0, "divides the memory terms' logits once more; squared factor", source=CODE
    )
    pixel_queue: PositiveInt = option(
        20000, "remembered pixels for each class", source=f"{CODE} (its SegFormer runs: 2000)"
    )
    region_queue: PositiveInt = option(2000, "remembered class means for each class", source=CODE)
    max_pixels: NonNegativeInt = option(
        380_000,
        "most vectors in one queue, all classes together, so that many classes get shorter queues; 0: no limit",
        published=0,
        source="our choice: what 19 classes need for the published queues; published: CIRKD's code",
    )
    pixel_samples: PositiveInt = option(4096, "remembered pixels compared with at each step", source=CODE)
    region_samples: PositiveInt = option(1024, "remembered class means compared with at each step", source=CODE)
    pixels_per_image: PositiveInt = option(16, "pixels remembered from each class of each image", source=CODE)
    legacy_enqueue: bool = option(
        False,
        "remember the pixels that the published code does, of any class",
        published=True,
        source="our choice; published: CIRKD's code",
    )
    within_image: bool = option(True, "whether an image is paired with itself, too", source=CODE)
    pool: PositiveInt = option(
        1, "side of the average pooling before the relations within the batch", source=f"{CODE} (its SegFormer runs: 2)"
    )


class CIRKD(Method[CIRKDOptions]):
    """Cross-image relational distillation (Yang et al., CVPR 2022): KL between softmaxes over cosine similarities.

    Term ``minibatch`` compares each pixel with all pixels of each image on this process. ``memory_pixel`` and
    ``memory_region`` compare it with pixels and class means of the teacher, drawn from a queue for each class that
    holds what all processes saw; the student is projected first. The weights are made to go with ``kd``: list both.

    ``published`` also remembers the wrong pixels (the first ones of the image, whatever their class), starts the queues
    full of noise and treats void like any pixel but in the memory's anchors. ``clean`` leaves void out, remembers
    pixels of the class meant, and draws only what was remembered. It shortens the queues of
    more than 19 classes (``max_pixels``). Queues are in the training checkpoint: 428 MB for 19 classes of 256 channels;
    published, 3.4 GB for 150. Vectors shorter than 1e-4 are not brought to length 1; the published floor is 1e-12. On
    VOC the authors set the memory weights to 0.01.

        minibatch = mean_ij mean_x KL(softmax_y(cos(t_i(x), t_j(y)) / tau) || same of s), images i, j
        memory_pixel = T^2 mean_x KL(softmax_q(cos(t(x), q) / (tau T)) || same of P s), q remembered pixels of t
        memory_region = the same, q remembered means of t over a class in an image

    - Published figures: Cityscapes val, DeepLabV3-R101 to R18, with kd: 76.38, alone 74.21 (CIRKD benchmark)
    - Limitations: one image on each device (no cross-image pairs); large grids without `pool`, since time grows with
      the square of pixels in a batch; two classes, where the memory has little to separate; little GPU memory: set
      the memory weights to 0
    - Source: Yang et al., CVPR 2022 (arXiv 2204.06986)
    """

    name = "cirkd"
    summary = "cross-image relations: how alike pixels are, in the batch and to a memory of classes"
    channel_alignment = (
        "`minibatch` compares similarities, of any widths; for the memory two trained linear layers with batch norm "
        "and ReLU between lift the student to the teacher's width"
    )
    projector: RelationProjector | None

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        self.queues = nn.ModuleDict()
        self.projector = None
        if options.memory_pixel or options.memory_region:
            own, guide = widths_of(student, teacher)
            self.projector = RelationProjector(own, guide)
            sizes = {"memory_pixel": options.pixel_queue, "memory_region": options.region_queue}
            for term, size in sizes.items():
                if options.max_pixels:
                    size = min(size, max(1, options.max_pixels // self.num_classes))
                if getattr(options, term):
                    self.queues[term] = VectorQueue(self.num_classes, size, guide, noise=not options.clean)
        used = bool(options.minibatch) or self.projector is not None
        self.inputs = frozenset({options.feature_tap, "feature"} if used else ())
        if self.projector is not None:
            self.labels = "classes"
        else:
            self.labels = "ignore_mask" if used and options.clean else "unused"
        self._warned = False

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the terms whose weight is not 0."""
        terms: dict[str, Tensor] = {}
        if not self.inputs:
            return terms
        own, guide = read_pair(student, teacher, self.options.feature_tap)
        size, counts = own.shape[-2:], None
        if self.options.clean:
            counts = valid_counts(target, size)
            void = (counts == 0).view(len(own), 1, *size)
            own, guide = own.masked_fill(void, 0), guide.masked_fill(void, 0)
        if self.options.minibatch:
            terms["minibatch"] = self.options.minibatch * self._minibatch(own, guide, counts, target, step)
        if self.projector is not None:
            terms |= self._memory(self.projector, own, guide, target, step)
        return terms

    def _minibatch(self, own: Tensor, guide: Tensor, counts: Tensor | None, target: Tensor, step: Step) -> Tensor:
        """Return the unweighted term; ``counts`` (B,h*w) says how many label pixels each position stands for."""
        options, side = self.options, self.options.pool
        if len(own) < 2 and not (self._warned or torch.compiler.is_compiling()):
            self._warned = True
            then = "its pairs are within that image" if options.within_image else "its term minibatch is 0"
            warnings.warn(
                f"cirkd sees one image at a time on this process, so {then}; two or more per device train better",
                stacklevel=2,
            )
        if side > 1 and counts is None:
            own, guide = (F.avg_pool2d(maps, side, ceil_mode=True) for maps in (own, guide))
        elif side > 1 and counts is not None:
            weight = counts.view(len(own), 1, *own.shape[-2:])
            number = pool_sums(weight, side)
            own, guide = (pool_sums(maps * weight, side) / number.clamp(min=1) for maps in (own, guide))
            counts = number.flatten(1)
        anchors, guides = directions(own), directions(guide)
        images = len(anchors)
        weight = anchors.new_ones(anchors.shape[:2]) if counts is None else counts.to(anchors.dtype)
        pairs = anchors.new_ones(images, images)
        if not options.within_image:
            pairs.fill_diagonal_(0)
        # The mean is over the images that have any position; without one the value is 0.
        present = (weight.sum(1) > 0).to(anchors.dtype)
        share = pairs / (pairs @ present).clamp(min=1).unsqueeze(1)
        total: Tensor = relation_kl(
            (anchors.flatten(0, 1), anchors),
            (guides.flatten(0, 1), guides),
            (weight.unsqueeze(2) * share.unsqueeze(1)).flatten(0, 1),
            options.temperature,
            counts,
        )
        return total / (weight.numel() if counts is None else step.count(valid_pixels, target))

    def _memory(
        self, projector: RelationProjector, own: Tensor, guide: Tensor, target: Tensor, step: Step
    ) -> dict[str, Tensor]:
        options, size = self.options, own.shape[-2:]
        labels, guides = self._labels(target, size), directions(guide)
        if self.training:
            self._remember(guides, labels)
        valid = (labels < self.num_classes).flatten().to(own.dtype)
        rows = own.flatten(2).transpose(1, 2).flatten(0, 1)
        anchors = unit(projector(rows, valid if self.options.clean else None))
        if self.options.clean:
            count = step.count(lambda part: (self._labels(part, size) < self.num_classes).sum(), target)
        else:
            count = valid.sum().clamp(min=1)
        terms = {}
        for term, queue in self.queues.items():
            assert isinstance(queue, VectorQueue)
            samples = options.pixel_samples if term == "memory_pixel" else options.region_samples
            drawn, exists = queue.sample(samples // self.num_classes + 1, shared=not options.clean)
            keys = drawn.to(own.dtype).unsqueeze(0)
            total = relation_kl(
                (anchors, keys),
                (guides.flatten(0, 1), keys),
                valid.unsqueeze(1),
                options.temperature * options.kd_temperature,
                exists.unsqueeze(0),
            )
            terms[term] = getattr(options, term) * options.kd_temperature**2 * total / count
        return terms

    def _labels(self, target: Tensor, size: Sequence[int]) -> Tensor:
        """Return the class of each cell, or the number of classes where it is void: (B,h*w)."""
        labels = nearest_labels(target, size).flatten(1).clamp(max=self.num_classes)
        if self.options.clean:
            # The pixel that the nearest rule takes may be just outside its cell.
            labels = labels.masked_fill(valid_counts(target, size) == 0, self.num_classes)
        return labels

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def _remember(self, guides: Tensor, labels: Tensor) -> None:
        """Append this batch's vectors, chosen on each process and then brought together, to every process's queues."""
        for term, queue in self.queues.items():
            assert isinstance(queue, VectorQueue)
            legacy = term == "memory_pixel" and self.options.legacy_enqueue
            if term == "memory_pixel":
                choose = raster_pixels if legacy else class_pixels
                index, counts = choose(labels, self.num_classes, self.options.pixels_per_image)
                vectors = guides[torch.arange(len(guides), device=guides.device).view(-1, 1, 1), index]
            else:
                vectors, counts = class_means(guides, labels, self.num_classes)
            queue.enqueue(from_all_processes(vectors), from_all_processes(counts), legacy)


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


def pool_sums(maps: Tensor, side: int) -> Tensor:
    """Sum ``maps`` (B,C,h,w) over squares of ``side``, those at the border over what they have."""
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
