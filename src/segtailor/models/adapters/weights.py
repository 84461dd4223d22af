"""Weights files: read as tensors alone, checked against a network, and filled into one."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError, reason
from segtailor.models.adapters.wrapper import Adapted


def check_state_dict(expected: Mapping[str, Tensor], given: Mapping[str, Tensor], source: str, network: str) -> None:
    """Raise SegtailorError unless ``given`` has exactly the names and shapes of ``expected``."""
    problems = [
        count_names("missing", [name for name in expected if name not in given]),
        count_names("unexpected", [name for name in given if name not in expected]),
        count_names(
            "of another shape",
            [name for name, tensor in given.items() if name in expected and expected[name].shape != tensor.shape],
        ),
    ]
    if any(problems):
        raise SegtailorError(f"{source} does not fit {network}: {'; '.join(filter(None, problems))}")


def fill(module: nn.Module, tensors: Mapping[str, Tensor], source: str, network: str) -> None:
    """Load ``tensors`` into ``module``; SegtailorError, which names ``source`` and ``network``, unless all fit."""
    check_state_dict(module.state_dict(), tensors, source, network)
    module.load_state_dict(dict(tensors))


def count_names(kind: str, names: list[str]) -> str:
    """Return how many ``names`` there are and the first five of them, or nothing.

    >>> count_names("missing", ["head.weight", "head.bias"])
    '2 missing (head.weight, head.bias)'
    """
    if not names:
        return ""
    return f"{len(names)} {kind} ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})"


FILES = ("model.safetensors", "pytorch_model.bin")
"""Weights in a folder of transformers or smp, in order of preference."""

WRAPPERS = ("module.", "model.", "net.", "network.", "segmentor.", "_orig_mod.")
"""Prefixes that training code puts before a network's own names."""

ENTRIES = ("state_dict", "model", "model_state_dict", "model_state", "net")
"""Keys under which training code keeps the state dict, beside epoch and optimizer."""

