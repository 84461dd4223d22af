"""The stage of LAD: a network learns to segment from an image and its own, coded labels."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from segtailor.config import OptimizerConfig, ScheduleConfig
from segtailor.losses import Step, channel_kl, cross_entropy, valid_counts
from segtailor.methods.base import Pretraining, PretrainObjective
from segtailor.models.label_assisted import Codes, LabelAssisted, LabelAssistedTeacher, load_assisted, save_assisted
from segtailor.models.network import SegOutput
from segtailor.models.teacher import Teacher


class DualPath(PretrainObjective):
    """Two codings of the same labels, two outputs: each must be right, and they must agree.

    Terms ``task`` and ``task_aux`` (weight 0.4), each summed over both paths, and ``consistency``: channel-wise KL from
    each path to the other, which is a constant in it.
    """

    def __init__(
        self, assisted: LabelAssisted, consistency: float, temperature: float, masked: bool, aux_weight: float = 0.4
    ) -> None:
        super().__init__()
        self.assisted = assisted
        self.consistency = consistency
        self.temperature = temperature
        self.masked = masked
        self.aux_weight = aux_weight

    @property
    def subject(self) -> nn.Module:
        """The network, scored with labels."""
        return self.assisted

    def forward(self, images: Tensor, target: Tensor, teacher: SegOutput | None, step: Step) -> dict[str, Tensor]:
        """Return the terms."""
        first, second = self.assisted(images, target), self.assisted(images, target)
        terms = {"task": self._task(first.logits, target, step) + self._task(second.logits, target, step)}
        if first.aux_logits is not None:
            aux = self._task(first.aux_logits, target, step) + self._task(second.aux_logits, target, step)
            terms["task_aux"] = self.aux_weight * aux
        if self.consistency:
            grid = (first.logits.shape[-2], first.logits.shape[-1])
            valid = valid_counts(target, grid).unsqueeze(1) if self.masked else None
            both = channel_kl(first.logits, second.logits, self.temperature, valid)
            both = both + channel_kl(second.logits, first.logits, self.temperature, valid)
            terms["consistency"] = self.consistency * both
        return terms

    def _task(self, logits: Tensor, target: Tensor, step: Step) -> Tensor:
        size = (target.shape[-2], target.shape[-1])
        return cross_entropy(self.assisted.upsample(logits, size), target, step)


class TeacherPretraining(Pretraining):
    """Trains the network of a :class:`LabelAssistedTeacher` and hands it its weights."""

    name: ClassVar[str] = "lad"
    about: ClassVar[str] = "the label-assisted teacher"
    uses_teacher: ClassVar[bool] = False
    file_option: ClassVar[str] = "teacher_file"

    def __init__(
        self,
        teacher: LabelAssistedTeacher,
        steps: int | None,
        optimizer: OptimizerConfig | None,
        schedule: ScheduleConfig | None,
        noise: float,
        consistency: float,
        temperature: float,
        masked: bool,
        origin: Mapping[str, Any],
    ) -> None:
        self.teacher = teacher
        self.steps, self.optimizer, self.schedule = steps, optimizer, schedule
        self.codes: Codes = "random"
        self.noise = noise
        self.consistency, self.temperature, self.masked = consistency, temperature, masked
        self.origin = dict(origin)

    def key(self) -> dict[str, Any]:
        """Return what the trained network depends on."""
        return {
            "model": self.teacher.model.spec(),
            "noise": self.noise,
            "consistency": self.consistency,
            "temperature": self.temperature,
            "masked": self.masked,
            **self.origin,
        }

    def objective(self, teacher: Teacher | None) -> PretrainObjective:
        """Return the network with its losses; it is the teacher's own, made trainable until it is loaded again."""
        network = copy.deepcopy(self.teacher.model).requires_grad_(True)
        assisted = LabelAssisted(network, self.codes, self.noise)
        return DualPath(assisted, self.consistency, self.temperature, self.masked)

    def save(self, objective: nn.Module, path: Path, card: Mapping[str, Any]) -> None:
        """Write the network."""
        assert isinstance(objective, DualPath)
        save_assisted(objective.assisted.model, path, card)

    def load(self, path: Path, fingerprint: str | None) -> None:
        """Give the teacher its weights."""
        load_assisted(self.teacher.model, path)
        self.done = True
