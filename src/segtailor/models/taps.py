"""Named inner tensors of a network: read by hooks that compile, are copied with it, and keep nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError, unknown
from segtailor.models.network import Network

Side = Literal["input", "output"]

RESERVED = ("feature", "classifier_input", "logits", "aux_logits")
PROBE = (96, 128)

MOST_PREFIX = 8
"""Tokens in front that stand for no place: the class token and registers."""


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
        # a part without trainable parameters may simply be frozen
        if any(parameter.requires_grad for parameter in net.get_submodule(source.path).parameters()):
            raise SegtailorError(
                f"{network}: no gradient reaches the tap '{name}'; it lies in a block under re-entrant activation "
                "checkpointing: use use_reentrant=False"
            )


def to_map(value: Tensor, layout: str, size: torch.Size | tuple[int, ...], tap: str) -> Tensor:
    """Return ``value`` as a map (B,C,h,w) for inputs of ``size`` (H,W).

    ``layout`` is `layout_of`'s: ``map``, ``channels_last`` or ``tokens:N``, where N tokens in front belong to no
    place.
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


class Step(NamedTuple):
    """One module's run: its path, itself, its first input and its first output."""

    path: str
    module: nn.Module
    input: Tensor | None
    output: Tensor | None


def trace(net: nn.Module, run: Callable[[], Any]) -> tuple[list[Step], Any]:
    """Return every module's run, in the order in which they end, and what ``run`` returns."""
    steps: list[Step] = []

    def note(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            steps.append(Step(path, module, first_tensor((args, kwargs)), first_tensor(output)))

        return hook

    hooks = [module.register_forward_hook(note(path), with_kwargs=True) for path, module in net.named_modules() if path]
    try:
        with torch.no_grad():
            result = run()
    finally:
        for hook in hooks:
            hook.remove()
    return steps, result


@contextmanager
def evaluated(net: nn.Module) -> Iterator[None]:
    """Run the block with ``net`` in eval mode, and put every module's own mode back."""
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode  # not train(mode): that would also change a frozen part


def layout_of(tensor: Tensor, size: tuple[int, int]) -> tuple[str, int, int] | None:
    """Return how a tensor shows an image of ``size`` (layout, channels, stride), or None where it shows none.

    >>> layout_of(torch.zeros(1, 8, 24, 32), (96, 128))
    ('map', 8, 4)
    >>> layout_of(torch.zeros(1, 49, 16), (96, 128))
    ('tokens:1', 16, 16)
    """
    if tensor.ndim == 4:
        for layout, height, width, channels in (
            ("map", tensor.shape[2], tensor.shape[3], tensor.shape[1]),
            ("channels_last", tensor.shape[1], tensor.shape[2], tensor.shape[3]),
        ):
            stride = _stride((height, width), size)
            if stride is not None:
                return layout, channels, stride
    if tensor.ndim == 3 and tensor.shape[0] == 1:
        for prefix in range(MOST_PREFIX + 1):
            count = tensor.shape[1] - prefix
            height = round((max(count, 0) * size[0] / size[1]) ** 0.5)
            if height < 2 or count % height:
                continue
            stride = _stride((height, count // height), size)
            if stride is not None:
                return f"tokens:{prefix}", tensor.shape[2], stride
    return None


def _stride(grid: tuple[int, int], size: tuple[int, int]) -> int | None:
    if min(grid) < 2 or grid[0] > size[0] or grid[1] > size[1]:
        return None
    stride = round(size[0] / grid[0])
    # grids of odd sizes are a cell longer or shorter than the quotient
    fits = all(abs(cells - side / stride) <= 1 for cells, side in zip(grid, size, strict=True))
    skew = (grid[0] * size[1]) / (grid[1] * size[0])
    return stride if fits and 0.75 < skew < 1.34 else None


def layout_at(
    source: Source, tap: str, known: Mapping[str, Step], net: nn.Module, size: tuple[int, int], network: str
) -> tuple[str, int, int]:
    """Return how the tensor at ``source`` shows the image: layout, channels, stride; ``known`` are the runs by path.

    Raises SegtailorError for a path that ``net`` does not have, that does not run, or whose tensor shows no image.
    """
    step = known.get(source.path)
    if step is None:
        check_paths(net, {tap: source}, network)
        raise SegtailorError(f"{network}: the module {source.path} of tap '{tap}' does not run in a forward")
    tensor = step.input if source.side == "input" else step.output
    layout = None if tensor is None else layout_of(tensor, size)
    if layout is None:
        shape = "no tensor" if tensor is None else f"a tensor of shape {list(tensor.shape)}"
        raise SegtailorError(f"{network}: {source.path} gives {shape}, no map of the image; choose another tap")
    return layout


class NamedTaps:
    """Reads named modules' outputs in each forward of a network; ``channels`` holds their widths."""

    def __init__(self) -> None:
        self.channels: dict[str, int] = {}
        self._layouts: dict[str, str] = {}
        self._sources: dict[str, Source] = {}
        self._store: Store | None = None

    def name(self, network: Network, taps: dict[str, str]) -> None:
        """Read ``taps`` (name -> path below ``network``) from now on; a small image's forward gives their widths.

        Raises SegtailorError for a path that the network does not have, or whose output is no map.
        """
        if not taps:
            return
        taken = [name for name in taps if name in RESERVED or name.startswith("stages.")]
        if taken:
            raise SegtailorError(f"{network.name} has a tap '{taken[0]}' already; choose another name")
        self._sources = {name: Source(path) for name, path in taps.items()}
        check_paths(network, self._sources, network.name)
        size = network.preprocess.input_size(PROBE)
        with evaluated(network):
            steps, _ = trace(network, lambda: network.forward_normalized(torch.zeros(1, 3, *size)))
        known = {step.path: step for step in steps}
        for name, source in self._sources.items():
            layout = layout_at(source, name, known, network, size, network.name)
            self._layouts[name], self.channels[name] = layout[0], layout[1]
        self._store = attach(network, self._sources, network.name)

    def begin(self) -> None:
        """Start to collect, at the start of a forward."""
        if self._store is not None:
            self._store.begin()

    def end(self) -> dict[str, Tensor]:
        """Stop, also where the forward fails, and return what was seen."""
        return {} if self._store is None else self._store.take()

    def maps(self, seen: dict[str, Tensor], inputs: Tensor, network: Network) -> dict[str, Tensor]:
        """Return what was ``seen`` as maps (B,C,h,w) of ``inputs`` (B,3,H,W).

        Raises SegtailorError for a tap that no gradient reaches while ``network`` is trained.
        """
        found = {name: to_map(value, self._layouts[name], inputs.shape[-2:], name) for name, value in seen.items()}
        if found and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            check_gradients(found, self._sources, network, network.name)
        return found
