"""The module that the loop trains: a student with its methods, or a method's pre-training; their adversaries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from segtailor.losses import Step, cross_entropy
from segtailor.methods.base import Adversary, Method, PretrainObjective
from segtailor.models.network import Network, SegOutput
from segtailor.models.teacher import Teacher

TeacherOutputs = Mapping[str, SegOutput]
"""The teacher's tensors that each method reads, by the method's name."""
TargetKind = Literal["supervised", "pseudo", "pseudo_confident"]
"""The labelled images alone; with the teacher's class at every pixel of the others; or only where it is sure."""


def target_kind(method: Method) -> TargetKind:
    """Return the kind of targets that ``method`` reads in batches with unlabelled images.

    Its own teacher sees the labels, so it has no answer for images without any. A method that reads classes takes the
    teacher's only where it is sure; one that reads them as an ignore mask, if at all, learns from every pixel.
    """
    if method.teacher != "recipe":
        return "supervised"
    return "pseudo_confident" if method.labels == "classes" else "pseudo"


class BatchTarget:
    """A micro-batch's target of one kind: of which ``rows`` it is (None: all), and the ``step`` that counts it."""

    # Neither tuple nor dataclass: data parallelism and precision plugins take those apart.
    def __init__(self, target: Tensor, step: Step, rows: Tensor | None = None) -> None:
        self.target, self.step, self.rows = target, step, rows

    def rows_of(self, output: SegOutput) -> SegOutput:
        """Return the rows of ``output`` that the target is of; tensors that were left out may be empty."""
        rows = self.rows
        if rows is None:
            return output
        return output.map(lambda tensor: tensor if tensor.numel() == 0 else tensor.index_select(0, rows))


Targets = Mapping[TargetKind, BatchTarget]
"""A micro-batch's targets where some of its images are unlabelled."""


class AdversaryInputs(NamedTuple):
    """The inputs of an adversary: both outputs, detached, and the target of its method."""

    student: SegOutput
    teacher: SegOutput
    target: Tensor
    step: Step


