"""What every head is: maps in, a feature, and a 1x1 classifier behind dropout."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn


class HeadOutput(NamedTuple):
    """``logits`` (B,K,h,w); ``feature`` (B,C,h,w) before dropout and ``classifier_input`` the same after it."""

    logits: Tensor
    feature: Tensor
    classifier_input: Tensor


class Head(nn.Module, ABC):
    """A decoder: the backbone's maps to logits.

    ``channels`` and ``strides`` describe the maps, finest first; ``width`` is the number of channels in front of the
    classifier. A subclass builds what ``decode`` needs and calls ``add_classifier`` last, so that the order of the
    parameters is the order of use.
    """

    align_corners: ClassVar[bool] = True
    output_stride: ClassVar[int] = 8
    """The backbone stride that the head asks for."""
    fine_maps: ClassVar[int] = 0
    """How many maps it reads that should be finer than the last; a plain transformer must make them."""
    has_aux: ClassVar[bool] = True
    """Whether an auxiliary FCN head on the last map but one is trained beside it."""
    dropout: nn.Module
    classifier: nn.Conv2d

    @abstractmethod
    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__()
        self.width = width

    @staticmethod
    def default_width(channels: Sequence[int]) -> int:
        """Return the width for a backbone whose maps have ``channels``."""
        return 256 if channels[-1] >= 1024 else 128

    def add_classifier(self, num_classes: int, dropout: nn.Module) -> None:
        """Add the dropout and the classifier behind it."""
        self.dropout = dropout
        self.classifier = nn.Conv2d(self.width, num_classes, 1)

    @abstractmethod
    def decode(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the feature (B,width,h,w) of the backbone's maps."""

    def forward(self, stages: Sequence[Tensor]) -> HeadOutput:
        """Return logits, feature and classifier input of the backbone's maps."""
        feature = self.decode(stages)
        classifier_input = self.dropout(feature)
        return HeadOutput(self.classifier(classifier_input), feature, classifier_input)
