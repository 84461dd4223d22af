"""Distillation between networks of different families: both features as class logits, mixed where each is reliable."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat, PositiveFloat, ValidationInfo, field_validator
from torch import Tensor, nn

from segtailor.losses import Step, class_counts, class_kl, pixel_kl, pixel_mean
from segtailor.methods.base import Channels, Method, MethodOptions, option, read_pair, width_of
from segtailor.models.network import SegOutput

EPS = 1e-6
READING = "HeteroAKD, as a third party reads it"


class HeterogeneousOptions(MethodOptions):
    """Options of ``heteroakd``."""

    hybrid: NonNegativeFloat = option(
        1.0, "weight of the mixed target; 0 also turns off both task terms", source="our choice"
    )
    teacher_task: NonNegativeFloat = option(
        1.0, "weight of the cross-entropy that trains the teacher's projector", source="our choice"
    )
    student_task: NonNegativeFloat = option(
        1.0, "weight of the cross-entropy of the student's projected feature; 0 turns it off", source="our choice"
    )
    kd: NonNegativeFloat = option(0.1, "weight of the pixel-wise KL on logits; 0 turns it off", source=READING)
    reliability: Literal["labels", "entropy"] = option(
        "labels", "what H measures: cross-entropy with the labels, or the prediction's own entropy", source=READING
    )
    temperature: PositiveFloat = option(1.0, "divides logits before the softmax, in both KL terms", source="our choice")

    @field_validator("teacher_task")
    @classmethod
    def _trains_the_teachers_projector(cls, weight: float, info: ValidationInfo) -> float:
        if not weight and info.data.get("hybrid"):
            raise ValueError("Input should be greater than 0: it trains the teacher's projector; or set hybrid: 0")
        return weight


class Heterogeneous(Method[HeterogeneousOptions]):
    """The better of teacher and student, cell by cell, in class-logit space (HeteroAKD, Huang et al., AAAI 2025).

    Reconstructed from the abstract and third parties: the authors' code is not public. A 1x1 convolution with
    batch norm turns each network's feature into K class maps ``Z``. ``H`` is the cross-entropy of ``Z`` with the cell's
    labels, or the entropy of ``Z``. The target mixes both, ``S Z_t + (1 - S) Z_s`` with ``S = 1 - H_t / (H_t + H_s)``,
    and is not differentiated. Two readings of the paper exist, and nothing public decides: this one has one ``H`` and
    one ``S`` a cell; the other takes binary cross-entropies and mixes, weighs and compares class by class.

    Term ``hybrid`` is the KL from the target to the student's ``Z``; a cell weighs ``exp(relu(H_s - H_mixed))``,
    rescaled to mean 1 over the valid pixels of its image. ``teacher_task`` and ``student_task`` are the cross-entropies
    of the two ``Z``, every cell counting as its label pixels, which is the cross-entropy at label size after nearest
    upsampling; only ``teacher_task`` trains the teacher's projector. ``kd`` is the pixel-wise KL on the logits. Void is
    left out of all of them and of the batch norm's moments. These are those of the process's own micro-batch, as with
    any batch norm that is not synchronized, so several processes or micro-batches give other gradients than one batch
    of all images. Nothing is tracked, and a batch with a single valid cell gives constant maps.

        hybrid = T^2 mean_x w(x) KL(softmax_k(M / T) || softmax_k(Z_s / T)), M = S Z_t + (1 - S) Z_s
        teacher_task = mean_x CE(Z_t, y), student_task = mean_x CE(Z_s, y), Z = batchnorm(conv1x1(feature))
        kd = T^2 mean_x KL(softmax_k(t / T) || softmax_k(s / T))

    - Extra modules: two 1x1 convolutions with batch norm, from each network's feature to K maps
    - Published figures: Cityscapes val, MiT-B4 to DeepLabV3-MobileNetV2: 74.91, alone 73.92 (a third party's table)
    - Limitations: micro-batches of one or two small images, whose batch-norm moments are noisy; networks of the same
      family, for which it was not made
    - Source: HeteroAKD, Huang et al., AAAI 2025 (arXiv 2504.07691): abstract and third parties
    """

    name = "heteroakd"
    summary = "across families: features as class logits, a target mixed by reliability, KL on logits"
    channel_alignment = "a trained 1x1 convolution with batch norm takes each network's feature to K class maps"
    labels = "classes"
    projectors: nn.ModuleDict

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        self.projectors = nn.ModuleDict()
        if options.hybrid:
            for role, channels in (("student", student), ("teacher", teacher)):
                self.projectors[role] = ClassProjector(width_of(channels, "feature", role), self.num_classes)
        self.inputs = frozenset(tap for tap, weight in (("feature", options.hybrid), ("logits", options.kd)) if weight)

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the terms whose weight is not 0."""
        options = self.options
        terms: dict[str, Tensor] = {}
        if options.hybrid:
            own, guide = read_pair(student, teacher, "feature")
            counts = class_counts(target, self.num_classes, own.shape[-2:])[:, : self.num_classes]
            counts = counts.view(len(own), -1, *own.shape[-2:])
            valid = counts.sum(1, keepdim=True)
            shares = counts / valid.clamp(min=1)
            own, guide = self.projectors["student"](own, valid), self.projectors["teacher"](guide, valid)
            mixed, weight = self._target(own.detach(), guide.detach(), shares, valid)
            cells = weight * class_kl(own, mixed, options.temperature)
            terms["hybrid"] = options.hybrid * pixel_mean(cells, target, step)
            terms["teacher_task"] = options.teacher_task * pixel_mean(unlikelihood(guide, shares), target, step)
            if options.student_task:
                terms["student_task"] = options.student_task * pixel_mean(unlikelihood(own, shares), target, step)
        if options.kd:
            pair = read_pair(student, teacher, "logits")
            terms["kd"] = options.kd * pixel_kl(*pair, options.temperature, target, step)
        return terms

    def _target(self, student: Tensor, teacher: Tensor, shares: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mixed class maps (B,K,h,w), and each cell's weight (B,h,w), of mean 1 over an image's pixels."""

        def doubt(logits: Tensor) -> Tensor:
            by_labels = self.options.reliability == "labels"
            return unlikelihood(logits, shares if by_labels else logits.softmax(1)).unsqueeze(1)

        own, guide = doubt(student), doubt(teacher)
        trust = (own + EPS) / (own + guide + 2 * EPS)  # equal where neither has doubts
        mixed = trust * teacher + (1 - trust) * student
        gap = torch.where(valid > 0, (own - doubt(mixed)).relu(), 0)
        weight = (gap - gap.amax((2, 3), keepdim=True)).exp()
        mean = (weight * valid).sum((2, 3), keepdim=True) / valid.sum((2, 3), keepdim=True).clamp(min=1)
        return mixed, (weight / mean.clamp(min=EPS)).squeeze(1)


class ClassProjector(nn.Module):
    """1x1 convolution to class maps, each brought to mean 0 and variance 1 over the batch's valid pixels, then scaled.

    It keeps no running moments: it only ever sees training batches, and is not exported.
    """

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, num_classes, 1, bias=False)
        self.weight = nn.Parameter(torch.ones(num_classes))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, feature: Tensor, valid: Tensor) -> Tensor:
        """Return (B,K,h,w) for ``feature`` (B,C,h,w); ``valid`` (B,1,h,w) counts label pixels."""
        maps: Tensor = self.project(feature)
        share = valid / valid.sum().clamp(min=1)
        centered = (maps - (maps * share).sum((0, 2, 3), keepdim=True)) * (valid > 0)
        variance = (centered.square() * share).sum((0, 2, 3), keepdim=True)
        scale = (variance + 1e-5).rsqrt() * self.weight.view(1, -1, 1, 1)
        return centered * scale + self.bias.view(1, -1, 1, 1)


def unlikelihood(logits: Tensor, shares: Tensor) -> Tensor:
    """Return the cross-entropy of ``logits`` with the class ``shares``, both (B,K,h,w), at each cell: (B,h,w).

    >>> unlikelihood(torch.zeros(1, 2, 1, 1), torch.tensor([0.5, 0.5]).view(1, 2, 1, 1)).item()
    0.6931471824645996
    """
    return -(shares * F.log_softmax(logits, dim=1)).sum(1)
