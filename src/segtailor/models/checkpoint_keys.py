"""The tensor names of other projects' checkpoints and ours: the published benchmark's and transformers' SegFormer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError
from segtailor.models.adapters.hf_files import license_of
from segtailor.models.adapters.weights import (
    check_state_dict,
    count_names,
    fill,
    is_segformer,
    read_weights,
    weights_file,
)
from segtailor.models.mit import find_mit
from segtailor.models.network import Network, Preprocess

MIT_LICENSE = "NVIDIA's MiT weights, or trained from them: not for commercial use"
MOBILENET_DEPTHS = (1, 2, 3, 4, 3, 3, 1)
"""Blocks per stage of MobileNetV2; the published names number them through."""

# Pairs of name prefixes, ours and theirs; what follows a prefix is the same on both sides.
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


def published_names(model: Network) -> dict[str, str]:
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


def to_published(model: Network) -> dict[str, Tensor]:
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


PREFIX = "segformer."
# names of earlier versions -> those of version 5
EARLIER = (
    (r"^encoder\.patch_embeddings\.(\d+)\.", r"stages.\1.patch_embeddings."),
    (r"^encoder\.block\.(\d+)\.", r"stages.\1.blocks."),
    (r"^encoder\.layer_norm\.(\d+)\.", r"stages.\1.layer_norm."),
    (r"attention\.self\.(query|key|value)\.", lambda found: f"attention.{found[1][0]}_proj."),
    (r"attention\.self\.sr\.", "attention.sequence_reduction.sequence_reduction."),
    (r"attention\.self\.layer_norm\.", "attention.sequence_reduction.layer_norm."),
    (r"attention\.output\.dense\.", "attention.o_proj."),
    (r"layer_norm_1\.", "layernorm_before."),
    (r"layer_norm_2\.", "layernorm_after."),
    (r"mlp\.dense([12])\.", r"mlp.fc\1."),
    (r"^decode_head\.linear_c\.", "decode_head.linear_projections."),
)
# version 5's names -> ours, in a block and in the head, where they differ
_BLOCK = {
    "layernorm_before": "norm1",
    "attention.q_proj": "attn.q",
    "attention.o_proj": "attn.proj",
    "attention.sequence_reduction.sequence_reduction": "attn.sr",
    "attention.sequence_reduction.layer_norm": "attn.norm",
    "layernorm_after": "norm2",
}
_HEAD = {
    **{f"linear_projections.{index}.proj": f"linears.{3 - index}" for index in range(4)},
    "linear_fuse": "fuse.0",
    "batch_norm": "fuse.1",
}


def expected(path: Path) -> dict[str, Any]:
    """Return the arguments of `Preprocess` that ``preprocessor_config.json`` beside ``path`` names, else ImageNet's."""
    found = _json(path.parent / "preprocessor_config.json")
    values: dict[str, Any] = {}
    for name, key in (("mean", "image_mean"), ("std", "image_std")):
        if found.get(key) is not None:
            values[name] = tuple(float(item) for item in found[key])
    if found.get("do_normalize") is False:
        values |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    if found.get("do_rescale") is False:
        values["scale"] = 1.0
    elif found.get("rescale_factor") is not None:
        values["scale"] = float(found["rescale_factor"])
    return Preprocess(**values).spec()


