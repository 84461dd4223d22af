"""transformers' SegFormer checkpoints in our own SegFormer: names, the fused keys and values, and what it expects.

Read without transformers, from a folder (``model.safetensors`` or ``pytorch_model.bin``, with ``config.json`` and
``preprocessor_config.json`` beside it) or from such a weights file alone. Names of transformers 5 and of earlier
versions are known. Our layer norms keep the published epsilons (1e-6 in the blocks and at the stage ends), where
transformers has 1e-5 throughout; the difference is some 1e-6 of the logits.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError
from segtailor.models.adapters.hf_licence import licence_of
from segtailor.models.create import create_segmenter
from segtailor.models.fit import check_fit, count_names
from segtailor.models.layout import block_counts
from segtailor.models.mit import MIT_SIZES
from segtailor.models.preprocess import Preprocess
from segtailor.models.segmenter import Segmenter

FILES = ("model.safetensors", "pytorch_model.bin")
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
# ours -> version 5's, in a block and in the head
_BLOCK = {
    "norm1": "layernorm_before",
    "attn.q": "attention.q_proj",
    "attn.proj": "attention.o_proj",
    "attn.sr": "attention.sequence_reduction.sequence_reduction",
    "attn.norm": "attention.sequence_reduction.layer_norm",
    "norm2": "layernorm_after",
    "mlp.fc1": "mlp.fc1",
    "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
    "mlp.fc2": "mlp.fc2",
}
_HEAD = {
    **{f"linears.{index}": f"linear_projections.{3 - index}.proj" for index in range(4)},
    "fuse.0": "linear_fuse",
    "fuse.1": "batch_norm",
    "classifier": "classifier",
}


def weights_file(place: Path) -> Path:
    """Return ``place``, or the weights file in it where it is a folder; SegtailorError for a folder without one."""
    if not place.is_dir():
        return place
    found = next((place / name for name in FILES if (place / name).is_file()), None)
    if found is None:
        raise SegtailorError(f"{place} has no weights: neither {FILES[0]} nor {FILES[1]}; give its folder or file")
    return found


def is_segformer(names: Mapping[str, Tensor]) -> bool:
    """Return whether the tensors carry the names of transformers' SegFormer, whole or its encoder."""
    return any(re.match(r"(segformer\.)?(stages|encoder\.patch_embeddings)\.0\.", name) for name in names)


def load_segformer(tensors: Mapping[str, Tensor], path: Path) -> Segmenter:
    """Build and fill our SegFormer from the checkpoint's ``tensors``, read from ``path``; every tensor must fit.

    Raises SegtailorError for a size other than B0 to B5, for an encoder alone, and for tensors that do not fit.
    """
    theirs = _renamed(tensors)
    classifier = theirs.get("decode_head.classifier.weight")
    if classifier is None:
        raise SegtailorError(f"{path} holds a SegFormer's encoder alone; give it to a new model as pretrained")
    size = _size(theirs, path)
    width = None if classifier.shape[1] == MIT_SIZES[size].decoder_width else classifier.shape[1]
    model = create_segmenter(f"segformer-{size}", classifier.shape[0], head_width=width, preprocess=expected(path))
    wanted = model.state_dict()
    ours = {f"backbone.net.{name}": value for name, value in _encoder(theirs, path).items()}
    ours |= {f"head.{name}": value for name, value in _head(theirs).items()}
    check_fit(wanted, ours, str(path), f"{model.name} ({model.num_classes} classes)")
    model.load_state_dict(ours)
    model.classes = _classes(path, model.num_classes)
    model.licences |= _licence(path)
    return model


def load_encoder(net: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> tuple[str, dict[str, Any]]:
    """Fill the Mix Transformer ``net`` from a checkpoint's ``tensors``; its head, if any, is left out.

    Returns the licence as far as known, and what the weights expect of their input.
    """
    ours = _encoder(_renamed(tensors), path)
    check_fit(net.state_dict(), ours, str(path), "the backbone")
    net.load_state_dict(ours)
    return _licence(path).get("backbone", ""), expected(path)


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


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return ``tensors`` under version 5's names, the encoder's without their prefix."""
    found = {}
    for name, value in tensors.items():
        new = name.removeprefix(PREFIX)
        for pattern, replacement in EARLIER:
            new = re.sub(pattern, replacement, new)
        found[new] = value
    return found


def _size(theirs: Mapping[str, Tensor], path: Path) -> str:
    embeddings = [theirs.get(f"stages.{stage}.patch_embeddings.proj.weight") for stage in range(4)]
    channels = tuple(0 if weight is None else weight.shape[0] for weight in embeddings)
    # counted from 1 there
    names = {re.sub(r"^stages\.(\d)\.", lambda found: f"stages.{int(found[1]) + 1}.", name) for name in theirs}
    depths = block_counts(names, r"stages\.(\d)\.blocks\.(\d+)\.")
    size = next(
        (name for name, known in MIT_SIZES.items() if (known.channels, known.depths) == (channels, depths)), None
    )
    if size is None:
        raise SegtailorError(
            f"{path} is a SegFormer of widths {list(channels)} and depths {list(depths)}, none of B0 to B5; "
            f"load it as hf:{path.parent}"
        )
    return size


def _encoder(theirs: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
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
                found[f"{ours}{_BLOCK_OF.get(block[2], block[2])}.{kind}"] = value
    if not found:
        raise SegtailorError(f"{path} holds no SegFormer's encoder: {count_names('tensors', sorted(theirs))}")
    return found


def _head(theirs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the head's tensors under our names; transformers' fuse convolution has no bias, ours gets zeros."""
    found = {}
    for name, value in theirs.items():
        if name.startswith("decode_head."):
            inner, _, kind = name.removeprefix("decode_head.").rpartition(".")
            found[f"{_HEAD_OF.get(inner, inner)}.{kind}"] = value
    if "fuse.1.weight" in found:
        found.setdefault("fuse.0.bias", torch.zeros_like(found["fuse.1.weight"]))
        found.setdefault("fuse.1.num_batches_tracked", torch.tensor(0))
    return found


def _classes(path: Path, count: int) -> tuple[str, ...]:
    named = _json(path.parent / "config.json").get("id2label") or {}
    names = [str(named.get(str(index), f"LABEL_{index}")) for index in range(count)]
    return () if all(name.startswith("LABEL_") for name in names) else tuple(names)


def _licence(path: Path) -> dict[str, str]:
    config = _json(path.parent / "config.json")
    if not config:  # a file alone: what else lies there says nothing of it
        return {}
    named = licence_of(str(path.parent), str(config.get("_name_or_path") or ""))
    return {"backbone": named["model"]} if named else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


_BLOCK_OF = {theirs: ours for ours, theirs in _BLOCK.items()}
_HEAD_OF = {theirs: ours for ours, theirs in _HEAD.items()}
