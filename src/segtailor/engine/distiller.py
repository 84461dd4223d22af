"""Student and methods as one module: the only thing that is set up for training."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from segtailor.engine.learner import Learner, Taught
from segtailor.engine.unlabelled import Handout, Reading, reading_of
from segtailor.losses import Step, cross_entropy
from segtailor.methods.base import Adversary, Method
from segtailor.models.network import Network, SegOutput
from segtailor.models.teacher import Teacher


class Distiller(Learner):
    """One forward gives the task's and every method's weighted terms.

    They are one module because data parallelism refuses a method without parameters, and because a method's
    projectors must be averaged over processes together with the student.
    """

    def __init__(
        self,
        student: Network,
        methods: Mapping[str, Method],
        weights: Mapping[str, float] | None = None,
        aux_weight: float = 0.4,
    ) -> None:
        super().__init__()
        self.student = student
        self.methods = nn.ModuleDict(methods)
        self.weights = {name: (weights or {}).get(name, 1.0) for name in methods}
        self.aux_weight = aux_weight
        self._seen: dict[str, SegOutput] = {}

    @property
    def subject(self) -> Network:
        """The student."""
        return self.student

    @property
    def uses_shared(self) -> bool:
        """Whether a method learns from the recipe's teacher."""
        return any(method.teacher == "recipe" for method in self._methods().values())

    @property
    def teachers(self) -> dict[str, Teacher]:
        """Methods' own teachers."""
        return {name: own for name, method in self._methods().items() if (own := method.own_teacher) is not None}

    @property
    def opponents(self) -> dict[str, Adversary]:
        """Methods' opponents."""
        return {name: own for name, method in self._methods().items() if (own := method.adversary) is not None}

    @property
    def readings(self) -> dict[str, Reading]:
        """Where each method learns."""
        return {name: reading_of(method) for name, method in self._methods().items()}

    @property
    def seen(self) -> Taught:
        """The last forward's student, as far as methods with an opponent read it."""
        return self._seen

    def _methods(self) -> dict[str, Method]:
        return {name: method for name, method in self.methods.items() if isinstance(method, Method)}

    def select(self, shared: SegOutput | None, own: Taught) -> Taught:
        """Return for each method what it reads of its own teacher, or of the shared one."""
        found = {name: (method, own.get(name, shared)) for name, method in self._methods().items()}
        return {name: method.select(output) for name, (method, output) in found.items() if output is not None}

    def forward(
        self, images: Tensor, target: Tensor, taught: Taught, step: Step, handout: Handout | None = None
    ) -> dict[str, Tensor]:
        """Return the terms, which sum to the loss, for raw ``images`` (B,3,H,W) and ``target`` (B,H,W).

        A method that is taught nothing gives no term. With a ``handout`` the task's terms are of the labelled rows
        alone, and each method's of what it is given.
        """
        output = self.student(images)
        terms = {"task": self._task(output.logits, target, step, handout)}
        if output.aux_logits is not None and self.aux_weight > 0:
            terms["task_aux"] = self.aux_weight * self._task(output.aux_logits, target, step, handout)
        self._seen = {}
        for name, method in self._methods().items():
            if name not in taught:
                continue
            handed = None if handout is None else handout.methods[name]
            own, labels = (output, target) if handed is None else (handed.part_of(output), handed.target)
            counted = step if handed is None else handed.step(step)
            for term, value in method(own, taught[name], labels, counted).items():
                terms[f"{name}.{term}"] = self.weights[name] * value
            if method.adversary is not None:
                self._seen[name] = method.select(own).detach()
        return terms

    def _task(self, logits: Tensor, target: Tensor, step: Step, handout: Handout | None) -> Tensor:
        if handout is not None and handout.task.rows is not None:
            logits, target = logits.index_select(0, handout.task.rows), handout.task.target
        return cross_entropy(self.student.upsample(logits, (target.shape[-2], target.shape[-1])), target, step)
