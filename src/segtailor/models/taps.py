"""Named inner tensors of a network: read by hooks that compile, are copied with it, and keep nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError, unknown

Side = Literal["input", "output"]

MOST_PREFIX = 8
"""How many tokens without a position, the class token and registers, may be in front."""


class Source(NamedTuple):
    """Where a tap is read: the module's path below the network, and whether before or after it."""

    path: str
    side: Side = "output"


class Capture:
    """A forward hook that keeps the first tensor that goes into a module or comes out of it.

    An object and not a closure, so that a copied network's hooks fill the copied taps.
    """

    def __init__(self, taps: Taps, name: str, side: Side) -> None:
        self.taps, self.name, self.side = taps, name, side

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Keep the tensor; when a module runs several times in a forward, the last time counts."""
        if self.taps.open:
            found = first_tensor((args, kwargs) if self.side == "input" else output)
            if found is not None:
                self.taps.values[self.name] = found


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


def to_map(value: Tensor, layout: str, size: Sequence[int], tap: str) -> Tensor:
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


class Taps:
    """Inner tensors of the network called ``network``, by name; hooks read them in each forward.

    ``sources``, ``layouts`` and ``channels`` describe them. ``values`` holds what the forward in progress has given;
    it is empty between forwards, and hooks that run then do nothing: activation checkpointing calls modules a second
    time in the backward pass. The network's modules are passed in, so that no reference cycle keeps them alive.
    """

    def __init__(self, network: str) -> None:
        self.network = network
        self.sources: dict[str, Source] = {}
        self.layouts: dict[str, str] = {}
        self.channels: dict[str, int] = {}
        self.values: dict[str, Tensor] = {}
        self.open = False

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy takes over: not a forward in progress, whose tensors cannot be copied."""
        return {**self.__dict__, "values": {}, "open": False}

    def add(self, name: str, source: Source, known: Mapping[str, Step], net: nn.Module, size: tuple[int, int]) -> int:
        """Name the tensor at ``source`` and return its stride; ``known`` are the runs of ``net`` by path.

        Raises SegtailorError for a path that ``net`` does not have, that does not run, or whose tensor shows no image
        of ``size``.
        """
        step = known.get(source.path)
        if step is None:
            paths = [path for path, _ in net.named_modules() if path]
            if source.path not in paths:
                hint = "`segtailor inspect MODEL --paths` lists all, as does named_modules() of a Python object"
                raise unknown(f"module of {self.network} for '{name}'", source.path, paths, hint)
            raise SegtailorError(f"{self.network}: the module {source.path} of tap '{name}' does not run in a forward")
        tensor = step.input if source.side == "input" else step.output
        layout = None if tensor is None else layout_of(tensor, size)
        if layout is None:
            shape = "no tensor" if tensor is None else f"a tensor of shape {list(tensor.shape)}"
            raise SegtailorError(
                f"{self.network}: {source.path} gives {shape}, no map of the image; choose another tap"
            )
        self.sources[name] = source
        self.layouts[name], self.channels[name], stride = layout
        return stride

    def attach(self, net: nn.Module) -> None:
        """Hook the modules of ``net`` that are named."""
        for name, source in self.sources.items():
            hook = Capture(self, name, source.side)
            net.get_submodule(source.path).register_forward_hook(hook, with_kwargs=True)

    def begin(self) -> None:
        """Start to collect, at the start of a forward."""
        self.values, self.open = {}, bool(self.sources)

    def take(self) -> dict[str, Tensor]:
        """Stop, also where the forward fails, and return what was seen."""
        values, self.values, self.open = self.values, {}, False
        return values

    def maps(self, seen: dict[str, Tensor], size: Sequence[int], net: nn.Module, logits: Tensor) -> dict[str, Tensor]:
        """Return what was ``seen`` in a forward on images of ``size`` as maps (B,C,h,w).

        Raises SegtailorError for a tap that no gradient reaches while the network of these ``logits`` is trained.
        """
        found = {name: to_map(value, self.layouts[name], size, name) for name, value in seen.items()}
        if not logits.requires_grad or torch.compiler.is_compiling():
            return found
        for name, value in found.items():
            path, side = self.sources[name]
            if value.requires_grad or side == "input":
                continue
            # a part without trainable parameters may simply be frozen
            if any(parameter.requires_grad for parameter in net.get_submodule(path).parameters()):
                raise SegtailorError(
                    f"{self.network}: no gradient reaches the tap '{name}'; it is in a block under re-entrant "
                    "activation checkpointing: use use_reentrant=False"
                )
        return found
