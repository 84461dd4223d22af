"""Holistic distillation: a discriminator learns to distinguish the student's logit maps from the teacher's."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from segtailor.errors import SegtailorError
from segtailor.losses import Step, full_precision, standardize, to_grid, valid_counts
from segtailor.methods.base import Adversary, Channels, Method, VariantOptions, option
from segtailor.models.network import SegOutput

BENCHMARK = "CIRKD benchmark"
SMALLEST = 4
"""The least side of a grid: the last convolution's."""


class Discriminator(nn.Module):
    """Four strided convolutions under spectral norm, self-attention behind the last two, and a score for each patch.

    Logits (B,K,h,w) give scores (B,1,h',w'). Sides of at least 64 are halved four times, as published; an axis that
    would become shorter than 4 is not halved, so that any grid from 4 x 4 on works. ``normalized`` puts batch norm on
    the logits, as published; otherwise they are taken as they come.
    """

    def __init__(self, num_classes: int, normalized: bool, width: int = 64) -> None:
        super().__init__()
        widths = [num_classes, width, 2 * width, 4 * width, 8 * width]
        self.norm = nn.BatchNorm2d(num_classes) if normalized else nn.Identity()
        self.layers = nn.ModuleList(spectral_norm(nn.Conv2d(before, after, 4)) for before, after in pairwise(widths))
        self.attention = nn.ModuleDict({"2": SelfAttention(widths[3]), "3": SelfAttention(widths[4])})
        self.score = nn.Conv2d(widths[4], 1, SMALLEST)

    def forward(self, logits: Tensor) -> Tensor:
        """Return patch scores; raises :class:`SegtailorError` for a grid that is too small."""
        height, width = logits.shape[-2:]
        if min(height, width) < SMALLEST:
            raise SegtailorError(
                f"method adversarial: its discriminator needs logits of at least {SMALLEST} x {SMALLEST}, not "
                f"{height} x {width}; use a larger data.crop, or a student of smaller output stride"
            )
        maps = self.norm(logits)
        for index, layer in enumerate(self.layers):
            maps = F.leaky_relu(_halve(layer, maps), 0.1)
            if str(index) in self.attention:
                maps = self.attention[str(index)](maps)
        scores: Tensor = self.score(maps)
        return scores


def _halve(layer: nn.Module, maps: Tensor) -> Tensor:
    """Apply a 4 x 4 convolution with stride 2 along each axis of at least 8, and size-preserving along the others."""
    assert isinstance(layer, nn.Conv2d)
    strides = [2 if side >= 2 * SMALLEST else 1 for side in maps.shape[-2:]]
    # Padding 1 on both sides halves exactly; one more behind keeps the size at stride 1.
    behind = [1 if stride == 2 else 2 for stride in strides]
    padded = F.pad(maps, (1, behind[1], 1, behind[0]))
    return F.conv2d(padded, layer.weight, layer.bias, stride=strides)


class SelfAttention(nn.Module):
    """Positions mixed by softmaxed similarity, added with a learned gain that starts at 0 (Zhang et al., 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(channels // 8, 1)
        self.query = nn.Conv2d(channels, inner, 1)
        self.key = nn.Conv2d(channels, inner, 1)
        self.value = nn.Conv2d(channels, channels, 1)
        self.gain = nn.Parameter(torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of the same shape (B,C,h,w)."""
        query, key, value = (layer(maps).flatten(2) for layer in (self.query, self.key, self.value))
        attention = torch.bmm(query.mT, key).softmax(-1)
        return maps + self.gain * torch.bmm(value, attention.mT).view(maps.shape)


