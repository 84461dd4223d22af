"""MasKD: squared errors under masks that tokens, learned on the teacher beforehand, draw over its maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from safetensors.torch import load_file
from torch import Tensor, nn

from segtailor.config import OptimizerConfig, ScheduleConfig
from segtailor.errors import SegtailorError
from segtailor.losses import Step, cross_entropy, full_precision, recomputed, to_grid, valid_counts
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
from segtailor.models.store import read_card, write_weights
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


def receptive_masks(values: Tensor, tokens: Tensor) -> Tensor:
    """Return one soft mask for each token, ``sigmoid(sum_c tokens[t,c] values[b,c,x])``: (B,T,h,w).

    ``values`` (B,C,h,w), ``tokens`` (T,C).

    >>> receptive_masks(torch.zeros(1, 2, 1, 1), torch.ones(3, 2)).flatten().tolist()
    [0.5, 0.5, 0.5]
    """
    values = full_precision(values)
    return F.conv2d(values, tokens.to(values.dtype)[:, :, None, None]).sigmoid()


def attended(values: Tensor, masks: Tensor, shares: Tensor | None = None) -> Tensor:
    """Return ``values`` (B,C,h,w) times the sum of ``masks`` (B,T,h,w), each times its ``shares`` (B,T) where given.

    A sum of masks is a positive number for each position, so that the largest logit stays the largest.

    >>> attended(torch.tensor([[[[4.0]]]]), torch.full((1, 3, 1, 1), 0.5)).item()
    6.0
    """
    if shares is not None:
        masks = masks * shares[:, :, None, None]
    return full_precision(values) * masks.sum(1, keepdim=True)


def dice(masks: Tensor, multiplicity: Tensor | None = None) -> Tensor:
    """Return how much the masks overlap: ``2 <m_i, m_j> / (|m_i|^2 + |m_j|^2)``, averaged over images and pairs i != j.

    ``masks`` (B,T,h,w); ``multiplicity`` (B,h*w) says how often each position counts. One token gives 0.

    >>> round(dice(torch.tensor([[[[1.0, 1.0]], [[1.0, 0.0]]]])).item(), 4)
    0.6667
    """
    flat = masks.flatten(2)
    counted = flat if multiplicity is None else flat * multiplicity.to(flat.dtype).unsqueeze(1)
    products = torch.bmm(counted, flat.transpose(1, 2))
    squares = products.diagonal(dim1=1, dim2=2)
    ratios = 2 * products / (squares.unsqueeze(1) + squares.unsqueeze(2) + 2e-12)
    pairs = max(masks.shape[1] * (masks.shape[1] - 1), 1)
    overlap = ratios.sum((1, 2)) - ratios.diagonal(dim1=1, dim2=2).sum(1)
    return overlap.mean() / pairs


def weight_map(
    masks: Tensor, multiplicity: Tensor | None = None, shares: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """Return what each position's squared error weighs: ``sum_i shares_i m_i(x)^2 n(x) / (sum_x' n m_i + eps)``.

    ``masks`` (B,T,h,w); ``multiplicity`` n (B,h*w), 1 everywhere when None; ``shares`` (B,T), 1/T when None. One map
    (B,h,w) replaces T masked errors, so that nothing of size B*T*C*h*w is ever made.

    >>> weight_map(torch.tensor([[[[1.0, 1.0]], [[0.0, 0.5]]]]), eps=0.0).tolist()
    [[[0.25, 0.5]]]
    """
    flat = masks.flatten(2)
    counted = flat if multiplicity is None else flat * multiplicity.to(flat.dtype).unsqueeze(1)
    weights = flat * counted / (counted.sum(2, keepdim=True) + eps)
    if shares is None:
        return weights.mean(1).view(len(masks), *masks.shape[2:])
    return (weights * shares.unsqueeze(2)).sum(1).view(len(masks), *masks.shape[2:])


def masked_error(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Return ``0.5 sum_x weights (student - teacher)^2``, averaged over images and channels.

    ``student`` and ``teacher`` (B,C,h,w), ``weights`` (B,h,w) from :func:`weight_map`.

    >>> masked_error(torch.zeros(1, 1, 1, 2), torch.tensor([[[[2.0, 4.0]]]]), torch.tensor([[[1.0, 0.5]]])).item()
    6.0
    """
    errors = (full_precision(student) - full_precision(teacher)).square().mean(1)
    return 0.5 * (errors * weights).sum((1, 2)).mean()


