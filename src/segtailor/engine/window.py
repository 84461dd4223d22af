"""The losses since the last log line: kept on the device, checked and averaged when they are asked for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError


class LossWindow:
    """Collects each step's terms without waiting for the device."""

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._names: list[str] = []
        self._values: list[Tensor] = []

    def add(self, step: int, terms: dict[str, Tensor]) -> None:
        """Note the ``terms`` (scalars) of ``step``."""
        self._names = list(terms)
        self._steps.append(step)
        self._values.append(torch.stack([value.detach().float() for value in terms.values()]))

    def means(self, fabric: Any, last_good: int) -> dict[str, float]:
        """Return the mean of each term over the window and all processes, and empty the window.

        Raises ``SegtailorError`` naming the first step and term that is not finite, and the last good checkpoint.
        """
        if not self._values:
            return {}
        table = torch.stack(self._values)
        if fabric.world_size > 1:
            table = fabric.all_reduce(table, reduce_op="mean")
        table = table.cpu()
        bad = (~torch.isfinite(table)).nonzero()
        if len(bad):
            row, column = bad[0].tolist()
            raise not_finite(
                self._steps[row], f"the term '{self._names[column]}'", float(table[row, column]), last_good
            )
        means = dict(zip(self._names, table.mean(0).tolist(), strict=True))
        self._steps, self._values = [], []
        return means


def check_weights(module: nn.Module, step: int, last_good: int) -> None:
    """Raise ``SegtailorError`` when a weight is not finite, so that such a checkpoint is never written."""
    for name, parameter in module.named_parameters():
        if not bool(torch.isfinite(parameter.detach()).all()):
            raise not_finite(step, f"the weight '{name}'", float("nan"), last_good)


def not_finite(step: int, what: str, value: float, last_good: int) -> SegtailorError:
    """Build the error for a run that diverged."""
    state = f"the last good checkpoint is of step {last_good}" if last_good else "no checkpoint was written yet"
    advice = "lower train.optimizer.lr or set train.clip"
    return SegtailorError(f"step {step}: {what} became {value}; {state}; {advice}")
