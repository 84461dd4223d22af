"""Finds the classifier, encoder and stages of a foreign network by running it on a small image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtailor.models.taps import Source, Step, layout_of, to_map

LEAST_PROBABILITY = 1e-12
"""Below this a probability counts as this, so that its log is finite."""
FINEST_STRIDE, MOST_STAGES, DEEPEST = 4, 4, 6
DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
UNCHANGING = (*DROPOUTS, nn.Identity)
CLASSIFIERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


class Classifier(NamedTuple):
    """Where the logits are computed, and how the network enlarges them; where its feature is."""

    path: str
    align_corners: bool
    feature: Source


class Stage(NamedTuple):
    """A backbone's map: where, its channels and its stride."""

    path: str
    channels: int
    stride: int


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
        found = layout_of(step.output, size)
        if found is None or found[1] != num_classes or layout_of(step.input, size) is None:
            continue
        corners = _enlarged_by(to_map(step.output, found[0], size, "logits"), logits)
        if corners is None:
            continue
        source = Source(step.path, "input")
        for earlier in reversed(steps[:index]):
            if isinstance(earlier.module, DROPOUTS) and _same(earlier.output, step.input):
                source = Source(earlier.path, "input")
                break
        return Classifier(step.path, corners, source)
    return None


def _same(one: Tensor | None, other: Tensor) -> bool:
    # equal values count: some networks pad by nothing between dropout and classifier
    return one is other or (one is not None and one.shape == other.shape and torch.equal(one.float(), other.float()))


def _enlarged_by(small: Tensor, logits: Tensor) -> bool | None:
    """Return the corner rule by which ``small`` becomes ``logits``, or None where it does by neither.

    Where ``logits`` are probabilities, a softmax may follow.
    """
    if small.shape[:2] != logits.shape[:2]:
        return None
    scale, ends = float(logits.abs().max()) or 1.0, are_probabilities(logits)
    for corners in (False, True):
        large = F.interpolate(small, logits.shape[-2:], mode="bilinear", align_corners=corners)
        if ends and not are_probabilities(small):
            large = large.softmax(1)
        if float((large - logits).abs().max()) <= max(1e-4, 2 * torch.finfo(logits.dtype).eps) * scale:
            return corners
    return None


def are_probabilities(logits: Tensor) -> bool:
    """Return whether ``logits`` (1,K,h,w), K above 1, are probabilities that sum to 1."""
    near = max(1e-3, 2 * torch.finfo(logits.dtype).eps)
    shares = bool(logits.min() >= 0) and bool((logits.sum(1) - 1).abs().max() < near)
    return shares and logits.shape[1] > 1


def find_encoder(net: nn.Module, classifier: str | None) -> str:
    """Return the path of the part that makes the maps: the first child that is well known, else the first deep one."""
    children = [name for name, _ in net.named_children()]
    for known in ("backbone", "encoder", "pretrained", "features"):
        if known in children:
            return known
    total = sum(parameter.numel() for parameter in net.parameters())
    for name, child in net.named_children():
        deep = any(True for _ in child.children())
        large = sum(parameter.numel() for parameter in child.parameters()) >= 0.25 * total
        if deep and large and not (classifier or "").startswith(f"{name}.") and classifier != name:
            return name
    return ""


def find_stages(steps: list[Step], encoder: str, size: tuple[int, int]) -> list[Stage]:
    """Return the encoder's maps, finest first: at each stride the last before it becomes coarser.

    Looked for at the least depth below ``encoder`` that shows most strides, then most maps, since blocks have coarser
    maps inside. Of networks with one stride, four blocks at even distances.
    """
    prefix = f"{encoder}." if encoder else ""
    best: list[Stage] = []
    strides = 0
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
            found.setdefault(coarsest, []).append(Stage(step.path, *layout[1:]))
        stages = [group[-1] for group in found.values()]
        if len(found) == 1:
            stages = _evenly(next(iter(found.values())))
        elif len(found) == 2:  # dilated: stages of one stride differ in width
            widths = {(stage.stride, stage.channels): stage for group in found.values() for stage in group}
            stages = list(widths.values())[-MOST_STAGES:]
        if (len(found), len(stages)) > (strides, len(best)):
            best, strides = stages, len(found)
    return best[-MOST_STAGES:]


def find_maps(steps: list[Step], maps: Sequence[Tensor], size: tuple[int, int]) -> list[str | None]:
    """Return the path of the module that gives each of ``maps`` (1,C,h,w), None for one that no module gives.

    Of several the least deep, then the last, but none that holds the modules of other maps, and none that changes
    nothing. Of a module that runs several times the last run counts, as it does for taps.
    """
    last = {step.path: step for step in steps if not isinstance(step.module, UNCHANGING)}
    givers = [[path for path, step in last.items() if _gives(step, wanted, size)] for wanted in maps]
    found: list[str | None] = []
    for own in givers:
        others = [path for paths in givers if paths is not own for path in paths]
        alone = [path for path in own if not any(other.startswith(f"{path}.") for other in others)]
        found.append(min(reversed(alone), key=lambda path: path.count(".")) if alone else None)
    return found


def _gives(step: Step, wanted: Tensor, size: tuple[int, int]) -> bool:
    found = None if step.output is None else layout_of(step.output, size)
    if step.output is None or found is None or found[1] != wanted.shape[1]:
        return False
    return _same(to_map(step.output, found[0], size, "logits"), wanted)


def _evenly(blocks: list[Stage]) -> list[Stage]:
    """Return four blocks of a network of one stride at even distances, or the last where there are fewer."""
    widest = [block for block in blocks if block.channels == blocks[-1].channels]
    if len(widest) < 2 * MOST_STAGES:
        return blocks[-1:]
    return [widest[len(widest) * part // MOST_STAGES - 1] for part in range(1, MOST_STAGES + 1)]
