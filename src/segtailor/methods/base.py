"""What a method is: a module that turns the outputs of student and teacher into named, weighted losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, model_validator
from torch import Tensor, nn

from segtailor.config import ModelConfig
from segtailor.errors import SegtailorError, unknown
from segtailor.methods.stage import Opponent, Stage
from segtailor.models.network import SegOutput
from segtailor.models.teacher import Teacher

Channels = dict[str, int]
"""Width of every tap that a model offers: ``feature``, ``stages.N`` and named ones."""


class MethodOptions(BaseModel):
    """Options of a method. A field's default is the ``clean`` value; ``published`` overrides it in ``presets``."""

    model_config = ConfigDict(extra="forbid")
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    sources: ClassVar[dict[str, str]] = {}
    """Where an option's default comes from, by option: a paper, a benchmark, or `our choice`."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        return {**cls.presets.get(str(given.get("variant")), {}), **given} if isinstance(given, dict) else given


class VariantOptions(MethodOptions):
    """Options of a method that exists as published and mended."""

    variant: Literal["clean", "published"] = "clean"


class Method(nn.Module):
    """How knowledge passes: ``method(student, teacher, target, progress) -> {term: weighted loss}``.

    A subclass sets the class attributes below and writes :meth:`terms`. Its projectors are its parameters.
    ``progress`` is step / steps, counted from 1; a plain float. The teacher's output is detached and autocast is off
    inside, so terms compute in float32.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    formula: ClassVar[str]
    """One line for each term."""
    source: ClassVar[str]
    widths: ClassVar[str] = "no widths to align: it compares logits"
    """How networks of different width are brought together."""
    extra_modules: ClassVar[str] = "none"
    """What it adds to the training that the exported student does not carry."""
    figures: ClassVar[str] = "none"
    """Published figures, and whose."""
    unsuited: ClassVar[str]
    """When to choose another method."""
    Options: ClassVar[type[MethodOptions]] = MethodOptions

    uses_teacher: bool = True
    """Whether it reads the teacher at all; where no method does, the teacher is not run."""
    needs: frozenset[str] = frozenset()
    """What it reads beside the logits: labels, aux_logits, feature. An instance may need less than its class."""
    void_only: bool = False
    """Whether labels tell it only where void is; it then learns from every pixel of images without masks."""
    reads: frozenset[str] = frozenset()
    """Taps that it reads beside the two kinds of logits, by their names in :class:`SegOutput`."""
    compares_logits: bool = True
    """Whether it compares the logits, too; only told, not acted on."""
    phases: bool = False
    """Some parameters are used only part of the time."""
    couples_images: bool = False
    """The value does not split over ranks and micro-batches."""
    minimal_at_teacher: frozenset[str] = frozenset()
    """Terms that are least where the student's output equals the teacher's."""
    stage: Stage | None = None
    """What must be learnt before the student is trained."""
    teacher: Teacher | None = None
    """A teacher of its own, instead of the recipe's; no part of the module."""
    opponent: Opponent | None = None
    """A network trained against the student; no part of the module, since it has an optimizer of its own."""

    def __init__(
        self, num_classes: int, student_channels: Channels, teacher_channels: Channels, options: MethodOptions
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.options = options

    @classmethod
    def own_teacher(cls, options: MethodOptions, student: ModelConfig, num_classes: int, seed: int) -> Teacher | None:
        """Return the teacher that a method with ``options`` brings for a student built as ``student`` says, if any."""
        return None

    @classmethod
    def altered_logits(cls, options: MethodOptions) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Return what this method with ``options`` makes of the teacher's logits, for the pictures in a report.

        A function of logits (B,K,h,w) and target (B,H,W) to logits (B,K,H,W); None (the default) where the student
        learns them as they are.
        """
        return None

    def adopt(self, teacher: Teacher) -> None:
        """Take what :meth:`own_teacher` returned."""
        self.teacher = teacher

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("teacher", "opponent"):
            object.__setattr__(self, name, value)  # not registered
        else:
            super().__setattr__(name, value)

    def forward(
        self, student: SegOutput, teacher: SegOutput, target: Tensor | None, progress: float
    ) -> dict[str, Tensor]:
        """Return the weighted terms; ``target`` (B,H,W) holds class indices and 255 for void.

        Raises :class:`SegtailorError` where ``target`` is None and the method needs labels.
        """
        if target is None:
            if "labels" in self.needs:
                raise SegtailorError(f"method {self.name} needs labels; give it a target, or choose another method")
            height, width = student.logits.shape[-2:]
            target = torch.zeros(len(student.logits), height, width, dtype=torch.uint8, device=student.logits.device)
        with torch.autocast(student.logits.device.type, enabled=False):
            return self.terms(student, teacher.detach(), target, progress)

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, progress: float) -> dict[str, Tensor]:
        """Return the weighted terms of a detached teacher; written by each method."""
        raise NotImplementedError

    def select(self, output: SegOutput) -> SegOutput:
        """Return ``output`` with only the tensors that this method reads, so that the others' memory is free."""
        return SegOutput(
            logits=output.logits,
            aux_logits=output.aux_logits if "aux_logits" in self.needs else None,
            feature=output.feature if "feature" in self.reads else None,
            classifier_input=output.classifier_input if "classifier_input" in self.reads else None,
            stages=tuple(
                stage if f"stages.{index}" in self.reads else stage.new_empty(0)
                for index, stage in enumerate(output.stages)
            ),
            taps={name: value for name, value in output.taps.items() if name in self.reads},
        )


class MissingTapError(SegtailorError):
    """A network does not have the ``tap`` that a method reads; ``role`` says which network, student or teacher."""

    def __init__(self, tap: str, role: str, channels: Channels) -> None:
        hint = "`segtailor inspect MODEL` lists a model's taps"
        super().__init__(str(unknown(f"tap of the {role}", tap, channels, hint)))
        self.tap, self.role = tap, role

    def named(self, method: str, model: str) -> SegtailorError:
        """Return the error with the names of ``method`` and ``model``, and what to do."""
        if self.tap not in ("feature", "classifier_input", "decoder"):
            return SegtailorError(f"method {method}, {self.role} {model}: {self}")
        return SegtailorError(
            f"method {method} needs the feature in front of the classifier, and the {self.role} {model} gives none; "
            f"name one of its modules or outputs as {self.role}.taps: {{feature: PATH}}, or choose a method that "
            "compares logits alone (kd, dist, or a weight of 0 for the feature's term)"
        )


def width_of(channels: Channels, tap: str, role: str) -> int:
    """Return the width of ``tap``, or raise :class:`MissingTapError`, which lists the nearest taps of that model."""
    if tap not in channels:
        raise MissingTapError(tap, role, channels)
    return channels[tap]


def read_tap(output: SegOutput, tap: str, role: str) -> Tensor:
    """Return the tensor called ``tap``; ``classifier_input`` falls back to ``feature`` where a model has no dropout."""
    value = output.tap(tap)
    if value is None and tap == "classifier_input":
        value = output.feature
    if value is None:
        raise SegtailorError(f"the {role} returns no '{tap}'; choose another tap or method (`segtailor inspect MODEL`)")
    return value


def projector(student_channels: Channels, teacher_channels: Channels, tap: str, always: bool = False) -> nn.Module:
    """Return a 1x1 convolution without bias from the student's width of ``tap`` to the teacher's.

    It is the identity where the widths are equal, unless ``always``.
    """
    own, guide = width_of(student_channels, tap, "student"), width_of(teacher_channels, tap, "teacher")
    return nn.Conv2d(own, guide, 1, bias=False) if always or own != guide else nn.Identity()