class TokenWeighting(nn.Module):
    """Shares of the tokens: softmax of a 1x1 convolution of the image's mean of a 3x3 convolution, nothing between."""

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(channels, channels, 3, padding=1)
        self.shares = nn.Conv2d(channels, tokens, 1)

    def forward(self, values: Tensor, multiplicity: Tensor | None = None) -> Tensor:
        """Return (B,T), rows that sum to 1, for ``values`` (B,C,h,w).

        ``multiplicity`` (B,h*w) says how often each position counts in the mean; where it is 0 the position is zeroed
        before the convolution reads it.
        """
        values = full_precision(values)
        if multiplicity is None:
            mean = self.local(values).mean((2, 3), keepdim=True)
        else:
            counts = multiplicity.to(values.dtype).view(len(values), 1, *values.shape[2:])
            total = (self.local(values * (counts > 0)) * counts).sum((2, 3), keepdim=True)
            mean = total / counts.sum((2, 3), keepdim=True).clamp(min=1)
        result: Tensor = self.shares(mean).flatten(1).softmax(1)
        return result


FORMAT = {"format": "segtailor tokens", "version": 1, "method": "maskd"}


class TokenObjective(PretrainObjective):
    """Tokens, and their weighting if wished, learned on a teacher that stays as it is.

    Terms: ``task``, the cross-entropy of the teacher's logits under the summed masks, and ``dice``, the masks' overlap.
    The published code adds the cross-entropy of the teacher's auxiliary logits, which is a constant and left out. A
    tapped feature goes through a frozen copy of the teacher's own ``classifier``; the state holds neither that nor
    anything else of the teacher.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        channels: int,
        upsample: Callable[[Tensor, tuple[int, int]], Tensor],
        classifier: nn.Conv2d | None,
        options: MaskedOptions,
    ) -> None:
        super().__init__()
        self.tokens = nn.Parameter(0.01 * torch.randn(options.tokens, channels))
        self.weighting = TokenWeighting(channels, options.tokens) if options.weighting else None
        self.upsample, self.options = upsample, options
        for name in ("weight", "bias"):
            value = getattr(classifier, name, None)
            self.register_buffer(name, None if value is None else value.detach().float().clone(), persistent=False)

    def forward(self, images: Tensor, target: Tensor, teacher: SegOutput | None, step: Step) -> dict[str, Tensor]:
        """Return the terms; the images themselves are not read."""
        assert teacher is not None
        with torch.autocast(target.device.type, enabled=False):
            values = teacher.logits if self.weight is None else teacher.feature
            assert values is not None
            values = full_precision(values.detach())
            counts = valid_counts(target, values.shape[-2:]) if self.options.clean else None
            masks = receptive_masks(values, self.tokens)
            kept = attended(values, masks, None if self.weighting is None else self.weighting(values, counts))
            logits = kept if self.weight is None else F.conv2d(kept, self.weight, self.bias)
            size = (target.shape[-2], target.shape[-1])
            terms = {"task": cross_entropy(self.upsample(logits, size), target, step)}
            if self.options.dice:
                terms["dice"] = self.options.dice * dice(masks, counts)
            return terms


class TokenPretraining(Pretraining):
    """Learns the tokens of one teacher and hands them to ``method``."""

    name = "tokens"
    about = "the teacher's receptive tokens (maskd)"
    uses_teacher = True
    file_option = "tokens_file"

    optimizer: OptimizerConfig
    schedule: ScheduleConfig

    def __init__(self, method: MaskedDistillation) -> None:
        self.method, self.options = method, method.options
        options = self.options
        self.steps, self.schedule, self.file = options.token_steps, ScheduleConfig(power=0.9), options.tokens_file
        self.optimizer = OptimizerConfig(
            name="sgd", lr=options.token_lr, weight_decay=options.token_weight_decay, momentum=options.token_momentum
        )

    def key(self) -> dict[str, Any]:
        """Return what the tokens depend on."""
        return {**self.method.layout, "dice": self.options.dice, "void_left_out": self.options.clean}

    def objective(self, teacher: Teacher | None) -> PretrainObjective:
        """Return fresh tokens.

        Raises :class:`SegtailorError` where the tap is the feature and the teacher shows no classifier behind it.
        """
        assert teacher is not None
        channels, classifier = self.method.tokens.shape[1], None
        if self.options.tap == "feature":
            if teacher.class_map is not None:
                raise SegtailorError(
                    "method maskd, tap feature: its tokens are learned through the teacher's own classifier, whose "
                    "classes are not the data's (teacher.class_map); set tap: logits"
                )
            classifier = getattr(getattr(teacher.model, "head", None), "classifier", None)
            if not isinstance(classifier, nn.Conv2d) or classifier.in_channels != channels:
                raise SegtailorError(
                    f"method maskd, tap feature: the teacher {teacher.name} shows no classifier behind its feature; "
                    "set tap: logits"
                )
        return TokenObjective(channels, teacher.upsample, classifier, self.options)

    def save(self, objective: nn.Module, path: Path, card: Mapping[str, Any]) -> None:
        """Write the objective's tokens."""
        training = {
            "steps": self.steps,
            "optimizer": self.optimizer.model_dump(),
            "schedule": self.schedule.model_dump(),
            "dice": self.options.dice,
            "void_left_out": self.options.clean,
        }
        write_weights(objective, path, {**FORMAT, "layout": self.method.layout, "training": training, **card})

    def load(self, path: Path, fingerprint: str | None) -> None:
        """Hand the file's tokens to the method.

        Raises :class:`SegtailorError` for a file that cannot be read, is none of tokens, does not fit the method, or
        was learned from a teacher other than the one of this ``fingerprint`` (None: not checked).
        """
        try:
            card = read_card(path)
        except SegtailorError as error:
            raise SegtailorError(
                f"cannot read tokens from {path}; give another tokens_file, or none to learn them ({error})"
            ) from error
        if any(card.get(key) != value for key, value in FORMAT.items()):
            raise SegtailorError(f"{path} is not a file of tokens that this version of segtailor wrote; train new ones")
        found, wanted = card.get("layout") or {}, self.method.layout
        differences = [
            f"{key} {found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value
        ]
        if differences:
            raise SegtailorError(
                f"{path} holds tokens of another layout ({', '.join(differences)}); change the method's options, or "
                "train new tokens"
            )
        if fingerprint is not None and card.get("teacher") != fingerprint:
            raise SegtailorError(
                f"{path} holds tokens of another teacher ({str(card.get('teacher'))[:12]}, not {fingerprint[:12]}); "
                "leave tokens_file out to learn them from this one, or give the teacher they belong to"
            )
        tensors, state = load_file(path), self.method.state_dict()
        shapes = {name: value.shape for name, value in state.items() if not name.startswith("projector.")}
        if {name: value.shape for name, value in tensors.items()} != shapes:
            raise SegtailorError(f"{path} is damaged: its tensors are not what its card says; train new ones")
        self.method.load_state_dict(tensors, strict=False)


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
        self.layout = {
            "tokens": options.tokens,
            "channels": channels,
            "classes": self.num_classes,
            "tap": options.tap,
            "weighting": options.weighting,
        }
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
        self.pretraining = TokenPretraining(self) if used else None
        if self.pretraining is not None and self.pretraining.file is not None:
            self.pretraining.load(Path(self.pretraining.file), None)

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
