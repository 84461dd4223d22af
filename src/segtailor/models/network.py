"""The interface of every network: preprocessing, output, and the facts that a recipe or card needs."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

ChannelOrder = Literal["rgb", "bgr"]


class Preprocess(nn.Module):
    """Scale, reorder and normalize a raw RGB batch: ``(images * scale - mean) / std``.

    Input: (B,3,H,W), uint8 or float in 0..255, RGB. Output: the same shape, float. ``mean`` and ``std`` are given in
    the network's own channel order. ``size_multiple`` is the multiple that height and width must have; evaluation and
    prediction pad to it and crop after upsampling. ``size`` is for networks that take one size (height, width) only:
    whatever comes is resized to it, bilinear and antialiased.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        scale: float = 1 / 255,
        channel_order: ChannelOrder = "rgb",
        size_multiple: int = 1,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        # Kept as numbers too, so that the spec is exact whatever the module's precision and device.
        self._mean, self._std = [float(value) for value in mean], [float(value) for value in std]
        self.register_buffer("mean", torch.tensor(self._mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(self._std).view(1, 3, 1, 1), persistent=False)
        self.scale = scale
        self.channel_order: ChannelOrder = channel_order
        self.size_multiple = size_multiple
        self.size = None if size is None else (int(size[0]), int(size[1]))

    def forward(self, images: Tensor) -> Tensor:
        """Return the normalized batch (B,3,H,W) of raw RGB ``images`` (B,3,H,W)."""
        images = images.to(self.mean.dtype)
        if self.size is not None and tuple(images.shape[-2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", antialias=True)
        if self.channel_order == "bgr":
            images = images.flip(1)
        return (images * self.scale - self.mean) / self.std

    def input_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the size at which the network sees images of ``size``: its own, or padded to its multiple.

        >>> Preprocess(size_multiple=32).input_size((360, 480))
        (384, 480)
        """
        if self.size is not None:
            return self.size
        height, width = (math.ceil(side / self.size_multiple) * self.size_multiple for side in size)
        return height, width

    def spec(self) -> dict[str, Any]:
        """Return the constructor's arguments as plain values, for a model's card."""
        spec: dict[str, Any] = {
            "mean": list(self._mean),
            "std": list(self._std),
            "scale": self.scale,
            "channel_order": self.channel_order,
            "size_multiple": self.size_multiple,
        }
        return spec if self.size is None else {**spec, "size": list(self.size)}


@dataclass
class SegOutput:
    """The output of a segmentation model, before any upsampling.

    Shapes: ``logits`` and ``aux_logits`` (B,K,h,w); ``feature`` (B,C,h,w), the tensor in front of the classifier before
    dropout; ``classifier_input`` the same after dropout; ``stages`` the backbone's maps, finest first; ``taps`` any
    further named inner tensors. Left unfrozen because precision plugins rebuild it field by field.
    """

    logits: Tensor
    aux_logits: Tensor | None = None
    feature: Tensor | None = None
    classifier_input: Tensor | None = None
    stages: tuple[Tensor, ...] = ()
    taps: dict[str, Tensor] = field(default_factory=dict)

    def tap(self, name: str) -> Tensor | None:
        """Return the tensor called ``name``: ``feature``, ``classifier_input``, ``stages.N`` or a key of ``taps``."""
        if name.startswith("stages."):
            index = int(name.removeprefix("stages."))
            return self.stages[index] if index < len(self.stages) else None
        if name in self.taps:
            return self.taps[name]
        value = getattr(self, name, None)
        return value if isinstance(value, Tensor) else None

    def detach(self) -> SegOutput:
        """Return the same output with every tensor detached from the graph."""
        return self.map(lambda tensor: tensor.detach())

    def to(self, device: str | torch.device) -> SegOutput:
        """Return the same output on ``device``."""
        return self.map(lambda tensor: tensor.to(device))

    def map(self, change: Callable[[Tensor], Tensor]) -> SegOutput:
        """Return the same output with every tensor changed by ``change``."""

        def changed(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else change(tensor)

        return SegOutput(
            logits=change(self.logits),
            aux_logits=changed(self.aux_logits),
            feature=changed(self.feature),
            classifier_input=changed(self.classifier_input),
            stages=tuple(change(stage) for stage in self.stages),
            taps={name: change(tensor) for name, tensor in self.taps.items()},
        )


class Network(nn.Module, ABC):
    """A segmentation network with its own preprocessing.

    ``name`` is what `create_model` builds it from; ``classes`` are its class names where it knows them; ``licenses``
    are those of weights and data, for the card. ``has_aux`` says whether the output carries auxiliary logits,
    ``tap_channels`` the channels of every tap, ``stage_strides`` the strides of the backbone's maps, finest first.
    ``planes`` is how many its first convolution takes; ``trainable`` says whether it can be a student; ``note`` is a
    remark for the user.
    """

    name: str
    num_classes: int
    preprocess: Preprocess
    licenses: dict[str, str]
    has_aux: bool
    tap_channels: dict[str, int]
    stage_strides: tuple[int, ...]
    classes: tuple[str, ...] = ()
    planes: int = 3
    trainable: bool = True
    note: str = ""

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the encoder, whose learning rate a recipe may set apart from the heads'."""
        return []

    def forward(self, images: Tensor) -> SegOutput:
        """Return the output for raw RGB ``images`` (B,3,H,W), uint8 or float in 0..255."""
        return self.forward_normalized(self.preprocess(images))

    @abstractmethod
    def forward_normalized(self, inputs: Tensor) -> SegOutput:
        """Return the output for ``inputs`` (B,3,H,W) that are preprocessed already."""

    @abstractmethod
    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``logits`` (B,K,h,w) at ``size``, bilinear, with the corner rule that the family was trained with."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return what `create_model` needs to build the same network, as plain values."""


def set_dropout(model: nn.Module, probability: float) -> int:
    """Give every dropout of ``model`` this ``probability`` in training; return how many there are."""
    found = [part for part in model.modules() if isinstance(part, nn.Dropout | nn.Dropout2d)]
    for part in found:
        part.p = probability
    return len(found)