LAYOUTS: dict[str, tuple[tuple[str, ...], str]] = {
    "the published benchmark": (("pretrained.", "head.aspp."), "give it as published:FILE"),
    "the published benchmark's SegFormer": (("patch_embed1.", "linear_fuse."), "give it as published:FILE"),
    "a transformers SegFormer": (("segformer.", "decode_head."), "give its folder as hf:FOLDER"),
    "segmentation_models_pytorch": (
        ("encoder.", "decoder.", "segmentation_head."),
        "name the model smp:Arch/encoder, as teacher.model: smp:Unet/resnet18 beside the weights",
    ),
    "torchvision": (("backbone.", "classifier."), "name the model torchvision:NAME beside the weights"),
    "mmsegmentation": (("backbone.", "decode_head."), "build that network as module:package.module:factory"),
}
"""Projects: the prefixes by which their tensor names are recognized, and how to give such a file."""
OTHER_ARGUMENTS = {
    "segmentation_models_pytorch": "; was it built with other arguments? Then save it with its save_pretrained and "
    "give the folder as weights: smp:FOLDER"
}
"""Advice for weights of the right project that do not fit."""


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file; no code is run.

    Of a pickled file, a wrapper of `ENTRIES` and ``module.`` prefixes are taken off. Raises SegtailorError for a file
    that is missing or damaged, and for one that holds more than tensors.
    """
    if not path.is_file():
        raise SegtailorError(f"no such file: {path}")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError) as error:
            raise SegtailorError(f"{path} is damaged or no safetensors file ({error})") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise SegtailorError(
            f"{path} is refused: it holds pickled objects beside tensors, which could run code; where it was written, "
            "save the state dict alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # truncated archives fail in many ways
        raise SegtailorError(f"{path} cannot be read ({reason(error)[:120]}); is it a whole .pth file?") from error
    for wrapper in ENTRIES:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not content:
        raise SegtailorError(f"{path} holds no state dict; save one: torch.save(model.state_dict(), FILE)")
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise SegtailorError(f"{path} holds more than tensors: {count_names('other entries', others)}")
    bare = all(str(name).startswith("module.") for name in content)
    return {str(name).removeprefix("module.") if bare else str(name): value for name, value in content.items()}


def fill_from(network: Adapted, tensors: Mapping[str, Tensor], source: str) -> None:
    """Fill ``network`` from ``tensors``, which must all fit; ``source`` says in errors where they are from.

    Raises SegtailorError with the counts and first names of what is missing, unexpected or of another shape, and with
    the nearest layout.
    """
    state = network.net.state_dict()
    # a counter that plays no part in the result
    kept = {name: value for name, value in tensors.items() if name in state or not name.endswith("num_batches_tracked")}
    counters = {name: state[name] for name in state if name.endswith("num_batches_tracked") and name not in kept}
    given = {**counters, **kept}
    try:
        network.net.load_state_dict(given)  # some networks rename, in ``given``, what their older versions wrote
    except (RuntimeError, KeyError, AttributeError) as error:
        try:
            check_state_dict(state, given, source, network.name)
        except SegtailorError as misfit:
            raise SegtailorError(f"{misfit}{layout_hint(tensors, network.own_layout)}") from None
        raise SegtailorError(f"{source} does not fit {network.name} ({reason(error)[:160]})") from error


def bare(tensors: Mapping[str, Tensor], network: Adapted) -> dict[str, Tensor]:
    """Return ``tensors`` under the names that ``network`` has: without wrappers' prefixes, and without what is
    outside the wrapper, such as a loss's own weights.

    One class given by a sigmoid becomes two where the network has two.
    """
    found, state = dict(tensors), network.net.state_dict()
    while found and not any(name in state for name in found):
        inner = max(
            (
                {name.removeprefix(prefix): found[name] for name in found if name.startswith(prefix)}
                for prefix in WRAPPERS
            ),
            key=len,
        )
        if 2 * len(inner) <= len(found):
            break
        found = inner
    return widened(network.fitting(found), network)


def widened(tensors: Mapping[str, Tensor], network: Adapted) -> dict[str, Tensor]:
    """Return ``tensors`` with a classifier of one class made one of two, where ``network`` has two.

    The new class comes first and its logit is 0, so the softmax of both is the sigmoid of the one.
    """
    if network.num_classes != 2 or count_classes(tensors, network) != 1:
        return dict(tensors)
    state, found = network.net.state_dict(), dict(tensors)
    for name, value in tensors.items():
        wide = state.get(name)
        if wide is not None and value.shape[:1] == (1,) and wide.shape == (2, *value.shape[1:]):
            found[name] = torch.cat([torch.zeros_like(value), value])
    return found


def with_fresh_classifier(tensors: Mapping[str, Tensor], network: Adapted) -> dict[str, Tensor]:
    """Return ``tensors`` with ``network``'s own first values where its logits are computed for other classes."""
    if count_classes(tensors, network) == network.num_classes:
        return dict(tensors)
    state = network.net.state_dict()
    aux = network.tap_sources.get("aux_logits")
    heads = tuple(f"{path}." for path in (network.classifier, aux and aux.path) if path)
    return {**tensors, **{name: value for name, value in state.items() if name.startswith(heads)}}


def count_classes(tensors: Mapping[str, Tensor], network: Adapted) -> int | None:
    """Return how many classes the weights' module that computes ``network``'s logits has, None if unknown."""
    path = network.classifier
    for name in () if path is None else (f"{path}.bias", f"{path}.weight"):
        if name in tensors:
            return int(tensors[name].shape[0])
    return None


def layout_hint(tensors: Mapping[str, Tensor], own: str = "") -> str:
    """Return what project's layout the names look like, and what to do, as the end of a message.

    ``own`` is the project of the network that they do not fit.
    """
    for layout, (prefixes, advice) in LAYOUTS.items():
        if all(any(name.startswith(prefix) for name in tensors) for prefix in prefixes):
            return OTHER_ARGUMENTS.get(own, "") if layout == own else f"; its names look like {layout}: {advice}"
    return ""


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
