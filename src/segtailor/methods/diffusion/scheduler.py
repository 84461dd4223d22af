"""The noise schedule and the deterministic sampler (DDIM, Song et al. 2021): pure functions.

A time t is a training step, 0 the least noisy. A map at time t is ``sqrt(a) clean + sqrt(1 - a) noise``, where a is
alpha-bar of t.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from segtailor.losses import recomputed

TIMES = 1000
Prediction = Callable[[Tensor, Tensor], Tensor]
"""Takes noisy maps (B,C,h,w) and the time of each (B,), returns the noise in them."""


def alpha_bars(count: int = TIMES, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """Return alpha-bar of every time, the product of ``1 - beta`` up to it, beta linear: float64 (count,).

    >>> [round(value, 6) for value in alpha_bars()[[400, 0]].tolist()]
    [0.193572, 0.9999]
    """
    return (1 - torch.linspace(first, last, count, dtype=torch.float64)).cumprod(0)


def chain_times(steps: int) -> list[int]:
    """Return the times of a chain of ``steps`` steps: the last half of a grid of twice as many over all times.

    >>> chain_times(5)
    [400, 300, 200, 100, 0]
    """
    stride = TIMES // (2 * steps)
    return [stride * index for index in reversed(range(steps))]


def chain_times_from(start: Tensor, steps: int) -> Tensor:
    """Return ``steps`` evenly spaced times from each ``start`` (B,) down to 0: int64 (steps,B).

    A single step starts where it should and ends at the clean map.

    >>> chain_times_from(torch.tensor([400, 10]), 5).T.tolist()
    [[400, 300, 200, 100, 0], [10, 7, 5, 2, 0]]
    """
    if steps == 1:
        return start.unsqueeze(0)
    left = torch.arange(steps - 1, -1, -1, device=start.device).unsqueeze(1)
    return torch.div(start * left, steps - 1, rounding_mode="floor")


def time_of(alpha_bar: Tensor, table: Tensor) -> Tensor:
    """Return the first time at which ``table`` (T,) is no larger than each ``alpha_bar`` (B,), at most the last.

    >>> time_of(torch.tensor([1.0, 0.5, 0.0]), torch.tensor([0.9, 0.6, 0.4, 0.1])).tolist()
    [0, 2, 3]
    """
    return (table > alpha_bar.unsqueeze(1)).sum(1).clamp(max=len(table) - 1)


def noised(clean: Tensor, noise: Tensor, alpha_bar: Tensor) -> Tensor:
    """Return ``clean`` at the noise level ``alpha_bar``."""
    return alpha_bar.sqrt() * clean + (1 - alpha_bar).sqrt() * noise


def ddim_step(noisy: Tensor, noise: Tensor, now: Tensor, after: Tensor) -> Tensor:
    """Take ``noisy`` from the level ``now`` to ``after``, both alpha-bar, with the ``noise`` predicted in it.

    >>> one = torch.tensor(1.0)
    >>> round(ddim_step(torch.tensor(2.0), one, torch.tensor(0.64), one).item(), 4)
    1.75
    """
    clean = (noisy - (1 - now).sqrt() * noise) / now.sqrt()
    return noised(clean, noise, after)


def denoise(noisy: Tensor, predict: Prediction, table: Tensor, times: Tensor) -> Tensor:
    """Take ``noisy`` (B,C,h,w) down the chain ``times`` (steps,B) to the clean map; gradient passes every step.

    ``table`` is alpha-bar of every time. Of each step only its input is kept for backward.
    """

    def step(noisy: Tensor, time: Tensor, now: Tensor, after: Tensor) -> Tensor:
        return ddim_step(noisy, predict(noisy, time), now, after)

    levels = table[times].to(noisy.dtype).view(*times.shape, 1, 1, 1)
    for index, time in enumerate(times):
        after = levels[index + 1] if index + 1 < len(times) else torch.ones_like(levels[index])
        noisy = recomputed(step, noisy, time, levels[index], after)
    return noisy
