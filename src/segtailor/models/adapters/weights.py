"""Weights files of other projects, read into a network that was built by name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.models.adapters.adapted import Adapted
from segtailor.models.fit import check_fit

WRAPPERS = ("module.", "model.", "net.", "network.", "segmentor.", "_orig_mod.")
"""Prefixes that training code puts before a network's own names."""

# What names tell the layout, and how such a file is read.
LAYOUTS: dict[str, tuple[tuple[str, ...], str]] = {
    "the published benchmark": (("pretrained.", "head.aspp."), "give it as published:FILE"),
    "the published benchmark's SegFormer": (("patch_embed1.", "linear_fuse."), "give it as published:FILE"),
    "a transformers SegFormer": (("segformer.", "decode_head."), "give its folder as hf:FOLDER"),
    "segmentation_models_pytorch": (("encoder.", "decoder.", "segmentation_head."), "name the model smp:Arch/encoder"),
    "torchvision": (("backbone.", "classifier."), "name the model torchvision:NAME"),
    "mmsegmentation": (("backbone.", "decode_head."), "build that network as module:package.module:factory"),
}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors``, ``.pth``, ``.pt`` or ``.bin`` file; nothing but tensors is read.

    Raises SegtailorError for a file that is missing or damaged, and for one that holds more than tensors.
    """
    from segtailor.models.published import read_tensors

    if path.suffix != ".safetensors":
        return read_tensors(path)
    if not path.is_file():
        raise SegtailorError(f"no such file: {path}")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise SegtailorError(f"{path} is damaged or no safetensors file ({error})") from error


def fill(network: Adapted, path: Path) -> None:
    """Read ``path`` into ``network``; every tensor must fit, whatever wrapper's prefix the names carry.

    Raises SegtailorError with the counts and first names of what is missing, unexpected or of another shape, and with
    the nearest layout.
    """
    tensors = bare(read_weights(path), network)
    state = network.net.state_dict()
    # a counter that plays no part in the result
    kept = {name: value for name, value in tensors.items() if name in state or not name.endswith("num_batches_tracked")}
    counters = {name: state[name] for name in state if name.endswith("num_batches_tracked") and name not in kept}
    try:
        check_fit(state, {**counters, **kept}, str(path), network.name)
    except SegtailorError as error:
        raise SegtailorError(f"{error}{layout_hint(tensors)}") from None
    network.net.load_state_dict({**counters, **kept})


def bare(tensors: Mapping[str, Tensor], network: Adapted) -> dict[str, Tensor]:
    """Return ``tensors`` without the wrappers' prefixes that all names carry and that the network does not have."""
    found, state = dict(tensors), network.net.state_dict()
    while found and not any(name in state for name in found):
        prefix = next((prefix for prefix in WRAPPERS if all(name.startswith(prefix) for name in found)), None)
        if prefix is None:
            break
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    return found


def count_classes(tensors: Mapping[str, Tensor], network: Adapted) -> int | None:
    """Return how many classes the weights have, told by the module that computes ``network``'s logits, if it can be."""
    path = network.classifier
    for name in () if path is None else (f"{path}.bias", f"{path}.weight"):
        if name in tensors:
            return int(tensors[name].shape[0])
    return None


def layout_hint(tensors: Mapping[str, Tensor]) -> str:
    """Return what project's layout the names look like, and what to do, as the end of a message."""
    for layout, (prefixes, advice) in LAYOUTS.items():
        if all(any(name.startswith(prefix) for name in tensors) for prefix in prefixes):
            return f"; its names look like {layout}: {advice}"
    return ""
