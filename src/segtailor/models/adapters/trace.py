"""What a foreign network does to one image: which module computes the logits, and where its maps lie."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtailor.models.adapters.capture import Source, first_tensor

MOST_PREFIX = 8
"""Tokens in front that stand for no place: the class token and registers."""
FINEST_STRIDE, MOST_STAGES, DEEPEST = 4, 4, 6
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
CLASSIFIERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class Step(NamedTuple):
    """One module's run: its path, itself, its first input and its first output."""

    path: str
    module: nn.Module
    input: Tensor | None
    output: Tensor | None


class Classifier(NamedTuple):
    """Where the logits are computed, and how the network enlarges them; where its feature lies."""

    path: str
    layout: str
    align_corners: bool
    feature: Source
    feature_layout: str


class Stage(NamedTuple):
    """A backbone's map: where, how it lies in its tensor, its channels and its stride."""

    path: str
    layout: str
    channels: int
    stride: int


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


def find_classifier(
    steps: list[Step], logits: Tensor, size: tuple[int, int], num_classes: int, wanted: str | None
) -> Classifier | None:
    """Return the module whose output, enlarged, is ``logits`` (1,K,H,W), the last such; None where there is none.

    With ``wanted`` only the module of that path is looked at.
    """
    for index in range(len(steps) - 1, -1, -1):
        step = steps[index]
        leaf = isinstance(step.module, CLASSIFIERS) if wanted is None else step.path == wanted
        if not leaf or step.output is None or step.input is None:
            continue
        found, before = layout_of(step.output, size), layout_of(step.input, size)
        if found is None or before is None or found[1] != num_classes:
            continue
        corners = _enlarged_by(_as_map(step.output, found[0], size), logits)
        if corners is None:
            continue
        source = Source(step.path, "input")
        for earlier in reversed(steps[:index]):
            if isinstance(earlier.module, DROPOUTS) and _same(earlier.output, step.input):
                source = Source(earlier.path, "input")
                break
        return Classifier(step.path, found[0], corners, source, before[0])
    return None


def _as_map(tensor: Tensor, layout: str, size: tuple[int, int]) -> Tensor:
    from segtailor.models.adapters.capture import to_map

    return to_map(tensor, layout, size, "logits")


def _same(one: Tensor | None, other: Tensor) -> bool:
    # equal values count: some networks pad by nothing between dropout and classifier
    return one is other or (one is not None and one.shape == other.shape and torch.equal(one, other))


def _enlarged_by(small: Tensor, logits: Tensor) -> bool | None:
    """Return the corner rule by which ``small`` becomes ``logits``, or None where it does by neither."""
    if small.shape[:2] != logits.shape[:2]:
        return None
    scale = float(logits.abs().max()) or 1.0
    for corners in (False, True):
        large = F.interpolate(small, logits.shape[-2:], mode="bilinear", align_corners=corners)
        if float((large - logits).abs().max()) <= 1e-4 * scale:
            return corners
    return None


def find_encoder(net: nn.Module, steps: list[Step], classifier: str | None, size: tuple[int, int]) -> str:
    """Return the path of the part that makes the maps: the first child that is well known, else the first deep one."""
    children = [name for name, _ in net.named_children()]
    for known in ("backbone", "encoder", "pretrained", "features"):
        if known in children:
            return known
    total = sum(parameter.numel() for parameter in net.parameters())
    for name, child in net.named_children():
        large = sum(parameter.numel() for parameter in child.parameters()) >= 0.25 * total
        if large and not (classifier or "").startswith(f"{name}.") and classifier != name:
            return name
    return ""


def find_stages(steps: list[Step], encoder: str, size: tuple[int, int]) -> list[Stage]:
    """Return the encoder's maps, finest first: at each stride the last before it becomes coarser.

    Looked for at the least depth below ``encoder`` that shows most strides, since blocks have coarser maps inside.
    Of networks with one stride, four blocks at even distances.
    """
    prefix = f"{encoder}." if encoder else ""
    best: list[Stage] = []
    for depth in range(1, DEEPEST + 1):
        found: dict[int, list[Stage]] = {}
        coarsest = 0
        for step in steps:
            if step.output is None or not step.path.startswith(prefix):
                continue
            if step.path.removeprefix(prefix).count(".") + 1 != depth:
                continue
            layout = layout_of(step.output, size)
            if layout is None or layout[2] < FINEST_STRIDE or layout[2] < coarsest:
                continue
            coarsest = layout[2]
            found.setdefault(coarsest, []).append(Stage(step.path, *layout))
        stages = [group[-1] for group in found.values()]
        if len(found) == 1:
            stages = _evenly(next(iter(found.values())))
        elif len(found) == 2:  # dilated: stages of one stride differ in width
            widths = {(stage.stride, stage.channels): stage for group in found.values() for stage in group}
            stages = list(widths.values())[-MOST_STAGES:]
        if len(stages) > len(best):
            best = stages
    return best[-MOST_STAGES:]


def _evenly(blocks: list[Stage]) -> list[Stage]:
    """Return four blocks of a network of one stride at even distances, or the last where there are fewer."""
    widest = [block for block in blocks if block.channels == blocks[-1].channels]
    if len(widest) < 2 * MOST_STAGES:
        return blocks[-1:]
    return [widest[len(widest) * part // MOST_STAGES - 1] for part in range(1, MOST_STAGES + 1)]
