"""What every network is to the rest of the library, whoever wrote it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn

from segtailor.models.output import SegOutput
from segtailor.models.preprocess import Preprocess


class Network(nn.Module, ABC):
    """A segmentation network with its own preprocessing.

    ``name`` is what `create_model` builds it from; ``classes`` are its class names where it knows them; ``licences``
    are those of weights and data, for the card; ``planes`` is how many its first convolution takes; ``trainable`` says
    whether it can be a student; ``note`` is what its user should know.
    """

    name: str
    num_classes: int
    preprocess: Preprocess
    licences: dict[str, str]
    classes: tuple[str, ...] = ()
    planes: int = 3
    trainable: bool = True
    note: str = ""

    @property
    @abstractmethod
    def has_aux(self) -> bool:
        """Whether the output carries auxiliary logits."""

    @property
    @abstractmethod
    def tap_channels(self) -> dict[str, int]:
        """Channels of every tap."""

    @property
    @abstractmethod
    def stage_strides(self) -> tuple[int, ...]:
        """Strides of the backbone's maps, finest first."""

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the encoder, whose learning rate a recipe may set apart from the heads'."""
        return []

    def forward(self, images: Tensor) -> SegOutput:
        """Return the output for raw RGB ``images`` (B,3,H,W), uint8 or float in 0..255."""
        return self.forward_normalised(self.preprocess(images))

    @abstractmethod
    def forward_normalised(self, inputs: Tensor) -> SegOutput:
        """Return the output for ``inputs`` (B,3,H,W) that are preprocessed already."""

    @abstractmethod
    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``logits`` (B,K,h,w) at ``size``, bilinear, with the corner rule that the family was trained with."""

    @abstractmethod
    def spec(self) -> dict[str, Any]:
        """Return what `create_model` needs to build the same network, as plain values."""
