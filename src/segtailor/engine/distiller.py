"""Student and methods as one module: the only thing that is set up for training."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from segtailor.losses import cross_entropy
from segtailor.methods.base import Method
from segtailor.models.output import SegOutput
from segtailor.models.segmenter import Segmenter


class Distiller(nn.Module):
    """One forward gives the task's and every method's weighted terms.

    They are one module because data parallelism refuses a method without parameters, and because a method's
    projectors must be averaged over processes together with the student.
    """

    def __init__(
        self,
        student: Segmenter,
        methods: Mapping[str, Method],
        weights: Mapping[str, float] | None = None,
        aux_weight: float = 0.4,
    ) -> None:
        super().__init__()
        self.student = student
        self.methods = nn.ModuleDict(methods)
        self.weights = {name: (weights or {}).get(name, 1.0) for name in methods}
        self.aux_weight = aux_weight

    @property
    def has_phases(self) -> bool:
        """Whether some parameters are used only part of the time."""
        return any(bool(method.phases) for method in self.methods.values())

    def select(self, output: SegOutput) -> SegOutput:
        """Return the teacher's ``output`` without what no method reads, so that the memory of the rest is free."""
        methods = list(self.methods.values())
        return methods[0].select(output) if len(methods) == 1 else output  # type: ignore[operator]

    def forward(self, images: Tensor, target: Tensor, teacher: SegOutput | None, progress: float) -> dict[str, Tensor]:
        """Return the terms, which sum to the loss, for raw ``images`` (B,3,H,W) and ``target`` (B,H,W)."""
        output = self.student(images)
        size = (target.shape[-2], target.shape[-1])
        terms = {"task": cross_entropy(self.student.upsample(output.logits, size), target)}
        if output.aux_logits is not None and self.aux_weight > 0:
            aux = cross_entropy(self.student.upsample(output.aux_logits, size), target)
            terms["task_aux"] = self.aux_weight * aux
        for name, method in self.methods.items():
            if teacher is None:
                continue
            for term, value in method(output, teacher, target, progress).items():
                terms[f"{name}.{term}"] = self.weights[name] * value
        return terms
