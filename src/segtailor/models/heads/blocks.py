"""The small parts that several heads share."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_warned_about_single_values = False


class PooledBatchNorm2d(nn.BatchNorm2d):
    """Batch norm behind a pooled branch: it falls back on the running statistics when a channel has one value.

    Input and output (B,C,h,w). A global pool of one image leaves one value per channel, whose variance is no use (and
    which PyTorch refuses in train mode); the fall-back is said once per process.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the name of the parent's argument)
        """Return the normalised tensor."""
        if self.training and input.numel() == input.shape[1]:
            _warn_once()
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(input)


def _warn_once() -> None:
    global _warned_about_single_values
    if not _warned_about_single_values and not torch.compiler.is_compiling():
        _warned_about_single_values = True
        warnings.warn(
            "one image per device: the pooled branch uses its running batch-norm statistics; two or more images "
            "per device train better",
            stacklevel=3,
        )


def conv_norm_relu(in_channels: int, out_channels: int) -> nn.Sequential:
    """Return 1x1 convolution without bias, batch norm, ReLU; (B,in,h,w) -> (B,out,h,w)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def conv3x3_norm_relu(in_channels: int, out_channels: int, dilation: int = 1) -> nn.Sequential:
    """Return 3x3 convolution without bias, batch norm, ReLU; (B,in,h,w) -> (B,out,h,w)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def separable_conv_norm_relu(in_channels: int, out_channels: int, dilation: int = 1) -> nn.Sequential:
    """Return a 3x3 depthwise and a 1x1 convolution, batch norm, ReLU; (B,in,h,w) -> (B,out,h,w)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=dilation, dilation=dilation, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def pooled_conv_norm_relu(in_channels: int, out_channels: int, size: int) -> nn.Sequential:
    """Return average pool, 1x1 convolution, batch norm, ReLU; (B,in,h,w) -> (B,out,size,size)."""
    return nn.Sequential(
        nn.AdaptiveAvgPool2d(size),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        PooledBatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )


def resize(tensor: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Return ``tensor`` (B,C,h,w) at ``size``, bilinear."""
    if tuple(tensor.shape[-2:]) == tuple(size):
        return tensor
    return F.interpolate(tensor, size=size, mode="bilinear", align_corners=align_corners)
