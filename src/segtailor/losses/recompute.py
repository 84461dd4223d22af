"""Trading time for memory: terms that are computed again in backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch.utils.checkpoint import checkpoint

from segtailor.losses.counts import declared_targets, global_batch

R = TypeVar("R")


def recomputed(term: Callable[..., R], *inputs: object) -> R:
    """Return ``term(*inputs)``, keeping nothing for backward but the inputs; ``term`` must draw no random numbers.

    >>> recomputed(lambda values: values.exp().sum(), torch.zeros(2, requires_grad=True)).item()
    2.0
    """
    targets = declared_targets()

    def counted(*values: object) -> R:
        assert targets is not None
        with global_batch(targets):  # in backward, too, where another batch may be declared
            return term(*values)

    function = term if targets is None else counted
    result: R = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result
