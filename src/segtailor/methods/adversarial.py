"""Holistic distillation: a discriminator must not tell the student's logit maps from the teacher's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from segtailor.losses import Step, full_precision, standardise, to_grid, valid_counts
from segtailor.methods.base import Adversary, Channels, Method, VariantOptions
from segtailor.methods.discriminator import Discriminator, discriminator_loss
from segtailor.models.network import SegOutput

Beta = Annotated[float, Field(ge=0, lt=1)]


class AdversarialOptions(VariantOptions):
    """Options of ``adversarial``."""

    sources: ClassVar[dict[str, str]] = {
        "adversarial": "CIRKD benchmark",
        "opponent": "CIRKD benchmark",
        "loss": "CIRKD benchmark (the paper: wgan-gp)",
        "gradient_penalty": "SKD's code",
        "lr": "CIRKD benchmark",
        "betas": "CIRKD benchmark",
        "width": "SKD's code",
    }
    adversarial: NonNegativeFloat = Field(0.001, description="weight of the term")
    opponent: PositiveFloat = Field(0.1, description="weight of the discriminator's own loss")
    loss: Literal["hinge", "wgan-gp"] = Field("hinge", description="what the discriminator minimises")
    gradient_penalty: NonNegativeFloat = Field(10.0, description="weight of the penalty of wgan-gp")
    lr: PositiveFloat = Field(4e-4, description="the discriminator's constant learning rate (Adam)")
    betas: tuple[Beta, Beta] = Field((0.9, 0.99), description="Adam's decay rates")
    width: PositiveInt = Field(64, description="channels of the discriminator's first layer")


class LogitAdversary(Adversary):
    """The discriminator with its loss and optimizer."""

    def __init__(self, num_classes: int, options: AdversarialOptions) -> None:
        super().__init__()
        self.options = options
        self.discriminator = Discriminator(num_classes, options.variant == "published", options.width)

    def forward(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> Tensor:
        """Return the discriminator's weighted loss for two detached outputs."""
        options = self.options
        with torch.autocast(student.logits.device.type, enabled=False):
            size = (student.logits.shape[-2], student.logits.shape[-1])
            fake = self.shown(student.logits.detach(), target)
            real = self.shown(to_grid(teacher.logits.detach(), size), target)
            return options.opponent * discriminator_loss(
                self.discriminator, real, fake, options.loss, options.gradient_penalty
            )

    def shown(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return what the discriminator sees of logits (B,K,h,w)."""
        if self.options.variant == "published":
            return full_precision(logits)
        return standardise(logits, valid_counts(target, (logits.shape[-2], logits.shape[-1])))

    def build_optimizer(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """Return Adam."""
        return torch.optim.Adam(parameters, lr=self.options.lr, betas=self.options.betas)


class Adversarial(Method[AdversarialOptions]):
    """The holistic part of structured knowledge distillation (Liu et al., CVPR 2019).

    Term ``adversarial``: minus the mean score that a discriminator gives the student's logits; the discriminator is
    trained beside the student, by one step after each of the student's. ``published`` puts batch norm on the logits;
    ``clean`` standardises each channel of each image over its valid pixels instead, so that images do not mix and void
    is not seen, and does not advance the spectral norm's power iteration in the student's pass. Grids below 64 x 64,
    where the published code stops, are halved less often.
    """

    name: ClassVar[str] = "adversarial"
    summary: ClassVar[str] = "holistic: a discriminator must not tell the student's logits from the teacher's"
    formula: ClassVar[str] = "adversarial = -mean D(student's logits)"
    source: ClassVar[str] = "Liu et al., CVPR 2019 (arXiv 1903.04197), as run in the CIRKD benchmark"
    extra_modules: ClassVar[str] = "a discriminator of 3.2 M parameters (19 classes), with its own Adam"
    figures: ClassVar[str] = (
        "none alone; Cityscapes val, PSPNet R101 to R18, by SKD's authors: pixel and pair terms 71.78, with it 74.08"
    )
    unsuited: ClassVar[str] = (
        "short trainings, where the discriminator learns nothing; grids below 4 x 4; tiny batches with `published`, "
        "whose batch norm mixes images"
    )

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make what the options ask for."""
        options = self.options
        published = options.variant == "published"
        self.labels = "unused" if published else "ignore_mask"
        self.adversary = LogitAdversary(self.num_classes, options) if options.adversarial else None

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return ``{"adversarial": ...}``."""
        adversary = self.adversary
        if not isinstance(adversary, LogitAdversary):
            return {}
        # In eval mode the power iteration rests; there is no other difference without batch norm.
        adversary.discriminator.train(self.options.variant == "published")
        scores = adversary.discriminator(adversary.shown(student.logits, target))
        adversary.discriminator.train()
        return {"adversarial": -self.options.adversarial * scores.mean()}
