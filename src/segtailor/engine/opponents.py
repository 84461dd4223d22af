"""The networks that are trained against the student: set up, frozen, stepped and kept beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from segtailor.engine.learner import Taught
from segtailor.engine.unlabelled import Handout
from segtailor.losses import Step
from segtailor.methods.base import Adversary


class Opponents:
    """Every opponent with its optimizer; does nothing where there is none.

    An opponent's step comes after the student's, on outputs from before it. Its frozen parameters pass gradients to the
    student in the main loss and take none.
    """

    def __init__(self, fabric: Any, opponents: Mapping[str, Adversary]) -> None:
        self._fabric = fabric
        self._raw = dict(opponents)
        for opponent in opponents.values():
            opponent.trained = True
        self._set_up: dict[str, tuple[Any, Any]] = {
            name: fabric.setup(opponent, opponent.build_optimizer(opponent.parameters()))
            for name, opponent in opponents.items()
        }

    @property
    def optimizers(self) -> list[Any]:
        """The optimizer of each."""
        return [optimizer for _, optimizer in self._set_up.values()]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Inside, no opponent takes a gradient."""
        for opponent in self._raw.values():
            opponent.requires_grad_(False)
        try:
            yield
        finally:
            for opponent in self._raw.values():
                opponent.requires_grad_(True)

    def accumulate(
        self,
        seen: Taught,
        taught: Taught,
        target: Tensor,
        step: Step,
        share: float,
        last: bool,
        handout: Handout | None = None,
    ) -> dict[str, torch.Tensor]:
        """Add the gradients of one micro-batch, ``share`` of the step's; returns each opponent's loss.

        ``seen`` and ``taught`` are what it is shown of student and teacher, by the method's name; its
        target is the method's in ``handout`` where there is one. Gradients are exchanged between processes with the
        ``last`` micro-batch.
        """
        losses = {}
        for name, (module, _) in self._set_up.items():
            handed = None if handout is None else handout.methods[name]
            waiting = nullcontext() if last else self._fabric.no_backward_sync(module)
            labels, counted = (target, step) if handed is None else (handed.target, handed.step(step))
            with waiting:
                loss = module(seen[name], taught[name], labels, counted)
                self._fabric.backward(loss * share)
            losses[f"{name}.opponent"] = loss.detach()
        return losses

    def step(self) -> None:
        """Step every optimizer and forget the gradients."""
        for _, optimizer in self._set_up.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return networks and optimizers."""
        return {
            name: {"module": self._raw[name].state_dict(), "optimizer": optimizer.state_dict()}
            for name, (_, optimizer) in self._set_up.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state_dict` returned."""
        for name, (_, optimizer) in self._set_up.items():
            self._raw[name].load_state_dict(state[name]["module"])
            optimizer.load_state_dict(state[name]["optimizer"])
