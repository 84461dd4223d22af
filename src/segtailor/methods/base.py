"""The method contract: a module that turns the outputs of student and teacher into named, weighted losses."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, get_args

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from typing_extensions import TypeVar

from segtailor.config import ModelConfig, OptimizerConfig, ScheduleConfig
from segtailor.errors import SegtailorError, unknown
from segtailor.losses import Step, full_precision, to_grid
from segtailor.models.network import SegOutput
from segtailor.models.teacher import Teacher

Channels = dict[str, int]
"""Width of every tap of a model: ``feature``, ``stages.N`` and named ones."""


def option(default: Any, description: str, *, source: str, published: Any = None, **constraints: Any) -> Any:
    """Return the field of an option: its ``clean`` default, where that comes from, and the ``published`` value.

    ``source`` is a paper, a code base, or `our choice`; ``constraints`` are those of pydantic's ``Field``.
    """
    extra: dict[str, Any] = {"source": source} | ({} if published is None else {"published": published})
    return Field(default, description=description, json_schema_extra=extra, **constraints)


class MethodOptions(BaseModel):
    """Options of a method; unknown ones are an error."""

    model_config = ConfigDict(extra="forbid")

    retired: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """Options of earlier versions: for each value (or `""`, any other) what to write instead."""

    @classmethod
    def extra(cls, name: str) -> dict[str, Any]:
        """Return what :func:`option` was given for ``name``: ``source``, and ``published`` where it differs."""
        found = cls.model_fields[name].json_schema_extra
        return found if isinstance(found, dict) else {}

    @model_validator(mode="before")
    @classmethod
    def _fill_in_published(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.get("variant") != "published":
            return given
        values = {name: extra["published"] for name in cls.model_fields if "published" in (extra := cls.extra(name))}
        return {**values, **given}


class VariantOptions(MethodOptions):
    """Options of a method that has published code: computed exactly as published, or with its known defects fixed."""

    variant: Literal["clean", "published"] = "clean"

    @property
    def clean(self) -> bool:
        """Whether void is left out and known defects are fixed."""
        return self.variant == "clean"

    @property
    def feature_tap(self) -> str:
        """The feature that is read: before dropout, as published after it."""
        return "feature" if self.clean else "classifier_input"


OptionsT = TypeVar("OptionsT", bound=MethodOptions, default=MethodOptions)


class PretrainObjective(nn.Module, ABC):
    """The module that a pre-training trains: one forward gives named, weighted losses."""

    @property
    def subject(self) -> nn.Module | None:
        """The network that is scored, or None where there is nothing to score."""
        return None

    @abstractmethod
    def forward(self, images: Tensor, target: Tensor, teacher: SegOutput | None, step: Step) -> dict[str, Tensor]:
        """Return the terms, which sum to the loss, for raw ``images`` (B,3,H,W) and ``target`` (B,H,W)."""


class Pretraining(ABC):
    """The training that a method needs before the student's; ``method.pretraining`` is an instance, or None.

    The job trains :meth:`objective` with the settings below (batch, precision and data are the run's), saves it, and
    gives the file to :meth:`load`. A later run with the same :meth:`key`, teacher and data takes the file it finds.
    """

    name: ClassVar[str]
    """Starts the file's name."""
    about: ClassVar[str]
    """What is trained, for one printed line."""
    uses_teacher: ClassVar[bool]
    """Whether each batch comes with the output of the recipe's teacher."""
    file_option: ClassVar[str]
    """The method's option that names a file to load instead of training."""
    steps: int | None = None
    """Training steps; None takes the run's, as for the two below."""
    optimizer: OptimizerConfig | None = None
    schedule: ScheduleConfig | None = None
    file: str | None = None
    """A file that was trained earlier, loaded instead of training."""
    done: bool = False
    """Whether the method has what is trained here."""

    @abstractmethod
    def key(self) -> dict[str, Any]:
        """Return plain values that the result depends on, beside teacher, data and training settings."""

    @abstractmethod
    def objective(self, teacher: Teacher | None) -> PretrainObjective:
        """Return the module to be trained, untrained."""

    @abstractmethod
    def save(self, objective: nn.Module, path: Path, card: Mapping[str, Any]) -> None:
        """Write what was trained as safetensors, ``card`` in it (plain values; `teacher` is its fingerprint)."""

    @abstractmethod
    def load(self, path: Path, fingerprint: str | None) -> None:
        """Give the method what :meth:`save` wrote, and set :attr:`done`.

        ``fingerprint`` is that of the recipe's teacher. Raises :class:`SegtailorError` where the file cannot be read,
        does not fit, or was trained on another teacher.
        """


class Adversary(nn.Module, ABC):
    """A network that is trained against the student, with its own optimizer.

    Calling it gives the loss that it is trained by, so that data parallelism averages its gradients. While the main
    loss is computed its parameters are frozen.
    """

    trained: bool = False
    """Whether someone trains it; set by whoever steps its optimizer."""
    sync_batchnorm: bool = True
    """Whether processes may share its batch norm's moments; False where its loss is differentiated twice."""

    @abstractmethod
    def forward(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> Tensor:
        """Return the adversary's weighted loss for two detached outputs and ``target`` (B,H,W)."""

    @abstractmethod
    def build_optimizer(self, parameters: Any) -> Any:
        """Return the optimizer of ``parameters``, which are this module's own."""


class Method(nn.Module, Generic[OptionsT]):
    """How knowledge passes: ``method(student, teacher, target, step) -> {term: weighted loss}``.

    A subclass sets ``name`` and ``summary`` and writes :meth:`terms`; with projectors also :meth:`build`, with options
    ``class Mine(Method[MineOptions])``. The attributes below are read by the training loop; a class or, in ``build``,
    an instance sets those that differ. The teacher's output is detached and autocast is off inside, so terms compute in
    float32.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for lists of methods."""
    channel_alignment: str = "no widths to align: it compares logits"
    """How networks of different width are compared, for the run's summary."""
    Options: ClassVar[type[MethodOptions]] = MethodOptions

    inputs: frozenset[str] = frozenset({"logits"})
    """Outputs it reads: ``logits``, ``aux_logits``, ``feature``, ``classifier_input``, ``stages.N`` and named taps."""
    labels: Literal["unused", "ignore_mask", "classes"] = "ignore_mask"
    """How it uses labels: not at all, to leave void pixels out, or by their classes."""
    teacher: Literal["recipe", "none", "own"] = "recipe"
    """Whose output it reads; where no method reads the recipe's teacher, that is not run."""
    sparse_gradients: bool = False
    """Whether some parameters are used only part of the time."""
    pretraining: Pretraining | None = None
    """What must be trained before the student."""
    adversary: Adversary | None = None
    """A network trained against the student; not registered as a submodule, since it has its own optimizer."""
    own_teacher: Teacher | None = None
    """What :meth:`build_teacher` returned; not registered either."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for base in cls.__dict__.get("__orig_bases__", ()):
            for argument in get_args(base):
                if isinstance(argument, type) and issubclass(argument, MethodOptions):
                    cls.Options = argument

    def __init__(self, num_classes: int, student: Channels, teacher: Channels, options: OptionsT) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.options = options
        self.build(student, teacher)
        if self.labels not in ("unused", "ignore_mask", "classes") or isinstance(self.inputs, str):
            raise SegtailorError(
                f"method {self.name}: labels are unused, ignore_mask or classes, not {self.labels!r}; inputs are a set"
            )

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the projectors for networks of these widths, and set what depends on the options."""

    @classmethod
    def build_teacher(cls, options: MethodOptions, student: ModelConfig, num_classes: int, seed: int) -> Teacher:
        """Return the method's own teacher, for a student built as ``student`` says; for ``teacher = "own"``."""
        raise NotImplementedError

    @classmethod
    def altered_logits(cls, options: MethodOptions) -> Callable[[Tensor, Tensor], Tensor] | None:
        """Return the change that this method makes to the teacher's logits, for the pictures in a report.

        A function of logits (B,K,h,w) and target (B,H,W) to logits (B,K,H,W); None (the default) where the student
        learns them as they are.
        """
        return None

    def use_teacher(self, teacher: Teacher) -> None:
        """Take what :meth:`build_teacher` returned."""
        self.own_teacher = teacher

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("own_teacher", "adversary"):
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def forward(
        self, student: SegOutput, teacher: SegOutput, target: Tensor | None, step: Step | float
    ) -> dict[str, Tensor]:
        """Return the weighted terms; ``target`` (B,H,W) holds class indices and 255 for void, None for no labels.

        A number instead of ``step`` is its progress. Raises :class:`SegtailorError` where the method reads classes and
        there are none, or where nobody trains what it depends on (see :meth:`check_driven`).
        """
        if target is None:
            if self.labels == "classes":
                raise SegtailorError(f"method {self.name} needs labels; give it a target, or choose another method")
            height, width = student.logits.shape[-2:]
            target = torch.zeros(len(student.logits), height, width, dtype=torch.uint8, device=student.logits.device)
        self.check_driven()
        if not isinstance(step, Step):
            step = Step(step)
        with torch.autocast(student.logits.device.type, enabled=False):
            terms = self.terms(student, teacher.detach(), target, step)
        if not isinstance(terms, dict):
            raise SegtailorError(f"method {self.name}: terms() returns {type(terms).__name__}, not a dict of losses")
        for name, value in terms.items():
            if not isinstance(value, Tensor) or value.ndim > 0 or not value.is_floating_point():
                shown = f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
                raise SegtailorError(f"method {self.name}: the term {name!r} is {shown}, not a scalar tensor of floats")
        return terms

    def check_driven(self) -> None:
        """Raise :class:`SegtailorError` unless own teacher, pre-training and adversary are there and trained."""
        if self.teacher == "own" and self.own_teacher is None:
            raise SegtailorError(
                f"method {self.name} learns from a teacher that it builds and trains first, and has none; use "
                "`segtailor distill`, or choose a method that learns from your teacher"
            )
        if self.pretraining is not None and not self.pretraining.done:
            raise SegtailorError(
                f"method {self.name}: {self.pretraining.about} must be trained first; use `segtailor distill`, or set "
                f"{self.pretraining.file_option}"
            )
        if self.adversary is not None and not self.adversary.trained:
            raise SegtailorError(
                f"method {self.name} has an adversary that nobody trains, so its term would mean nothing; use "
                "`segtailor distill`, or train method.adversary beside the student and set method.adversary.trained"
            )

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the weighted terms of a detached teacher; written by each method."""
        raise NotImplementedError

    def select(self, output: SegOutput) -> SegOutput:
        """Return ``output`` with only the tensors that this method reads, so that the others' memory is free."""
        return SegOutput(
            logits=output.logits,
            aux_logits=output.aux_logits if "aux_logits" in self.inputs else None,
            feature=output.feature if "feature" in self.inputs else None,
            classifier_input=output.classifier_input if "classifier_input" in self.inputs else None,
            stages=tuple(
                stage if f"stages.{index}" in self.inputs else stage.new_empty(0)
                for index, stage in enumerate(output.stages)
            ),
            taps={name: value for name, value in output.taps.items() if name in self.inputs},
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


def widths_of(student: Channels, teacher: Channels, tap: str = "feature") -> tuple[int, int]:
    """Return the width of ``tap`` in both networks; errors as in :func:`width_of`."""
    return width_of(student, tap, "student"), width_of(teacher, tap, "teacher")


def read_pair(student: SegOutput, teacher: SegOutput, tap: str) -> tuple[Tensor, Tensor]:
    """Return ``tap`` of both networks in float32, the teacher's on the student's grid."""
    own = full_precision(read_tap(student, tap, "student"))
    return own, to_grid(read_tap(teacher, tap, "teacher"), own.shape[-2:])


def projector(student: Channels, teacher: Channels, tap: str, always: bool = False) -> nn.Module:
    """Return a 1x1 convolution without bias from the student's width of ``tap`` to the teacher's.

    It is the identity where the widths are equal, unless ``always``.
    """
    own, guide = widths_of(student, teacher, tap)
    return nn.Conv2d(own, guide, 1, bias=False) if always or own != guide else nn.Identity()
