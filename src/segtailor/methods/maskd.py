"""MasKD: squared errors under masks that tokens, learned on the teacher beforehand, draw over its maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from segtailor.config import OptimizerConfig, ScheduleConfig
from segtailor.errors import SegtailorError
from segtailor.losses import Step, recomputed, to_grid, valid_counts
from segtailor.methods._mask_tokens import (
    TokenLayout,
    TokenObjective,
    TokenWeighting,
    masked_error,
    read_tokens,
    receptive_masks,
    weight_map,
    write_tokens,
)
from segtailor.methods.base import (
    Channels,
    Method,
    Pretraining,
    PretrainObjective,
    VariantOptions,
    option,
    projector,
    read_pair,
    width_of,
)
from segtailor.models.network import SegOutput
from segtailor.models.teacher import Teacher

CODE = "authors' segmentation code"
SWITCHED = f"off in the {CODE}, on in their detection code"
Fraction = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class MaskedOptions(VariantOptions):
    """Options of ``maskd``."""

    maskd: NonNegativeFloat = option(1.0, "weight of the term", source=CODE)
    maskd_aux: NonNegativeFloat = option(
        0.4, "weight of the same on auxiliary logits, where both networks have them (tap logits only)", source=CODE
    )
    tokens: PositiveInt = option(8, "number of masks", source=f"{CODE} (their detection code: 6)")
    tap: Literal["logits", "feature"] = option(
        "logits", "what is masked and compared", source=f"{CODE} (their detection code: features)"
    )
    weighting: bool = option(False, "weigh the tokens for each image; learned with them, then frozen", source=SWITCHED)
    customised: bool = option(False, "multiply the teacher's masks by the student's own", source=SWITCHED)
    customise_after: Fraction = option(
        0.1,
        "fraction of the run at which `customised` begins",
        source="our choice (their detection code: after one epoch)",
    )
    token_steps: PositiveInt = option(
        1000,
        "steps for which the tokens are learned, by SGD, poly 0.9",
        published=10000,
        source="our choice; published: authors' segmentation code",
    )
    token_lr: PositiveFloat = option(0.1, "learning rate of the tokens", source=CODE)
    token_weight_decay: NonNegativeFloat = option(1e-3, "weight decay of the tokens", source=CODE)
    token_momentum: Momentum = option(0.9, "momentum of the tokens", source=CODE)
    dice: NonNegativeFloat = option(1.0, "weight of the masks' overlap while the tokens are learned", source=CODE)
    tokens_file: str | None = option(
        None, "file of tokens learned earlier, instead of learning them", source="our choice"
    )


Receive = Callable[[Tensor, Mapping[str, Tensor] | None], None]
"""Takes the tokens (T,C) and the state of their :class:`TokenWeighting`."""


class TokenPretraining(Pretraining):
    """Learns the tokens of one teacher and hands them to the method by ``receive``."""

    name = "tokens"
    about = "the teacher's receptive tokens (maskd)"
    uses_teacher = True
    file_option = "tokens_file"

    optimizer: OptimizerConfig
    schedule: ScheduleConfig

    def __init__(self, layout: TokenLayout, receive: Receive, options: MaskedOptions) -> None:
        self.layout, self.receive, self.options = layout, receive, options
        self.steps, self.schedule, self.file = options.token_steps, ScheduleConfig(power=0.9), options.tokens_file
        self.optimizer = OptimizerConfig(
            name="sgd", lr=options.token_lr, weight_decay=options.token_weight_decay, momentum=options.token_momentum
        )

    def key(self) -> dict[str, Any]:
        """Return what the tokens depend on."""
        return {**asdict(self.layout), "dice": self.options.dice, "void_left_out": self.options.clean}

    def objective(self, teacher: Teacher | None) -> PretrainObjective:
        """Return fresh tokens.

        Raises :class:`SegtailorError` where the tap is the feature and the teacher shows no classifier behind it.
        """
        assert teacher is not None
        classifier = None
        if self.layout.tap == "feature":
            if teacher.class_map is not None:
                raise SegtailorError(
                    "method maskd, tap feature: its tokens are learned through the teacher's own classifier, whose "
                    "classes are not the data's (teacher.class_map); set tap: logits"
                )
            classifier = getattr(getattr(teacher.model, "head", None), "classifier", None)
            if not isinstance(classifier, nn.Conv2d) or classifier.in_channels != self.layout.channels:
                raise SegtailorError(
                    f"method maskd, tap feature: the teacher {teacher.name} shows no classifier behind its feature; "
                    "set tap: logits"
                )
        return TokenObjective(self.layout, teacher.upsample, classifier, self.options.dice, self.options.clean)

    def save(self, objective: nn.Module, path: Path, card: Mapping[str, Any]) -> None:
        """Write the objective's tokens."""
        assert isinstance(objective, TokenObjective)
        training = {
            "steps": self.steps,
            "optimizer": self.optimizer.model_dump(),
            "schedule": self.schedule.model_dump(),
            "dice": self.options.dice,
            "void_left_out": self.options.clean,
        }
        weighting = None if objective.weighting is None else objective.weighting.state_dict()
        write_tokens(path, self.layout, objective.tokens, weighting, {"training": training, **card})

    def load(self, path: Path, fingerprint: str | None) -> None:
        """Hand the file's tokens to the method; errors as in :func:`read_tokens`."""
        self.receive(*read_tokens(path, self.layout, fingerprint))


