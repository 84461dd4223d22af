"""What the loop trains: a student with its methods, or a method's stage."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from segtailor.engine.unlabelled import Handout, Reading
from segtailor.losses import Step
from segtailor.methods.base import Adversary, PretrainObjective
from segtailor.models.network import SegOutput
from segtailor.models.teacher import Teacher

Taught = Mapping[str, SegOutput]
"""What each method sees of its teacher, by the method's name."""


class Learner(nn.Module, ABC):
    """One forward gives all weighted terms; set up as one module, so that data parallelism averages every gradient."""

    @property
    @abstractmethod
    def subject(self) -> nn.Module | None:
        """The network that is scored, averaged and kept as best; None where there is nothing to score."""

    @property
    def teachers(self) -> dict[str, Teacher]:
        """Teachers of single methods, beside the recipe's, by the method's name."""
        return {}

    @property
    def opponents(self) -> dict[str, Adversary]:
        """Networks trained against the student, by the method's name."""
        return {}

    @property
    def uses_shared(self) -> bool:
        """Whether it learns from the recipe's teacher."""
        return True

    @property
    def readings(self) -> dict[str, Reading]:
        """Where each method learns, by its name, in batches that hold images without labels."""
        return {}

    @property
    def reads_confident_pixels(self) -> bool:
        """Whether a method takes the teacher's classes where it is sure."""
        return "confident pixels" in self.readings.values()

    @property
    def seen(self) -> Taught:
        """What each opponent is shown of the last forward's student, detached, by the method's name."""
        return {}

    @abstractmethod
    def select(self, shared: SegOutput | None, own: Taught) -> Taught:
        """Return what each method reads of the shared teacher or of its own; the memory of the rest is then free."""

    @abstractmethod
    def forward(
        self, images: Tensor, target: Tensor, taught: Taught, step: Step, handout: Handout | None = None
    ) -> dict[str, Tensor]:
        """Return the terms, which sum to the loss, for raw ``images`` (B,3,H,W) and ``target`` (B,H,W).

        Where some images have no labels, ``handout`` says what the task and each method are given instead.
        """


class StageLearner(Learner):
    """A stage's lesson."""

    def __init__(self, lesson: PretrainObjective) -> None:
        super().__init__()
        self.lesson = lesson

    @property
    def subject(self) -> nn.Module | None:
        """The lesson's own."""
        return self.lesson.subject

    def select(self, shared: SegOutput | None, own: Taught) -> Taught:
        """Return the recipe's teacher's whole output."""
        return {} if shared is None else {"teacher": shared}

    def forward(
        self, images: Tensor, target: Tensor, taught: Taught, step: Step, handout: Handout | None = None
    ) -> dict[str, Tensor]:
        """Return the lesson's terms; lessons are learnt from labelled images alone."""
        terms: dict[str, Tensor] = self.lesson(images, target, taught.get("teacher"), step)
        return terms