def current_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` under version 5's names, the encoder's without their prefix."""
    found = {}
    for name, value in tensors.items():
        new = name.removeprefix(PREFIX)
        for pattern, replacement in EARLIER:
            new = re.sub(pattern, replacement, new)
        found[new] = value
    return found


def segformer_size(theirs: Mapping[str, Tensor], path: Path) -> str:
    """Return which of `MIT_SIZES` the tensors belong to; SegtailorError for none."""
    embeddings = [theirs.get(f"stages.{stage}.patch_embeddings.proj.weight") for stage in range(4)]
    channels = tuple(0 if weight is None else weight.shape[0] for weight in embeddings)
    # counted from 1 there
    names = {re.sub(r"^stages\.(\d)\.", lambda found: f"stages.{int(found[1]) + 1}.", name) for name in theirs}
    depths = block_counts(names, r"stages\.(\d)\.blocks\.(\d+)\.")
    size = find_mit(channels, depths)
    if size is None:
        raise SegtailorError(
            f"{path} is a SegFormer of widths {list(channels)} and depths {list(depths)}, none of B0 to B5; "
            f"load it as hf:{path.parent}"
        )
    return size


def encoder_tensors(theirs: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return the encoder's tensors under the names of our `MixTransformer`."""
    found: dict[str, Tensor] = {}
    for name, value in theirs.items():
        match = re.match(r"stages\.(\d)\.(.+)\.(weight|bias)$", name)
        if match is None:
            continue
        stage, inner, kind = int(match[1]) + 1, match[2], match[3]
        if inner.startswith("patch_embeddings."):
            found[f"patch_embed{stage}.{'proj' if inner.endswith('proj') else 'norm'}.{kind}"] = value
        elif inner == "layer_norm":
            found[f"norm{stage}.{kind}"] = value
        elif block := re.match(r"blocks\.(\d+)\.(.+)$", inner):
            ours = f"block{stage}.{block[1]}."
            if block[2] == "attention.k_proj":  # keys and values are one layer of ours
                values = theirs.get(name.replace("k_proj", "v_proj"))
                if values is not None:
                    found[f"{ours}attn.kv.{kind}"] = torch.cat([value, values])
            elif block[2] != "attention.v_proj":
                found[f"{ours}{_BLOCK.get(block[2], block[2])}.{kind}"] = value
    if not found:
        raise SegtailorError(f"{path} holds no SegFormer's encoder: {count_names('tensors', sorted(theirs))}")
    return found


def head_tensors(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the head's tensors under our names; transformers' fuse convolution has no bias, ours gets zeros."""
    found = {}
    for name, value in theirs.items():
        if name.startswith("decode_head."):
            inner, _, kind = name.removeprefix("decode_head.").rpartition(".")
            found[f"{_HEAD.get(inner, inner)}.{kind}"] = value
    if "fuse.1.weight" in found:
        found.setdefault("fuse.0.bias", torch.zeros_like(found["fuse.1.weight"]))
        found.setdefault("fuse.1.num_batches_tracked", torch.tensor(0))
    return found


def class_names(path: Path, count: int) -> tuple[str, ...]:
    """Return the ``count`` class names that ``config.json`` beside ``path`` gives, if any."""
    named = _json(path.parent / "config.json").get("id2label") or {}
    names = [str(named.get(str(index), f"LABEL_{index}")) for index in range(count)]
    return () if all(name.startswith("LABEL_") for name in names) else tuple(names)


def license_beside(path: Path) -> dict[str, str]:
    """Return the license that the files beside ``path`` name, for `Network.licenses`."""
    config = _json(path.parent / "config.json")
    if not config:  # a file alone: its neighbors say nothing about it
        return {}
    named = license_of(str(path.parent), str(config.get("_name_or_path") or ""))
    return {"backbone": named["model"]} if named else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def load_published_backbone(net: nn.Module, name: str, path: Path) -> tuple[str, dict[str, Any] | None]:
    """Fill ``net``, the backbone ``name``, from the published ImageNet file.

    Those files carry the backbone's own names and a classifier, which is left out; every other tensor must fit. For a
    Mix Transformer ``path`` may also be a transformers SegFormer. Returns the license as far as known, and what the
    weights expect of their input where that is not the published family's.
    """
    path = weights_file(path)
    tensors = read_weights(path)
    if name.startswith("mit") and is_segformer(tensors):
        fill(net, encoder_tensors(current_names(tensors), path), str(path), "the backbone")
        return license_beside(path).get("backbone", ""), expected(path)
    prefix = {"mit": "", "mob": "pretrained.net."}.get(name[:3], "pretrained.")
    prefixes = backbone_prefixes(name)
    state = net.state_dict()
    names = {ours: rename(f"backbone.net.{ours}", prefixes).removeprefix(prefix) for ours in state}
    # Old files have no batch counters; they play no part in the result.
    names = {ours: theirs for ours, theirs in names.items() if theirs in tensors or not ours.endswith("_tracked")}
    wanted = set(names.values())
    kept = {key: value for key, value in tensors.items() if key in wanted}
    check_state_dict({theirs: state[ours] for ours, theirs in names.items()}, kept, str(path), f"the backbone {name}")
    net.load_state_dict({**state, **{ours: tensors[theirs] for ours, theirs in names.items()}})
    return MIT_LICENSE if name.startswith("mit") else "", None
