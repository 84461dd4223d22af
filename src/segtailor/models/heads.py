"""The heads: a backbone's maps in, a feature and logits out."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
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
    widths: ClassVar[tuple[int, int]] = (128, 256)
    """Widths for a backbone whose last map has fewer than 1024 channels, and for a wider one."""
    has_aux: ClassVar[bool] = True
    """Whether an auxiliary FCN head on the last map but one is trained beside it."""
    dropout: nn.Module
    classifier: nn.Conv2d

    @abstractmethod
    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__()
        self.width = width

    @classmethod
    def default_width(cls, channels: Sequence[int]) -> int:
        """Return the width for a backbone whose maps have ``channels``."""
        return cls.widths[channels[-1] >= 1024]

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


_warned_about_single_values = False


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that uses its running statistics when a channel has one value, and warns once per process.

    Input and output (B,C,h,w). A global pool, or a tiny crop, of one image leaves one value per channel, whose
    variance PyTorch refuses to compute in train mode.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name of the parent's argument)
        """Return the normalized tensor."""
        if self.training and input.numel() == input.shape[1]:
            global _warned_about_single_values
            if not _warned_about_single_values and not torch.compiler.is_compiling():
                _warned_about_single_values = True
                warnings.warn(
                    "one image per device: batch norm uses its running statistics where a channel has a single value; "
                    "two or more images per device, or a larger crop, train better",
                    stacklevel=2,
                )
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


def conv_norm_relu(in_channels: int, out_channels: int, kernel: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return a convolution without bias, batch norm, ReLU; (B,in,h,w) -> (B,out,h,w)."""
    padding = dilation * (kernel // 2)
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, dilation=dilation, bias=False),
        PooledBatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable_conv_norm_relu(in_channels: int, out_channels: int, kernel: int = 3, dilation: int = 1) -> nn.Sequential:
    """Return a depthwise and a 1x1 convolution, batch norm, ReLU; (B,in,h,w) -> (B,out,h,w)."""
    padding = dilation * (kernel // 2)
    depthwise = nn.Conv2d(in_channels, in_channels, kernel, 1, padding, dilation, groups=in_channels, bias=False)
    return nn.Sequential(depthwise, *conv_norm_relu(in_channels, out_channels))


def pooled_conv_norm_relu(in_channels: int, out_channels: int, size: int) -> nn.Sequential:
    """Return average pool, 1x1 convolution, batch norm, ReLU; (B,in,h,w) -> (B,out,size,size)."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(size), *conv_norm_relu(in_channels, out_channels))


def resize(tensor: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Return ``tensor`` (B,C,h,w) at ``size``, bilinear."""
    if tuple(tensor.shape[-2:]) == tuple(size):
        return tensor
    return F.interpolate(tensor, size=(size[0], size[1]), mode="bilinear", align_corners=align_corners)


class FCN(Head):
    """A 3x3 convolution on the last map of those it is given, then the classifier."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__(channels, strides, num_classes, width)
        self.block = conv_norm_relu(channels[-1], width, 3)
        self.add_classifier(num_classes, nn.Dropout(0.1))

    @classmethod
    def default_width(cls, channels: Sequence[int]) -> int:
        """Return a quarter of the map's channels, at least 8."""
        return max(channels[-1] // 4, 8)

    def decode(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the feature (B,width,h,w) at the last map's size."""
        return self.block(stages[-1])  # type: ignore[no-any-return]


def atrous_rates(stride: int) -> tuple[int, int, int]:
    """Return the three dilations that cover the same pixels at any stride: 12, 24, 36 at stride 8.

    >>> atrous_rates(16)
    (6, 12, 18)
    """
    base = max(96 // stride, 1)
    return base, 2 * base, 3 * base


class AtrousPyramid(nn.Module):
    """1x1, three dilated 3x3 and a global-pool branch, concatenated and projected; (B,in,h,w) -> (B,width,h,w).

    ``dilated(in_channels, width, kernel=3, dilation=...)`` builds a dilated branch.
    """

    def __init__(
        self, in_channels: int, width: int, rates: Sequence[int], dilated: Callable[..., nn.Module] = conv_norm_relu
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv_norm_relu(in_channels, width)])
        self.branches.extend(dilated(in_channels, width, kernel=3, dilation=rate) for rate in rates)
        self.pool = pooled_conv_norm_relu(in_channels, width, size=1)
        self.project = conv_norm_relu((len(rates) + 2) * width, width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return the projected pyramid."""
        height, width = x.shape[-2:]
        pooled = self.pool(x).expand(-1, -1, height, width)  # what resizing a 1x1 map gives
        mixed: Tensor = self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1))
        return self.dropout(mixed)  # type: ignore[no-any-return]


class DeepLabV3(Head):
    """Atrous pyramid and a 3x3 convolution on the last map, at its stride (8 where the backbone can dilate)."""

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__(channels, strides, num_classes, width)
        self.pyramid = AtrousPyramid(channels[-1], width, atrous_rates(strides[-1]))
        self.block = conv_norm_relu(width, width, 3)
        self.add_classifier(num_classes, nn.Dropout(0.1))

    def decode(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the feature (B,width,h,w) at the last map's size."""
        return self.block(self.pyramid(stages[-1]))  # type: ignore[no-any-return]


class DeepLabV3Plus(Head):
    """Separable atrous pyramid on the last map, enlarged and mixed with the finest map (stride 4 as a rule)."""

    output_stride = 16
    fine_maps = 1

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__(channels, strides, num_classes, width)
        detail = min(48, channels[0])
        rates = atrous_rates(strides[-1])
        self.pyramid = AtrousPyramid(channels[-1], width, rates, separable_conv_norm_relu)
        self.detail = conv_norm_relu(channels[0], detail)
        self.block = nn.Sequential(
            separable_conv_norm_relu(width + detail, width), separable_conv_norm_relu(width, width)
        )
        self.add_classifier(num_classes, nn.Dropout(0.1))

    def decode(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the feature (B,width,h,w) at the finest map's size."""
        enlarged = resize(self.pyramid(stages[-1]), stages[0].shape[-2:], self.align_corners)
        return self.block(torch.cat([enlarged, self.detail(stages[0])], dim=1))  # type: ignore[no-any-return]


POOL_SIZES = (1, 2, 3, 6)


class PSPNet(Head):
    """Average pools to 1, 2, 3 and 6 cells a side, each reduced to a quarter of the channels, beside the map itself."""

    widths = (128, 512)  # the published benchmark's

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__(channels, strides, num_classes, width)
        reduced = max(channels[-1] // 4, 1)
        self.pools = nn.ModuleList(pooled_conv_norm_relu(channels[-1], reduced, size) for size in POOL_SIZES)
        self.block = conv_norm_relu(channels[-1] + len(POOL_SIZES) * reduced, width, 3)
        self.add_classifier(num_classes, nn.Dropout(0.1))

    def decode(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the feature (B,width,h,w) at the last map's size."""
        x = stages[-1]
        pooled = [resize(pool(x), x.shape[-2:], self.align_corners) for pool in self.pools]
        return self.block(torch.cat([x, *pooled], dim=1))  # type: ignore[no-any-return]


class SegFormer(Head):
    """A linear layer per map, the results enlarged to the finest map and fused, coarsest first."""

    align_corners = False
    output_stride = 32
    fine_maps = 2
    widths = (256, 256)  # the larger MiT networks set 768
    has_aux = False

    def __init__(self, channels: Sequence[int], strides: Sequence[int], num_classes: int, width: int) -> None:
        super().__init__(channels, strides, num_classes, width)
        self.linears = nn.ModuleList(nn.Linear(count, width) for count in reversed(channels))
        # The bias is redundant in front of batch norm, but published checkpoints carry it.
        self.fuse = nn.Sequential(
            nn.Conv2d(len(channels) * width, width, 1), PooledBatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.add_classifier(num_classes, nn.Dropout2d(0.0))

    def decode(self, stages: Sequence[Tensor]) -> Tensor:
        """Return the feature (B,width,h,w) at the finest map's size."""
        levels = []
        for linear, stage in zip(self.linears, reversed(stages), strict=True):
            level = linear(stage.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, stage.shape[-2:])
            levels.append(resize(level, stages[0].shape[-2:], self.align_corners))
        return self.fuse(torch.cat(levels, dim=1))  # type: ignore[no-any-return]


HEADS: dict[str, type[Head]] = {
    "deeplabv3": DeepLabV3,
    "deeplabv3plus": DeepLabV3Plus,
    "fcn": FCN,
    "pspnet": PSPNet,
    "segformer": SegFormer,
}