class Objective(nn.Module, ABC):
    """One forward gives all weighted terms; set up as one module, so that data parallelism averages every gradient.

    ``uses_teacher``: whether it learns from the recipe's teacher. The others are by the name of a method: teachers
    beside the recipe's, networks trained against the student, the last forward's inputs for these, and which targets
    the method reads in batches with unlabelled images.
    """

    uses_teacher = True

    def __init__(self) -> None:
        super().__init__()
        self.own_teachers: dict[str, Teacher] = {}
        self.adversaries: dict[str, Adversary] = {}
        self.adversary_inputs: dict[str, AdversaryInputs] = {}
        self.target_kinds: dict[str, TargetKind] = {}

    @property
    @abstractmethod
    def subject(self) -> nn.Module | None:
        """The network that is scored, averaged and kept as best; None where there is nothing to score."""

    @abstractmethod
    def select(self, shared: SegOutput | None, own: TeacherOutputs) -> TeacherOutputs:
        """Return the tensors that each method reads, of the shared teacher or its own; the rest can be freed."""

    @abstractmethod
    def forward(
        self, images: Tensor, target: Tensor, teachers: TeacherOutputs, step: Step, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """Return the terms, which sum to the loss, for raw ``images`` (B,3,H,W) and ``target`` (B,H,W).

        Where some images are unlabelled, ``targets`` are read instead of ``target``.
        """


class PretrainModule(Objective):
    """A method's pre-training; it learns from labelled images alone."""

    def __init__(self, objective: PretrainObjective) -> None:
        super().__init__()
        self.objective = objective

    @property
    def subject(self) -> nn.Module | None:
        """The network that the pre-training scores, if any."""
        return self.objective.subject

    def select(self, shared: SegOutput | None, own: TeacherOutputs) -> TeacherOutputs:
        """Return the recipe's teacher's whole output."""
        return {} if shared is None else {"teacher": shared}

    def forward(
        self, images: Tensor, target: Tensor, teachers: TeacherOutputs, step: Step, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """Return the objective's terms."""
        terms: dict[str, Tensor] = self.objective(images, target, teachers.get("teacher"), step)
        return terms


class Distiller(Objective):
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
        self.uses_teacher = any(method.teacher == "recipe" for method in methods.values())
        self.own_teachers = {name: own for name, method in methods.items() if (own := method.own_teacher) is not None}
        self.adversaries = {name: foe for name, method in methods.items() if (foe := method.adversary) is not None}
        self.target_kinds = {name: target_kind(method) for name, method in methods.items()}

    def _methods(self) -> dict[str, Method]:
        return {name: method for name, method in self.methods.items() if isinstance(method, Method)}

    @property
    def subject(self) -> Network:
        """The student."""
        return self.student

    def select(self, shared: SegOutput | None, own: TeacherOutputs) -> TeacherOutputs:
        """Return for each method the tensors that it reads, of its own teacher or of the shared one."""
        return {
            name: method.select(output)
            for name, method in self._methods().items()
            if (output := own.get(name, shared)) is not None
        }

    def forward(
        self, images: Tensor, target: Tensor, teachers: TeacherOutputs, step: Step, targets: Targets | None = None
    ) -> dict[str, Tensor]:
        """Return the terms, which sum to the loss, for raw ``images`` (B,3,H,W) and ``target`` (B,H,W).

        A method without a teacher's output gives no term. With ``targets`` the task's terms are of the labelled rows
        alone, and each method's of its kind of target.
        """
        output = self.student(images)
        every = BatchTarget(target, step)
        supervised = every if targets is None else targets["supervised"]
        terms = {"task": self._task(output.logits, supervised)}
        if output.aux_logits is not None and self.aux_weight > 0:
            terms["task_aux"] = self.aux_weight * self._task(output.aux_logits, supervised)
        self.adversary_inputs = {}
        for name, method in self._methods().items():
            if name not in teachers:
                continue
            given = every if targets is None else targets[self.target_kinds[name]]
            own = given.rows_of(output)
            for term, value in method(own, teachers[name], given.target, given.step).items():
                terms[f"{name}.{term}"] = self.weights[name] * value
            if method.adversary is not None:
                seen = method.select(own).detach()
                self.adversary_inputs[name] = AdversaryInputs(seen, teachers[name], given.target, given.step)
        return terms

    def _task(self, logits: Tensor, given: BatchTarget) -> Tensor:
        if given.rows is not None:
            logits = logits.index_select(0, given.rows)
        size = given.target.shape[-2], given.target.shape[-1]
        return cross_entropy(self.student.upsample(logits, size), given.target, given.step)


class Adversaries:
    """An objective's adversaries, each with its optimizer; does nothing where there is none.

    An adversary's step comes after the student's, on outputs from before it. Its frozen parameters pass gradients to
    the student in the main loss and take none. With ``sync_batchnorm`` its batch norm sees all processes' images.
    """

    def __init__(self, fabric: Any, adversaries: Mapping[str, Adversary], sync_batchnorm: bool = False) -> None:
        self._fabric = fabric
        self._adversaries = dict(adversaries)
        self._modules: dict[str, Any] = {}
        self.optimizers: dict[str, Any] = {}
        for name, adversary in adversaries.items():
            if sync_batchnorm and adversary.sync_batchnorm:
                nn.SyncBatchNorm.convert_sync_batchnorm(adversary)  # type: ignore[no-untyped-call]
            adversary.trained = True
            optimizer = adversary.build_optimizer(adversary.parameters())
            self._modules[name], self.optimizers[name] = fabric.setup(adversary, optimizer)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Within the context, no adversary takes a gradient."""
        for adversary in self._adversaries.values():
            adversary.requires_grad_(False)
        try:
            yield
        finally:
            for adversary in self._adversaries.values():
                adversary.requires_grad_(True)

    def accumulate(self, inputs: Mapping[str, AdversaryInputs], share: float, last: bool) -> dict[str, Tensor]:
        """Add the gradients of one micro-batch, ``share`` of the step's; returns each adversary's loss.

        Gradients are exchanged between processes with the ``last`` micro-batch.
        """
        losses = {}
        for name, module in self._modules.items():
            with nullcontext() if last else self._fabric.no_backward_sync(module):
                loss = module(*inputs[name])
                self._fabric.backward(loss * share)
            losses[f"{name}.opponent"] = loss.detach()
        return losses

    def step(self) -> None:
        """Step every optimizer and clear the gradients."""
        for optimizer in self.optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return networks and optimizers."""
        return {
            name: {"module": self._adversaries[name].state_dict(), "optimizer": optimizer.state_dict()}
            for name, optimizer in self.optimizers.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a :meth:`state_dict`."""
        for name, optimizer in self.optimizers.items():
            self._adversaries[name].load_state_dict(state[name]["module"])
            optimizer.load_state_dict(state[name]["optimizer"])
