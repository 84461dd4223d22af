"""The tensor names of the published benchmark's checkpoints, and ours for the same tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator

from torch import Tensor

from segtailor.models.segmenter import Segmenter

MOBILENET_DEPTHS = (1, 2, 3, 4, 3, 3, 1)
"""Blocks per stage of MobileNetV2; the published names number them through."""

# Pairs of name prefixes, ours and theirs; what stands behind a prefix is the same on both sides.
_DEEPLAB = {
    "head.pyramid.branches.0": "head.aspp.b0",
    **{f"head.pyramid.branches.{branch}": f"head.aspp.b{branch}.block" for branch in (1, 2, 3)},
    "head.pyramid.pool": "head.aspp.b4.gap",
    "head.pyramid.project": "head.aspp.project",
    "head.block": "head.block",
    "head.classifier": "head.block.4",
}
_PSP = {
    # The published sequence starts behind the pooling, ours with it.
    **{
        f"head.pools.{branch}.{layer + 1}": f"head.psp.conv{branch + 1}.{layer}"
        for branch in range(4)
        for layer in range(2)
    },
    "head.block": "head.block",
    "head.classifier": "head.classifier",
}
_SEGFORMER = {
    **{f"head.linears.{index}": f"linear_c{4 - index}.proj" for index in range(4)},
    "head.fuse": "linear_fuse",
    "head.classifier": "linear_pred",
}
_AUX = {"aux_head.block": "auxlayer.block", "aux_head.classifier": "auxlayer.block.4"}
_RESNET = {
    "backbone.net.conv1.0": "pretrained.conv1",
    "backbone.net.conv1.1": "pretrained.bn1",
    "backbone.net.conv1.3": "pretrained.conv2",
    "backbone.net.conv1.4": "pretrained.bn2",
    "backbone.net.conv1.6": "pretrained.conv3",
    "backbone.net.bn1": "pretrained.bn3",
    **{f"backbone.net.layer{stage}": f"pretrained.layer{stage}" for stage in range(1, 5)},
}


def _mobilenet() -> Iterator[tuple[str, str]]:
    ours, theirs = "backbone.net", "pretrained.net.features"
    yield f"{ours}.conv_stem", f"{theirs}.0.0"
    yield f"{ours}.bn1", f"{theirs}.0.1"
    feature = 0
    for stage, depth in enumerate(MOBILENET_DEPTHS):
        # The first block has no expansion in front of its depthwise convolution.
        convolutions = ("conv_dw", "conv_pw") if stage == 0 else ("conv_pw", "conv_dw", "conv_pwl")
        for block in range(depth):
            feature += 1
            for index, convolution in enumerate(convolutions):
                yield f"{ours}.blocks.{stage}.{block}.{convolution}", f"{theirs}.{feature}.conv.{3 * index}"
                yield f"{ours}.blocks.{stage}.{block}.bn{index + 1}", f"{theirs}.{feature}.conv.{3 * index + 1}"


_HEADS = {"deeplabv3": _DEEPLAB, "pspnet": _PSP, "segformer": _SEGFORMER}


def backbone_prefixes(backbone: str) -> dict[str, str]:
    """Return the backbone's name prefixes, ours to theirs."""
    if backbone.startswith("mit"):
        return {"backbone.net": ""}
    return dict(_mobilenet()) if backbone == "mobilenetv2" else _RESNET


def published_names(model: Segmenter) -> dict[str, str]:
    """Return the published name of each tensor of ``model``, in the order of its ``state_dict``."""
    head, _, backbone = model.name.partition("-")
    prefixes = {**_HEADS[head], **_AUX, **backbone_prefixes(backbone)}
    return {name: rename(name, prefixes) for name in model.state_dict()}


def rename(name: str, prefixes: dict[str, str]) -> str:
    """Replace the longest prefix of ``name`` that ``prefixes`` knows."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        theirs = prefixes.get(".".join(parts[:count]))
        if theirs is not None:
            return ".".join(filter(None, [theirs, *parts[count:]]))
    raise KeyError(name)


def to_published(model: Segmenter) -> dict[str, Tensor]:
    """Return the tensors of ``model`` under their published names: what the benchmark's own code loads strictly."""
    state = model.state_dict()
    return {theirs: state[ours] for ours, theirs in published_names(model).items()}


def block_counts(names: set[str], pattern: str) -> tuple[int, ...]:
    """Return how many blocks stages 1 to 4 have; ``pattern`` catches stage and block number of a tensor name.

    >>> block_counts({"layer1.0.conv1.weight", "layer1.1.conv1.weight", "layer2.0.bn1.bias"}, r"layer(\\d)\\.(\\d+)\\.")
    (2, 1, 0, 0)
    """
    found = [re.match(pattern, name) for name in names]
    pairs = {(int(match[1]), int(match[2])) for match in found if match}
    return tuple(sum(stage == wanted for stage, _ in pairs) for wanted in range(1, 5))
