"""The stage of MasKD: tokens learn to keep what the teacher needs for its prediction, and not to overlap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtailor.config import OptimizerConfig, ScheduleConfig
from segtailor.errors import SegtailorError
from segtailor.losses import Step, cross_entropy, full_precision, valid_counts
from segtailor.methods.base import Pretraining, PretrainObjective
from segtailor.methods.receptive.file import TokenLayout, read_tokens, write_tokens
from segtailor.methods.receptive.tokens import attended, dice, receptive_masks
from segtailor.methods.receptive.weighting import TokenWeighting
from segtailor.models.network import SegOutput
from segtailor.models.teacher import Teacher

Receive = Callable[[Tensor, Mapping[str, Tensor] | None], None]
"""Takes the tokens (T,C) and the state of their :class:`TokenWeighting`."""


class TokenObjective(PretrainObjective):
    """Tokens, and their weighting if wished, learnt on a teacher that stays as it is.

    Terms: ``task``, the cross-entropy of the teacher's logits under the summed masks, and ``dice``, the masks' overlap.
    The published code adds the cross-entropy of the teacher's auxiliary logits, which is a constant and left out. A
    tapped feature goes through a frozen copy of the teacher's own ``classifier``. Only the rule ``upsample`` is kept of
    the teacher.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        layout: TokenLayout,
        upsample: Callable[[Tensor, tuple[int, int]], Tensor],
        classifier: nn.Conv2d | None,
        overlap: float,
        masked: bool,
    ) -> None:
        super().__init__()
        self.tokens = nn.Parameter(0.01 * torch.randn(layout.tokens, layout.channels))
        self.weighting = TokenWeighting(layout.channels, layout.tokens) if layout.weighting else None
        self.upsample = upsample
        self.overlap = overlap
        self.masked = masked
        self.register_buffer("weight", None if classifier is None else classifier.weight.detach().float().clone())
        bias = None if classifier is None else classifier.bias
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    def forward(self, images: Tensor, target: Tensor, teacher: SegOutput | None, step: Step) -> dict[str, Tensor]:
        """Return the terms; the images themselves are not read."""
        assert teacher is not None
        with torch.autocast(target.device.type, enabled=False):
            values = teacher.logits if self.weight is None else teacher.feature
            assert values is not None
            values = full_precision(values.detach())
            counts = valid_counts(target, (values.shape[-2], values.shape[-1])) if self.masked else None
            masks = receptive_masks(values, self.tokens)
            kept = attended(values, masks, None if self.weighting is None else self.weighting(values, counts))
            logits = kept if self.weight is None else F.conv2d(kept, self.weight, self.bias)
            size = (target.shape[-2], target.shape[-1])
            terms = {"task": cross_entropy(self.upsample(logits, size), target, step)}
            if self.overlap:
                terms["dice"] = self.overlap * dice(masks, counts)
            return terms


class TokenPretraining(Pretraining):
    """Learns the tokens of one teacher and hands them to the method by ``receive``."""

    name: ClassVar[str] = "tokens"
    about: ClassVar[str] = "the teacher's receptive tokens (maskd)"
    uses_teacher: ClassVar[bool] = True
    file_option: ClassVar[str] = "tokens_file"

    def __init__(
        self,
        layout: TokenLayout,
        receive: Receive,
        steps: int,
        optimizer: OptimizerConfig,
        schedule: ScheduleConfig,
        overlap: float,
        masked: bool,
        file: str | None = None,
    ) -> None:
        self.layout, self.receive = layout, receive
        self.steps, self.optimizer, self.schedule = steps, optimizer, schedule
        self.overlap, self.masked = overlap, masked
        self.file = file

    def key(self) -> dict[str, Any]:
        """Return what the tokens depend on."""
        return {**self.layout.card(), "dice": self.overlap, "void_left_out": self.masked}

    def objective(self, teacher: Teacher | None) -> PretrainObjective:
        """Return fresh tokens.

        Raises :class:`SegtailorError` where the tap is the feature and the teacher shows no classifier behind it.
        """
        assert teacher is not None
        classifier = None
        if self.layout.tap == "feature":
            if teacher.class_map is not None:
                raise SegtailorError(
                    "method maskd, tap feature: its tokens are learnt through the teacher's own classifier, whose "
                    "classes are not the data's (teacher.class_map); set tap: logits"
                )
            classifier = getattr(getattr(teacher.model, "head", None), "classifier", None)
            if not isinstance(classifier, nn.Conv2d) or classifier.in_channels != self.layout.channels:
                raise SegtailorError(
                    f"method maskd, tap feature: the teacher {teacher.name} shows no classifier behind its feature; "
                    "set tap: logits"
                )
        return TokenObjective(self.layout, teacher.upsample, classifier, self.overlap, self.masked)

    def save(self, objective: nn.Module, path: Path, card: Mapping[str, Any]) -> None:
        """Write the objective's tokens."""
        assert isinstance(objective, TokenObjective)
        training = {
            "steps": self.steps,
            "optimizer": self.optimizer.model_dump() if self.optimizer else None,
            "schedule": self.schedule.model_dump() if self.schedule else None,
            "dice": self.overlap,
            "void_left_out": self.masked,
        }
        weighting = None if objective.weighting is None else objective.weighting.state_dict()
        write_tokens(path, self.layout, objective.tokens, weighting, {"training": training, **card})

    def load(self, path: Path, fingerprint: str | None) -> None:
        """Hand the file's tokens to the method; errors as in :func:`read_tokens`."""
        self.receive(*read_tokens(path, self.layout, fingerprint))
