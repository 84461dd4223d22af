"""Checkpoints of the published benchmark: the network is recognized from the tensors alone.

Two generations of these files share their names and differ in the width of the head, so nothing is taken from a file
name. Layouts: the benchmark's DeepLabV3, PSPNet (deep-stem ResNets, MobileNetV2) and SegFormer (MiT-B0 to B5).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.models.adapters.weights import (
    check_state_dict,
    count_names,
    fill,
    is_segformer,
    layout_hint,
    read_weights,
    weights_file,
)
from segtailor.models.checkpoint_keys import (
    MIT_LICENSE,
    block_counts,
    class_names,
    current_names,
    encoder_tensors,
    expected,
    head_tensors,
    license_beside,
    published_names,
    segformer_size,
    to_published,
)
from segtailor.models.mit import MIT_SIZES, find_mit
from segtailor.models.network import Network
from segtailor.models.segmenter import create_model

RESNETS: dict[tuple[str, tuple[int, ...]], str] = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
}
CLASSIFIERS = {
    "deeplabv3": "head.block.4.weight",
    "pspnet": "head.classifier.weight",
    "segformer": "linear_pred.weight",
}


class Recognized(NamedTuple):
    """The network that a file's tensors belong to."""

    name: str
    num_classes: int
    head_width: int


def recognize(tensors: dict[str, Tensor], source: str) -> Recognized:
    """Return network, class count and head width of ``tensors``; SegtailorError when no published network has them."""
    names = set(tensors)
    head = next((head for head, classifier in CLASSIFIERS.items() if classifier in names), None)
    backbone = _backbone(tensors)
    if head is None or backbone is None or (head == "segformer") != backbone.startswith("mit"):
        bare = any(name.startswith(("layer1.", "features.0.")) for name in names) or (backbone and head is None)
        hint = "; it looks like a backbone alone: give it to a new model as pretrained"
        if not bare:
            hint = layout_hint(tensors) or "; is it of another project?"
        raise SegtailorError(
            f"{source} is no published checkpoint (DeepLabV3 or PSPNet on ResNet-18/50/101 or MobileNetV2, SegFormer "
            f"B0 to B5): {count_names('tensors', sorted(names))}{hint}"
        )
    classifier = tensors[CLASSIFIERS[head]]
    if classifier.ndim != 4:
        raise SegtailorError(f"{source}: {CLASSIFIERS[head]} has shape {list(classifier.shape)}, not (K,C,1,1)")
    return Recognized(f"{head}-{backbone}", classifier.shape[0], classifier.shape[1])


def _backbone(tensors: dict[str, Tensor]) -> str | None:
    names = set(tensors)
    if "pretrained.net.features.0.0.weight" in names:
        return "mobilenetv2"
    if "pretrained.conv1.weight" in names:
        kind = "bottleneck" if "pretrained.layer1.0.conv3.weight" in names else "basic"
        return RESNETS.get((kind, block_counts(names, r"pretrained\.layer(\d)\.(\d+)\.")))
    embeddings = [f"patch_embed{stage}.proj.weight" for stage in range(1, 5)]
    if names.issuperset(embeddings):
        channels = tuple(tensors[name].shape[0] for name in embeddings)
        return find_mit(channels, block_counts(names, r"block(\d)\.(\d+)\."))
    return None


def load_published(path: Path) -> Network:
    """Build and fill the network that the published checkpoint ``path`` belongs to; every tensor must fit.

    ``path`` may also be a transformers SegFormer, its folder or its weights file.
    """
    path = weights_file(path)
    tensors = read_weights(path)
    if is_segformer(tensors):
        return _load_segformer(tensors, path)
    found = recognize(tensors, str(path))
    model = create_model(found.name, found.num_classes)
    if model.tap_channels["feature"] != found.head_width:
        model = create_model(found.name, found.num_classes, head_width=found.head_width)
    network = f"{found.name} (head width {found.head_width}, {found.num_classes} classes)"
    check_state_dict(to_published(model), tensors, str(path), network)
    model.load_state_dict({ours: tensors[theirs] for ours, theirs in published_names(model).items()})
    if found.name.startswith("segformer"):
        model.licenses["backbone"] = MIT_LICENSE
    return model


def _load_segformer(tensors: Mapping[str, Tensor], path: Path) -> Network:
    """Build and fill our SegFormer from a transformers checkpoint's ``tensors``; every tensor must fit."""
    theirs = current_names(tensors)
    classifier = theirs.get("decode_head.classifier.weight")
    if classifier is None:
        raise SegtailorError(f"{path} holds a SegFormer's encoder alone; give it to a new model as pretrained")
    size, (count, width) = segformer_size(theirs, path), classifier.shape[:2]
    unusual = None if width == MIT_SIZES[size].decoder_width else width
    model = create_model(f"segformer-{size}", count, head_width=unusual, preprocess=expected(path))
    ours = {f"backbone.net.{name}": value for name, value in encoder_tensors(theirs, path).items()}
    ours |= {f"head.{name}": value for name, value in head_tensors(theirs).items()}
    fill(model, ours, str(path), f"{model.name} ({count} classes)")
    model.classes = class_names(path, count)
    model.licenses |= license_beside(path)
    return model
