"""Random outputs of two small networks that differ in width and grid, and labels with void and absent classes."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from segtailor.models.network import SegOutput

CLASSES = 6
STUDENT = {"feature": 6, "stages.0": 4, "stages.1": 5}
TEACHER = {"feature": 10, "stages.0": 8, "stages.1": 7}
EVERY_TERM: dict[str, Any] = {
    "kd": 6.0,
    "kd_aux": 2.4,
    "lt_all": 6.0,
    "lt_class": 0.1,
    "lt_nonclass": 0.1,
    "ft": 0.5,
    "temperature": 1.0,
    "feature_taps": "decoder",
}
"""Options of `kt` that turn all its clean terms on."""


def labels(batch: int = 2, size: tuple[int, int] = (46, 63), seed: int = 0) -> Tensor:
    """Blocky labels; class 5 is absent, the last rows are void, and so are single pixels."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randint(0, CLASSES - 1, (batch, 6, 8), generator=generator)
    target = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, : size[0], : size[1]].clone()
    target[torch.rand(target.shape, generator=generator) < 0.05] = 255
    target[:, -12:] = 255
    return target.to(torch.uint8)


def output(
    channels: dict[str, int],
    batch: int = 2,
    size: tuple[int, int] = (6, 8),
    seed: int = 1,
    dtype: torch.dtype = torch.float32,
) -> SegOutput:
    """Return leaf tensors that require gradients; stages are finer than the logits."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(width: int, scale: int = 1, positive: bool = False) -> Tensor:
        values = 2 * torch.randn(batch, width, size[0] * scale, size[1] * scale, generator=generator)
        return (values.relu() if positive else values).to(dtype).requires_grad_()

    feature = leaf(channels["feature"], positive=True)
    kept = torch.rand(feature.shape, generator=generator) > 0.1
    return SegOutput(
        logits=leaf(CLASSES),
        aux_logits=leaf(CLASSES),
        feature=feature,
        classifier_input=(feature.detach() * kept / 0.9).requires_grad_(),
        stages=(leaf(channels["stages.0"], 2), leaf(channels["stages.1"])),
    )


def tensors(value: SegOutput) -> dict[str, Tensor]:
    """Return every tensor of an output by name."""
    named = {item.name: getattr(value, item.name) for item in fields(value) if item.name not in ("stages", "taps")}
    named |= {f"stages.{index}": stage for index, stage in enumerate(value.stages)}
    return {name: tensor for name, tensor in named.items() if tensor is not None}


def changed(value: SegOutput, change: object) -> SegOutput:
    """Return a copy whose tensors are ``change(tensor)``, again leaves."""
    assert callable(change)

    def leaf(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else change(tensor.detach().clone()).requires_grad_()

    return SegOutput(
        logits=change(value.logits.detach().clone()).requires_grad_(),
        aux_logits=leaf(value.aux_logits),
        feature=leaf(value.feature),
        classifier_input=leaf(value.classifier_input),
        stages=tuple(change(stage.detach().clone()).requires_grad_() for stage in value.stages),
    )
