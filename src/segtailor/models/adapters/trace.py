"""What a network does to one image: every module's run, and how its tensors show the image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError
from segtailor.models.adapters.capture import Source, check_paths, first_tensor

MOST_PREFIX = 8
"""Tokens in front that stand for no place: the class token and registers."""


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
            module.training = mode


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