class MaskedDistillation(Method[MaskedOptions]):
    """Squared error under soft masks, one for each receptive token (Huang et al., ICLR 2023).

    Terms ``maskd`` and ``maskd_aux``; the masks of each come from the teacher's map of that term, by the same tokens.
    Before the student, a pre-training learns the tokens on the frozen teacher: its logits under the summed masks must
    still give the labels, and the masks must not overlap (Dice). The published one leaves the teacher in training mode,
    so that its batch norm drifts; here it never does, and the last tokens are taken. Tokens for ``tap: feature`` are
    learned through the teacher's own classifier. A student's feature of another width is lifted by a trained 1x1
    convolution. ``clean`` leaves void out of the errors, of the masks' sums and of Dice. The error is that of raw
    values: it is not indifferent to shift or scale.

        maskd = 0.5 mean_bik sum_x m_i(x)^2 (s_k(x) - t_k(x))^2 / (sum_x m_i(x) + 1e-5)
        m_i = sigmoid(sum_k tokens_ik t_k)
        maskd_aux = 0.4 times the same on auxiliary logits

    - Extra modules: the tokens (8 x classes), frozen; with `weighting` its two convolutions, frozen; on the feature the
      projector
    - Published figures: Cityscapes val, DeepLabV3-R18: 77.00, from scratch 73.95 (authors)
    - Limitations: teacher and student whose logits differ much in scale, since raw values are compared: take kd or
      dist; budgets without a pre-training for each new teacher
    - Source: Huang et al., ICLR 2023 (arXiv 2205.14589), as in hunto/MasKD, segmentation
    """

    name = "maskd"
    summary = "MasKD: squared error under masks drawn by tokens that are learned on the teacher first"
    channel_alignment = "none to align on logits; on the feature a trained 1x1 convolution where they differ"
    tokens: Tensor

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        on_logits = options.tap == "logits"
        channels = self.num_classes if on_logits else width_of(teacher, "feature", "teacher")
        self.layout = TokenLayout(options.tokens, channels, self.num_classes, options.tap, options.weighting)
        self.register_buffer("tokens", torch.zeros(options.tokens, channels))
        self.weighting = TokenWeighting(channels, options.tokens).requires_grad_(False) if options.weighting else None
        self.register_load_state_dict_post_hook(_note_tokens)  # type: ignore[no-untyped-call]
        self.projector: nn.Module | None = None
        self.labels = "ignore_mask" if options.clean else "unused"
        inputs = {"logits"} if on_logits else set()
        if options.maskd and not on_logits:
            inputs |= {options.feature_tap, "feature"}
            self.projector = projector(student, teacher, "feature")
        if options.maskd_aux and on_logits:
            inputs.add("aux_logits")
        self.inputs = frozenset(inputs)
        used = options.maskd or (options.maskd_aux and on_logits)
        self.pretraining = TokenPretraining(self.layout, self.set_tokens, options) if used else None
        if self.pretraining is not None and self.pretraining.file is not None:
            self.pretraining.load(Path(self.pretraining.file), None)

    def set_tokens(self, tokens: Tensor, weighting: Mapping[str, Tensor] | None = None) -> None:
        """Take learned ``tokens`` (T,C), and the state of their weighting where the options ask for one.

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
            own, guide = read_pair(student, teacher, options.feature_tap)
            terms["maskd"] = options.maskd * self._error(self.projector(own), guide, target, step)
        elif options.maskd:
            terms["maskd"] = options.maskd * self._error(student.logits, teacher.logits, target, step)
        own_aux, guide_aux = student.aux_logits, teacher.aux_logits
        if "aux_logits" in self.inputs and own_aux is not None and guide_aux is not None:
            terms["maskd_aux"] = options.maskd_aux * self._error(own_aux, guide_aux, target, step)
        return terms

    def _error(self, student: Tensor, teacher: Tensor, target: Tensor, step: Step) -> Tensor:
        size = student.shape[-2:]
        guide = to_grid(teacher, size)
        with torch.no_grad():
            counts = valid_counts(target, size) if self.options.clean else None
            masks = receptive_masks(guide, self.tokens)
            if self.options.customised and step.progress >= self.options.customise_after:
                masks = masks * receptive_masks(student, self.tokens)
            shares = None if self.weighting is None else self.weighting(guide, counts)
            weights = weight_map(masks, counts, shares)
        return recomputed(masked_error, student, guide, weights)


def _note_tokens(module: nn.Module, _: Any) -> None:
    """A restored checkpoint may bring tokens; those never learned are zeros."""
    assert isinstance(module, MaskedDistillation)
    if module.pretraining is not None:
        module.pretraining.done = bool(module.tokens.any())
