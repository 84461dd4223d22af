"""What a method must learn before the student: trained once, kept beside the runs, found again by what made it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from segtailor.config import OptimizerConfig, ScheduleConfig
from segtailor.models.network import SegOutput
from segtailor.models.teacher import Teacher


class Lesson(nn.Module, ABC):
    """What a stage trains: one forward gives named, weighted losses; its trainable parameters are what is learnt."""

    @property
    def subject(self) -> nn.Module | None:
        """The network that is scored, or None where there is nothing to score."""
        return None

    @abstractmethod
    def forward(self, images: Tensor, target: Tensor, teacher: SegOutput | None, progress: float) -> dict[str, Tensor]:
        """Return the terms, which sum to the loss, for raw ``images`` (B,3,H,W) and ``target`` (B,H,W)."""


class Stage(ABC):
    """The training that a method needs before its own; ``method.stage`` is an instance, or None.

    The job trains :meth:`lesson` with the settings below (batch, seed, precision and data are the run's), saves it, and
    hands the file to :meth:`load`. A later run with the same :meth:`key`, teacher and data takes the file it finds.
    """

    name: ClassVar[str]
    """Starts the file's name."""
    about: ClassVar[str]
    """What is trained, for one printed line."""
    uses_teacher: ClassVar[bool]
    """Whether each batch comes with the output of the recipe's teacher."""
    steps: int | None = None
    """Training steps; None takes the run's, as for the two below."""
    optimizer: OptimizerConfig | None = None
    schedule: ScheduleConfig | None = None
    file: str | None = None
    """What was learnt earlier, to be loaded instead of training."""

    @abstractmethod
    def key(self) -> dict[str, Any]:
        """Return what, beside teacher, data and training settings, the result depends on; plain values."""

    @abstractmethod
    def lesson(self, teacher: Teacher | None) -> Lesson:
        """Return the module to be trained, untrained."""

    @abstractmethod
    def save(self, lesson: nn.Module, path: Path, card: Mapping[str, Any]) -> None:
        """Write what was learnt as safetensors, ``card`` in it (plain values; `teacher` is its fingerprint)."""

    @abstractmethod
    def load(self, path: Path, fingerprint: str | None) -> None:
        """Give the method what :meth:`save` wrote.

        ``fingerprint`` is that of the recipe's teacher. Raises :class:`SegtailorError` where the file cannot be read,
        does not fit, or was learnt from another teacher.
        """


class Opponent(nn.Module, ABC):
    """A network that is trained against the student, by an optimizer of its own.

    Calling it gives the loss that it is trained by, so that data parallelism averages its gradients. While the main
    loss is computed its parameters are frozen.
    """

    @abstractmethod
    def forward(self, student: SegOutput, teacher: SegOutput, target: Tensor) -> Tensor:
        """Return the opponent's own, weighted loss for two detached outputs and ``target`` (B,H,W)."""

    @abstractmethod
    def build_optimizer(self, parameters: Any) -> Any:
        """Return the optimizer of ``parameters``, which are this module's own."""
