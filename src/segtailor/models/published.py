"""Checkpoints of the published benchmark: the network is recognised from the tensors alone.

Two generations of these files share their names and differ in the width of the head, so nothing is taken from a file
name. Layouts: the benchmark's DeepLabV3, PSPNet (deep-stem ResNets, MobileNetV2) and SegFormer (MiT-B0 to B5).
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError
from segtailor.models.adapters.weights import read_weights
from segtailor.models.create import create_segmenter
from segtailor.models.fit import check_fit, count_names
from segtailor.models.hf_segformer import is_segformer, load_encoder, load_segformer, weights_file
from segtailor.models.layout import backbone_prefixes, block_counts, published_names, rename, to_published
from segtailor.models.mit import MIT_SIZES
from segtailor.models.segmenter import Segmenter

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
WRAPPERS = ("state_dict", "model", "model_state_dict", "model_state", "net")
"""Keys under which training code keeps the state dict, beside epoch and optimizer."""
MIT_LICENCE = "NVIDIA's MiT weights, or trained from them: not for commercial use"


class Recognised(NamedTuple):
    """What a file's tensors say about their network."""

    name: str
    num_classes: int
    head_width: int


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.pth`` file; a wrapper of `WRAPPERS` and ``module.`` prefixes are taken off.

    Only tensors are read, no code is run. Raises SegtailorError for anything else.
    """
    if not path.is_file():
        raise SegtailorError(f"no such file: {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SegtailorError(
            f"{path} is refused: it holds pickled objects beside tensors, which could run code; where it was written, "
            "save the state dict alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # truncated archives fail in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise SegtailorError(f"{path} cannot be read ({reason[:120]}); is it a whole .pth file?") from error
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise SegtailorError(f"{path} holds no state dict; save one: torch.save(model.state_dict(), FILE)")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise SegtailorError(f"{path} holds more than tensors: {count_names('other entries', others)}")
    bare = all(str(name).startswith("module.") for name in content)
    return {str(name).removeprefix("module.") if bare else str(name): value for name, value in content.items()}


def recognise(tensors: dict[str, Tensor], source: str) -> Recognised:
    """Tell network, class count and head width from ``tensors``; SegtailorError when no published network has them."""
    names = set(tensors)
    head = next((head for head, classifier in CLASSIFIERS.items() if classifier in names), None)
    backbone = _backbone(tensors)
    if head is None or backbone is None or (head == "segformer") != backbone.startswith("mit"):
        bare = any(name.startswith(("layer1.", "features.0.")) for name in names) or (backbone and head is None)
        hint = (
            "it looks like a backbone alone: give it to a new model as pretrained"
            if bare
            else "is it of another project?"
        )
        raise SegtailorError(
            f"{source} is no published checkpoint (DeepLabV3 or PSPNet on ResNet-18/50/101 or MobileNetV2, SegFormer "
            f"B0 to B5): {count_names('tensors', sorted(names))}; {hint}"
        )
    classifier = tensors[CLASSIFIERS[head]]
    if classifier.ndim != 4:
        raise SegtailorError(f"{source}: {CLASSIFIERS[head]} has shape {list(classifier.shape)}, not (K,C,1,1)")
    return Recognised(f"{head}-{backbone}", classifier.shape[0], classifier.shape[1])


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
        depths = block_counts(names, r"block(\d)\.(\d+)\.")
        return next(
            (name for name, size in MIT_SIZES.items() if (size.channels, size.depths) == (channels, depths)), None
        )
    return None


def load_published(path: Path) -> Segmenter:
    """Build and fill the network that the published checkpoint ``path`` belongs to; every tensor must fit.

    ``path`` may also be a transformers SegFormer, its folder or its weights file.
    """
    path = weights_file(path)
    tensors = read_weights(path)
    if is_segformer(tensors):
        return load_segformer(tensors, path)
    found = recognise(tensors, str(path))
    model = create_segmenter(found.name, found.num_classes)
    if model.feature_channels != found.head_width:
        model = create_segmenter(found.name, found.num_classes, head_width=found.head_width)
    network = f"{found.name} (head width {found.head_width}, {found.num_classes} classes)"
    check_fit(to_published(model), tensors, str(path), network)
    model.load_state_dict({ours: tensors[theirs] for ours, theirs in published_names(model).items()})
    if found.name.startswith("segformer"):
        model.licences["backbone"] = MIT_LICENCE
    return model


def load_published_backbone(net: nn.Module, name: str, path: Path) -> tuple[str, dict[str, Any] | None]:
    """Fill ``net``, the backbone ``name``, from the published ImageNet file.

    Those files carry the backbone's own names and a classifier, which is left out; every other tensor must fit. For a
    Mix Transformer ``path`` may also be a transformers SegFormer. Returns the licence as far as known, and what the
    weights expect of their input where that is not the published family's.
    """
    path = weights_file(path)
    tensors = read_weights(path)
    if name.startswith("mit") and is_segformer(tensors):
        return load_encoder(net, tensors, path)
    prefix = {"mit": "", "mob": "pretrained.net."}.get(name[:3], "pretrained.")
    prefixes = backbone_prefixes(name)
    state = net.state_dict()
    names = {ours: rename(f"backbone.net.{ours}", prefixes).removeprefix(prefix) for ours in state}
    # Old files have no batch counters; they play no part in the result.
    names = {ours: theirs for ours, theirs in names.items() if theirs in tensors or not ours.endswith("_tracked")}
    wanted = set(names.values())
    kept = {key: value for key, value in tensors.items() if key in wanted}
    check_fit({theirs: state[ours] for ours, theirs in names.items()}, kept, str(path), f"the backbone {name}")
    net.load_state_dict({**state, **{ours: tensors[theirs] for ours, theirs in names.items()}})
    return MIT_LICENCE if name.startswith("mit") else "", None
