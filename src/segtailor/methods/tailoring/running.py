"""How far the student agrees with the teacher, as a running mean; the same on every process."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

DECAY = 0.99


def over_processes(sums: Tensor) -> Tensor:
    """Return ``sums`` added over all processes, each of which must call it equally often."""
    if dist.is_available() and dist.is_initialized():
        sums = sums.clone()
        dist.all_reduce(sums)
    return sums


class Agreement(nn.Module):
    """The share of the late phase, 0 at first: the mean correlation between early-tailored student and teacher.

    ``value`` is an exponential mean over the training's batches, clamped to 0..1, and part of the state.
    """

    value: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("value", torch.zeros(()))

    def mix(self, early: Tensor, late: Tensor) -> Tensor:
        """Return ``(1 - value) * early + value * late``.

        >>> Agreement().mix(torch.tensor(3.0), torch.tensor(5.0)).item()
        3.0
        """
        share: Tensor = self._now()
        return (1 - share) * early + share * late

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _now(self) -> Tensor:
        return self.value.clone()  # autograd keeps it, and `follow` writes to the buffer

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def follow(self, early: Tensor, valid: Tensor) -> None:
        """Move towards 1 - ``early``, the early term of a batch; ``valid`` (B,h*w) tells which images are wholly void.

        Those have 0 in the term's mean over images and are left out here.
        """
        present = (valid.sum(1) > 0).sum().float()
        agreeing, images = over_processes(torch.stack((present - early.float() * len(valid), present)))
        found = (agreeing / images.clamp(min=1)).clamp(0, 1)
        self.value.copy_(torch.where(images > 0, DECAY * self.value + (1 - DECAY) * found, self.value))
