"""A network that sees the labels: coded, noised, and as a fourth plane beside the image."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtailor.errors import SegtailorError
from segtailor.models.adapters.weights import fill
from segtailor.models.network import Network, Preprocess, SegOutput, set_dropout
from segtailor.models.store import CARD_VERSION, read_card, write_weights
from segtailor.models.teacher import Teacher

Codes = Literal["random", "fixed"]
FIRST_FILTERS = 0.1
"""Standard deviation of the fourth plane's filters before training."""


def add_label_plane(model: Network, dropout: float | None = None) -> Network:
    """Return a copy of ``model`` whose first convolution takes a fourth plane; its other filters stay.

    The plane's filters are drawn from N(0, 0.1). ``dropout`` replaces the probability of every dropout. Raises
    :class:`SegtailorError` for a network that does not begin with a convolution over three planes.
    """
    model = copy.deepcopy(model)
    first = next((part for part in model.modules() if isinstance(part, nn.Conv2d)), None)
    if first is None or first.in_channels != 3 or first.groups != 1:
        raise SegtailorError(f"{model.name} does not begin with a convolution over an RGB image; choose another one")
    kept = first.weight.detach()
    plane = FIRST_FILTERS * torch.randn(len(kept), 1, *kept.shape[2:], dtype=kept.dtype)
    first.weight = nn.Parameter(torch.cat((kept, plane), 1))
    first.in_channels = model.planes = 4
    if dropout is not None:
        set_dropout(model, dropout)
    return model


def plane_scale(preprocess: Preprocess) -> float:
    """Return the step of the label plane for a code of 1: as large as 100 grey levels of the image.

    >>> plane_scale(Preprocess((104.0, 117.0, 123.0), (1.0, 1.0, 1.0), scale=1.0, channel_order="bgr"))
    100.0
    """
    spec = preprocess.spec()
    return float(100 * spec["scale"] / (sum(spec["std"]) / 3))


def label_plane(target: Tensor, num_classes: int, codes: Codes, noise: float) -> Tensor:
    """Return the coded labels (B,1,H,W) of ``target`` (B,H,W); void is a further label.

    ``random``: each label of each image gets a code from N(0,1). ``fixed``: codes are 0.1 apart around 0, closer where
    more than 22 labels would leave the range of the published 21 classes and void. Gaussian ``noise`` is added to every
    pixel.
    """
    labels = num_classes + 1
    if codes == "random":
        table = torch.randn(len(target), labels, device=target.device)
    else:
        step = 0.1 * min(1.0, 22 / labels)
        table = ((torch.arange(labels, device=target.device) - labels // 2) * step).expand(len(target), labels)
    index = target.clamp(max=num_classes).to(torch.int64).flatten(1)
    plane = table.gather(1, index).view(target.shape)
    return (plane + noise * torch.randn(target.shape, device=target.device)).unsqueeze(1)


def forward_assisted(model: Network, images: Tensor, target: Tensor | None, codes: Codes, noise: float) -> SegOutput:
    """Return the output of a four-plane ``model`` for raw ``images`` (B,3,H,W) and their labels (B,H,W)."""
    if target is None:
        raise SegtailorError(f"the label-assisted {model.name} needs labels beside the images")
    inputs = model.preprocess(images)
    size = (inputs.shape[-2], inputs.shape[-1])
    if target.shape[-2:] != size:
        target = F.interpolate(target[:, None].float(), size, mode="nearest-exact")[:, 0].to(target.dtype)
    plane = plane_scale(model.preprocess) * label_plane(target, model.num_classes, codes, noise)
    return model.forward_normalized(torch.cat((inputs, plane.to(inputs.dtype)), 1))


class LabelAssisted(nn.Module):
    """A four-plane network in training: called with images and target, scored with labels."""

    sees_target = True

    def __init__(self, model: Network, codes: Codes, noise: float) -> None:
        super().__init__()
        self.model, self.num_classes = model, model.num_classes
        self.codes: Codes = codes
        self.noise = noise

    def forward(self, images: Tensor, target: Tensor | None = None) -> SegOutput:
        """Return the output for raw RGB ``images`` (B,3,H,W) and ``target`` (B,H,W)."""
        return forward_assisted(self.model, images, target, self.codes, self.noise)

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``logits`` (B,K,h,w) at ``size`` by the model's own rule."""
        return self.model.upsample(logits, size)

    @property
    def preprocess(self) -> Preprocess:
        """The model's preprocessing."""
        return self.model.preprocess


class LabelAssistedTeacher(Teacher):
    """A frozen four-plane network; its score says nothing about images without labels."""

    def __init__(self, model: Network, codes: Codes, noise: float) -> None:
        super().__init__(model)
        self.codes: Codes = codes
        self.noise = noise

    @torch.no_grad()
    def forward(self, images: Tensor, target: Tensor | None = None) -> SegOutput:
        """Return the detached output for raw RGB ``images`` (B,3,H,W) and ``target`` (B,H,W)."""
        return forward_assisted(self.model, images, target, self.codes, self.noise).detach()


def save_assisted(model: Network, path: Path, card: Mapping[str, Any]) -> None:
    """Write a four-plane network and its card; `load_model` refuses such a file, `load_assisted` reads it."""
    write_weights(model, path, {"version": CARD_VERSION, "label_assisted": model.spec(), **card})


def load_assisted(model: Network, path: Path) -> None:
    """Read the weights that `save_assisted` wrote into ``model``.

    Raises :class:`SegtailorError` for a file that is missing, damaged, no label-assisted network, or another one.
    """
    card = read_card(path)
    spec = card.get("label_assisted")
    if not isinstance(spec, dict):
        raise SegtailorError(f"{path} holds no label-assisted network; leave the option out to train one")
    if spec["name"] != model.name:
        raise SegtailorError(f"{path} holds a label-assisted {spec['name']}, not {model.name}")
    fill(model, safetensors.torch.load_file(path), str(path), f"label-assisted {model.name}")
