"""Cross-image relational distillation: how alike pixels are, within a batch and to a memory of earlier ones."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from segtailor.losses import Step, nearest_labels, valid_counts, valid_pixels
from segtailor.methods._relations import (
    RelationProjector,
    VectorQueue,
    class_means,
    class_pixels,
    directions,
    from_all_processes,
    minibatch_relations,
    pooled,
    pooled_counts,
    raster_pixels,
    relation_kl,
    take,
    unit,
)
from segtailor.methods.base import Channels, Method, VariantOptions, option, read_pair, widths_of
from segtailor.models.network import SegOutput

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
        self.samples = {
            "memory_pixel": options.pixel_samples // self.num_classes + 1,
            "memory_region": options.region_samples // self.num_classes + 1,
        }
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
        options = self.options
        if len(own) < 2:
            self._warn_of_one_image()
        if options.pool > 1:
            size = own.shape[-2:]
            own, guide = pooled(own, counts, options.pool), pooled(guide, counts, options.pool)
            counts = None if counts is None else pooled_counts(counts, size, options.pool)
        total = minibatch_relations(own, guide, counts, options.temperature, options.within_image)
        if counts is None:
            return total / (len(own) * own[0, 0].numel())
        return total / step.count(valid_pixels, target)

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
            drawn, exists = queue.sample(self.samples[term], shared=not self.options.clean)
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
                vectors = take(guides, index)
            else:
                vectors, counts = class_means(guides, labels, self.num_classes)
            queue.enqueue(from_all_processes(vectors), from_all_processes(counts), legacy)

    def _warn_of_one_image(self) -> None:
        if self._warned or torch.compiler.is_compiling():
            return
        self._warned = True
        then = "its pairs are within that image" if self.options.within_image else "its term minibatch is 0"
        warnings.warn(
            f"cirkd sees one image at a time on this process, so {then}; two or more images per device train better",
            stacklevel=2,
        )
