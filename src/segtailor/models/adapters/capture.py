"""Named inner tensors of a foreign network: read by hooks that compile, are copied with it, and keep nothing."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError, unknown

Side = Literal["input", "output"]


class Source(NamedTuple):
    """Where a tap is read: the module's path below the network, and whether before or after it."""

    path: str
    side: Side = "output"


class Store:
    """What the hooks of one network have seen in the forward under way; closed, and empty, between forwards.

    A hook that runs while the store is closed does nothing: activation checkpointing calls modules a second time in
    the backward pass.
    """

    def __init__(self) -> None:
        self.open = False
        self.values: dict[str, Tensor] = {}

    def begin(self) -> None:
        """Start to collect."""
        self.values = {}
        self.open = True

    def take(self) -> dict[str, Tensor]:
        """Stop, and return what was seen."""
        values, self.values, self.open = self.values, {}, False
        return values


class Capture:
    """A forward hook that keeps the first tensor that goes into a module or comes out of it.

    An object and not a closure, so that a copied network's hooks fill the copied store.
    """

    def __init__(self, store: Store, name: str, side: Side) -> None:
        self.store, self.name, self.side = store, name, side

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Keep the tensor; when a module runs several times in a forward, the last time counts."""
        if self.store.open:
            found = first_tensor((args, kwargs) if self.side == "input" else output)
            if found is not None:
                self.store.values[self.name] = found


def first_tensor(value: Any) -> Tensor | None:
    """Return the first tensor in nested tuples, lists and mappings, or None."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, dict):  # transformers' outputs are ordered mappings
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        for item in value:
            found = first_tensor(item)
            if found is not None:
                return found
    return None


def check_paths(net: nn.Module, sources: dict[str, Source], network: str) -> None:
    """Raise SegtailorError for a source whose module ``net`` does not have; it lists the nearest paths."""
    paths = [path for path, _ in net.named_modules() if path]
    for name, source in sources.items():
        if source.path not in paths:
            hint = "`segtailor inspect MODEL --paths` lists all"
            raise unknown(f"module of {network} for '{name}'", source.path, paths, hint)


def attach(net: nn.Module, sources: dict[str, Source], network: str) -> Store:
    """Hook every source, by the tap's name; raises SegtailorError for a path that ``net`` does not have."""
    check_paths(net, sources, network)
    store = Store()
    for name, source in sources.items():
        hook = Capture(store, name, source.side)
        net.get_submodule(source.path).register_forward_hook(hook, with_kwargs=True)
    return store


def check_gradients(values: dict[str, Tensor], sources: dict[str, Source], net: nn.Module, network: str) -> None:
    """Raise SegtailorError for a tap that no gradient reaches, in a forward that is to be trained."""
    for name, value in values.items():
        source = sources[name]
        if value.requires_grad or source.side == "input":
            continue
        # without a trainable parameter of its own the part may simply be frozen
        if any(parameter.requires_grad for parameter in net.get_submodule(source.path).parameters()):
            raise SegtailorError(
                f"{network}: no gradient reaches the tap '{name}'; it lies in a block under re-entrant activation "
                "checkpointing: use use_reentrant=False"
            )


def to_map(value: Tensor, layout: str, size: torch.Size | tuple[int, ...], tap: str) -> Tensor:
    """Return ``value`` as a map (B,C,h,w) for inputs of ``size`` (H,W).

    ``layout`` is what `layout_of` told: ``map``, ``channels_last`` or ``tokens:N`` with N tokens in front that stand
    for no place.
    """
    if layout == "map":
        return value
    if layout == "channels_last":
        return value.permute(0, 3, 1, 2)
    prefix = int(layout.removeprefix("tokens:"))
    tokens = value[:, prefix:]
    count = tokens.shape[1]
    height = round((count * size[-2] / size[-1]) ** 0.5)
    if height == 0 or count % height:
        raise SegtailorError(
            f"the {count} tokens of tap '{tap}' make no grid of {size[-2]} x {size[-1]}'s proportions; choose another"
        )
    return tokens.transpose(1, 2).reshape(len(tokens), -1, height, count // height)
