"""MasKD: squared errors under masks that tokens, learnt on the teacher beforehand, draw over its maps."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from segtailor.config import OptimizerConfig, ScheduleConfig
from segtailor.errors import SegtailorError
from segtailor.losses import Step, full_precision, recomputed, to_grid, valid_counts
from segtailor.methods._mask_tokens import (
    TokenLayout,
    TokenPretraining,
    TokenWeighting,
    masked_error,
    receptive_masks,
    weight_map,
)
from segtailor.methods.base import Channels, Method, VariantOptions, option, projector, read_tap, width_of
from segtailor.models.network import SegOutput

Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class MaskedOptions(VariantOptions):
    """Options of ``maskd``."""

    maskd: NonNegativeFloat = option(1.0, "weight of the term", source="authors' segmentation code")
    maskd_aux: NonNegativeFloat = option(
        0.4,
        "weight of the same on auxiliary logits, where both networks have them (tap logits only)",
        source="authors' segmentation code",
    )
    tokens: PositiveInt = option(8, "number of masks", source="authors' segmentation code (their detection code: 6)")
    tap: Literal["logits", "feature"] = option(
        "logits", "what is masked and compared", source="authors' segmentation code (their detection code: features)"
    )
    weighting: bool = option(
        False,
        "weigh the tokens for each image; learnt with them, then frozen",
        source="off in the authors' segmentation code, on in their detection code",
    )
    customised: bool = option(
        False,
        "multiply the teacher's masks by the student's own",
        source="off in the authors' segmentation code, on in their detection code",
    )
    customise_after: Fraction = option(
        0.1,
        "fraction of the run at which `customised` begins",
        source="our choice (their detection code: after one epoch)",
    )
    token_steps: PositiveInt = option(
        1000,
        "steps for which the tokens are learnt, by SGD, poly 0.9",
        published=10000,
        source="our choice; published: authors' segmentation code",
    )
    token_lr: PositiveFloat = option(0.1, "learning rate of the tokens", source="authors' segmentation code")
    token_weight_decay: NonNegativeFloat = option(
        1e-3, "weight decay of the tokens", source="authors' segmentation code"
    )
    token_momentum: Momentum = option(0.9, "momentum of the tokens", source="authors' segmentation code")
    dice: NonNegativeFloat = option(
        1.0, "weight of the masks' overlap while the tokens are learnt", source="authors' segmentation code"
    )
    tokens_file: str | None = option(
        None, "file of tokens learnt earlier, instead of learning them", source="our choice"
    )


class MaskedDistillation(Method[MaskedOptions]):
    """Squared error under soft masks, one for each receptive token (Huang et al., ICLR 2023).

    Terms ``maskd`` and ``maskd_aux``; the masks of each come from the teacher's map of that term, by the same tokens.
    Before the student, a stage learns the tokens on the frozen teacher: its logits under the summed masks must still
    give the labels, and the masks must not overlap (Dice). The published stage leaves the teacher in training mode,
    so that its batch norm drifts; here it never does, and the last tokens are taken. Tokens for ``tap: feature`` are
    learnt through the teacher's own classifier. A student's feature of another width is lifted by a trained 1x1
    convolution. ``clean`` leaves void out of the errors, of the masks' sums and of Dice. The error is that of raw
    values: it is not indifferent to shift or scale.

        maskd = 0.5 mean_bik sum_x m_i(x)^2 (s_k(x) - t_k(x))^2 / (sum_x m_i(x) + 1e-5)
        m_i = sigmoid(sum_k tokens_ik t_k)
        maskd_aux = 0.4 times the same on auxiliary logits

    - Extra modules: the tokens (8 x classes), frozen; with `weighting` its two convolutions, frozen; on the feature the
      projector
    - Published figures: the authors', Cityscapes val/test, DeepLabV3-R101 (78.07/77.46): DeepLabV3-R18 77.00/75.59
      (from scratch 73.95/73.74), DeepLabV3-MobileNetV2 75.26/74.23, PSPNet-R18 75.34/74.61; their students alone are
      CIRKD's, with weight decay 1e-4 where MasKD has 5e-4 (MobileNetV2: 2e-4)
    - Limitations: teacher and student whose logits differ much in scale, since raw values are compared: take kd or
      dist; and where there is no time for a stage before each new teacher
    - Source: Huang et al., ICLR 2023 (arXiv 2205.14589), as in hunto/MasKD, segmentation
    """

    name: ClassVar[str] = "maskd"
    summary: ClassVar[str] = "MasKD: squared error under masks drawn by tokens that are learnt on the teacher first"
    channel_alignment: ClassVar[str] = (
        "none to align on logits; on the feature a trained 1x1 convolution where they differ"
    )
    tokens: Tensor

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make what the options ask for."""
        options = self.options
        clean, on_logits = options.variant == "clean", options.tap == "logits"
        channels = self.num_classes if on_logits else width_of(teacher, "feature", "teacher")
        self.layout = TokenLayout(options.tokens, channels, self.num_classes, options.tap, options.weighting)
        self.register_buffer("tokens", torch.zeros(options.tokens, channels))
        self.weighting = TokenWeighting(channels, options.tokens).requires_grad_(False) if options.weighting else None
        self.register_load_state_dict_post_hook(_note_tokens)  # type: ignore[no-untyped-call]
        self.projector: nn.Module | None = None
        self.labels = "ignore_mask" if clean else "unused"
        inputs = {"logits"} if on_logits else set()
        if options.maskd and not on_logits:
            self.tap = "feature" if clean else "classifier_input"
            inputs |= {self.tap, "feature"}
            self.projector = projector(student, teacher, "feature")
        if options.maskd_aux and on_logits:
            inputs.add("aux_logits")
        self.inputs = frozenset(inputs)
        used = options.maskd or (options.maskd_aux and on_logits)
        self.pretraining = self._pretraining() if used else None
        if self.pretraining is not None and self.pretraining.file is not None:
            self.pretraining.load(Path(self.pretraining.file), None)

    def set_tokens(self, tokens: Tensor, weighting: Mapping[str, Tensor] | None = None) -> None:
        """Take learnt ``tokens`` (T,C), and the state of their weighting where the options ask for one.

        Raises :class:`SegtailorError` where they do not fit.
        """
        if tokens.shape != self.tokens.shape or (weighting is None) != (self.weighting is None):
            raise SegtailorError(
                f"method maskd wants tokens of shape {tuple(self.tokens.shape)} "
                f"{'with' if self.weighting is not None else 'without'} weighting, not {tuple(tokens.shape)} "
                f"{'with' if weighting is not None else 'without'}; learn them with the same options"
            )
        with torch.no_grad():
            self.tokens.copy_(tokens)
        if self.weighting is not None and weighting is not None:
            self.weighting.load_state_dict(dict(weighting))
        if self.pretraining is not None:
            self.pretraining.done = True

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the terms whose weight is not 0."""
        options, terms = self.options, {}
        if options.maskd and self.projector is not None:
            own = self.projector(full_precision(read_tap(student, self.tap, "student")))
            guide = read_tap(teacher, self.tap, "teacher")
            terms["maskd"] = options.maskd * self._error(own, guide, target, step)
        elif options.maskd:
            terms["maskd"] = options.maskd * self._error(student.logits, teacher.logits, target, step)
        own_aux, guide_aux = student.aux_logits, teacher.aux_logits
        if "aux_logits" in self.inputs and own_aux is not None and guide_aux is not None:
            terms["maskd_aux"] = options.maskd_aux * self._error(own_aux, guide_aux, target, step)
        return terms

    def _error(self, student: Tensor, teacher: Tensor, target: Tensor, step: Step) -> Tensor:
        size = (student.shape[-2], student.shape[-1])
        guide = to_grid(teacher, size)
        with torch.no_grad():
            counts = valid_counts(target, size) if self.options.variant == "clean" else None
            masks = receptive_masks(guide, self.tokens)
            if self.options.customised and step.progress >= self.options.customise_after:
                masks = masks * receptive_masks(student, self.tokens)
            shares = None if self.weighting is None else self.weighting(guide, counts)
            weights = weight_map(masks, counts, shares)
        return recomputed(masked_error, student, guide, weights)

    def _pretraining(self) -> TokenPretraining:
        options = self.options
        optimizer = OptimizerConfig(
            name="sgd", lr=options.token_lr, weight_decay=options.token_weight_decay, momentum=options.token_momentum
        )
        return TokenPretraining(
            self.layout,
            self.set_tokens,
            options.token_steps,
            optimizer,
            ScheduleConfig(power=0.9),
            overlap=options.dice,
            masked=options.variant == "clean",
            file=options.tokens_file,
        )


def _note_tokens(module: nn.Module, _: Any) -> None:
    """A restored checkpoint may bring tokens; those never learnt are zeros."""
    assert isinstance(module, MaskedDistillation)
    if module.pretraining is not None:
        module.pretraining.done = bool(module.tokens.any())
