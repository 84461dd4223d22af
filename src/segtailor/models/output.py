"""What every model returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class SegOutput:
    """The output of a segmentation model, before any upsampling.

    Shapes: ``logits`` and ``aux_logits`` (B,K,h,w); ``feature`` (B,C,h,w), the tensor in front of the classifier before
    dropout; ``classifier_input`` the same after dropout; ``stages`` the backbone's maps, finest first; ``taps`` any
    further named inner tensors. Left unfrozen because precision plugins rebuild it field by field.
    """

    logits: Tensor
    aux_logits: Tensor | None = None
    feature: Tensor | None = None
    classifier_input: Tensor | None = None
    stages: tuple[Tensor, ...] = ()
    taps: dict[str, Tensor] = field(default_factory=dict)

    def tap(self, name: str) -> Tensor | None:
        """Return the tensor called ``name``: ``feature``, ``classifier_input``, ``stages.N`` or a key of ``taps``."""
        if name.startswith("stages."):
            index = int(name.removeprefix("stages."))
            return self.stages[index] if index < len(self.stages) else None
        if name in self.taps:
            return self.taps[name]
        value = getattr(self, name, None)
        return value if isinstance(value, Tensor) else None

    def detach(self) -> SegOutput:
        """Return the same output with every tensor detached from the graph."""
        return self.map(lambda tensor: tensor.detach())

    def to(self, device: str | torch.device) -> SegOutput:
        """Return the same output on ``device``."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> SegOutput:
        """Return the same output with every tensor changed by ``change``."""

        def changed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return SegOutput(
            logits=change(self.logits),
            aux_logits=changed(self.aux_logits),
            feature=changed(self.feature),
            classifier_input=changed(self.classifier_input),
            stages=tuple(change(stage) for stage in self.stages),
            taps={name: change(tensor) for name, tensor in self.taps.items()},
        )