def discriminator_loss(
    discriminator: nn.Module, real: Tensor, fake: Tensor, kind: Literal["hinge", "wgan-gp"], penalty: float
) -> Tensor:
    """Return the discriminator's loss, for the teacher's maps (``real``) and the student's (``fake``).

    ``hinge``: mean relu(1 - D(real)) + mean relu(1 + D(fake)). ``wgan-gp``: mean D(fake) - mean D(real) plus
    ``penalty`` times the mean squared distance from 1 of the gradient's norm, one mixture of both maps per image
    (Gulrajani et al., 2017).
    """
    scores_real, scores_fake = discriminator(real), discriminator(fake)
    if kind == "hinge":
        loss: Tensor = (1 - scores_real).relu().mean() + (1 + scores_fake).relu().mean()
        return loss
    share = torch.rand(len(real), 1, 1, 1, device=real.device)
    mixed = (share * real + (1 - share) * fake).requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(mixed).sum(), mixed, create_graph=True)
    norms = (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()
    wasserstein: Tensor = scores_fake.mean() - scores_real.mean() + penalty * (norms - 1).square().mean()
    return wasserstein


Beta = Annotated[float, Field(ge=0, lt=1)]


class AdversarialOptions(VariantOptions):
    """Options of ``adversarial``."""

    adversarial: NonNegativeFloat = option(0.001, "weight of the term", source=BENCHMARK)
    opponent: PositiveFloat = option(0.1, "weight of the discriminator's own loss", source=BENCHMARK)
    loss: Literal["hinge", "wgan-gp"] = option(
        "hinge", "the discriminator's loss", source="CIRKD benchmark (the paper: wgan-gp)"
    )
    gradient_penalty: NonNegativeFloat = option(10.0, "weight of the penalty of wgan-gp", source="SKD's code")
    lr: PositiveFloat = option(4e-4, "the discriminator's constant learning rate (Adam)", source=BENCHMARK)
    betas: tuple[Beta, Beta] = option((0.9, 0.99), "Adam's decay rates", source=BENCHMARK)
    width: PositiveInt = option(64, "channels of the discriminator's first layer", source="SKD's code")


class LogitAdversary(Adversary):
    """The discriminator with its loss and optimizer."""

    def __init__(self, num_classes: int, options: AdversarialOptions) -> None:
        super().__init__()
        self.options = options
        self.sync_batchnorm = options.loss == "hinge"
        self.discriminator = Discriminator(num_classes, not options.clean, options.width)

    def forward(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> Tensor:
        """Return the discriminator's weighted loss for two detached outputs."""
        options = self.options
        with torch.autocast(student.logits.device.type, enabled=False):
            fake = self.shown(student.logits.detach(), target)
            real = self.shown(to_grid(teacher.logits.detach(), fake.shape[-2:]), target)
            return options.opponent * discriminator_loss(
                self.discriminator, real, fake, options.loss, options.gradient_penalty
            )

    def shown(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return what the discriminator sees of logits (B,K,h,w)."""
        if self.options.clean:
            return standardize(logits, valid_counts(target, logits.shape[-2:]))
        return full_precision(logits)

    def build_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(parameters, lr=self.options.lr, betas=self.options.betas)


class Adversarial(Method[AdversarialOptions]):
    """The holistic part of structured knowledge distillation (Liu et al., CVPR 2019).

    Term ``adversarial``: minus the mean score that a discriminator gives the student's logits; the discriminator is
    trained beside the student, by one step after each of the student's. ``published`` puts batch norm on the logits;
    ``clean`` standardizes each channel of each image over its valid pixels instead, so that images do not mix and void
    is not seen, and does not advance the spectral norm's power iteration in the student's pass. Grids below 64 x 64,
    where the published code stops, are halved less often. The power iteration starts after 15 rounds, the published one
    at random: the first steps differ. Several GPUs share the batch norm's moments, but not with `wgan-gp`, whose second
    derivative synchronized batch norm does not have.

        adversarial = -mean D(student's logits)

    - Extra modules: a discriminator of 3.2 M parameters (19 classes), with its own Adam
    - Published figures: Cityscapes val, PSPNet-R18, beside SKD's pixel and pair terms: 74.08, without 71.78 (SKD)
    - Limitations: short trainings, where the discriminator learns nothing; grids below 4 x 4; tiny batches with
      `published`, whose batch norm mixes images
    - Source: Liu et al., CVPR 2019 (arXiv 1903.04197), as run in the CIRKD benchmark
    """

    name = "adversarial"
    summary = "holistic: the student's logits must fool a discriminator that knows the teacher's"

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        self.labels = "ignore_mask" if options.clean else "unused"
        self.adversary = LogitAdversary(self.num_classes, options) if options.adversarial else None

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return ``{"adversarial": ...}``."""
        adversary = self.adversary
        if not isinstance(adversary, LogitAdversary):
            return {}
        # In eval mode the power iteration rests; there is no other difference without batch norm.
        adversary.discriminator.train(not self.options.clean)
        scores = adversary.discriminator(adversary.shown(student.logits, target))
        adversary.discriminator.train()
        return {"adversarial": -self.options.adversarial * scores.mean()}
