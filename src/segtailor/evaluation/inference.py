"""Logits at any size, from a whole image or from a sliding window."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segtailor.config import DataConfig, EvaluateConfig
from segtailor.errors import SegtailorError
from segtailor.files import VOID, Color, Size
from segtailor.models.network import SegOutput
from segtailor.models.taps import evaluated

Mode = Literal["whole", "slide"]
IMAGENET_COLOR: Color = (124, 116, 104)


class InferenceSettings(TypedDict):
    """How a model sees an image: whole, or through a window that is moved by a stride."""

    mode: Mode
    window: Size | None
    stride: Size | None


def inference_settings(evaluate: EvaluateConfig, data: DataConfig) -> InferenceSettings:
    """Return the recipe's mode, window and stride; the window defaults to ``data.crop``, then ``data.size``.

    Raises SegtailorError when ``slide`` has no window to use.
    """
    window = evaluate.window or data.crop or data.size
    if evaluate.mode == "slide" and window is None:
        raise SegtailorError("evaluate.mode slide needs a window: set evaluate.window or data.crop to [height, width]")
    return {"mode": evaluate.mode, "window": window, "stride": evaluate.stride}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Run the block with ``model`` in eval mode and without gradients; every module's own mode is put back."""
    with evaluated(model), torch.inference_mode():
        yield


def predict_logits(
    model: nn.Module,
    images: Tensor,
    size: Size,
    *,
    mode: Mode = "whole",
    window: Size | None = None,
    stride: Size | None = None,
    fill: Color = IMAGENET_COLOR,
    target: Tensor | None = None,
) -> Tensor:
    """Return float logits (B,K,*size) of raw RGB ``images`` (B,3,h,w).

    Images are padded below and at the right with the color ``fill`` to the model's size multiple (and to the window,
    when smaller) and logits are cropped after upsampling. Sliding averages the logits of overlapping windows; the last
    window of a row or column ends at the image's edge. ``stride`` defaults to two thirds of ``window``. ``target``
    (B,H,W) is given to a label-assisted teacher (``sees_target``) alone, at the images' size, padded with void.
    Raises SegtailorError for a sliding window without a size, or with a stride that leaves gaps.
    """
    height, width = images.shape[-2:]
    target = target if getattr(model, "sees_target", False) else None
    if target is not None and target.shape[-2:] != (height, width):
        target = F.interpolate(target[:, None].float(), (height, width), mode="nearest-exact")[:, 0].to(target.dtype)
    if mode == "whole":
        return _whole(model, images, size, fill, target)
    if window is None:
        raise SegtailorError("a sliding window needs its size: give window as [height, width]")
    stride = stride or (math.ceil(window[0] * 2 / 3), math.ceil(window[1] * 2 / 3))
    if stride[0] > window[0] or stride[1] > window[1]:
        raise SegtailorError(f"stride {list(stride)} is larger than the window {list(window)} and would leave gaps")
    logits = _slide(model, images, window, stride, fill, target)
    return logits if size == (height, width) else _upsample(model, logits, size)


def _whole(model: nn.Module, images: Tensor, size: Size, fill: Color, target: Tensor | None) -> Tensor:
    height, width = images.shape[-2:]
    multiple = int(getattr(getattr(model, "preprocess", None), "size_multiple", 1))
    padded = math.ceil(height / multiple) * multiple, math.ceil(width / multiple) * multiple
    images = _pad(images, padded, fill)
    output: SegOutput = model(images) if target is None else model(images, _pad_void(target, padded))
    logits = output.logits
    if padded == (height, width):
        return _upsample(model, logits, size)
    logits = _upsample(model, logits, padded)[..., :height, :width]
    return logits if size == (height, width) else _upsample(model, logits, size)


def _slide(model: nn.Module, images: Tensor, window: Size, stride: Size, fill: Color, target: Tensor | None) -> Tensor:
    height, width = images.shape[-2:]
    covered = max(height, window[0]), max(width, window[1])
    images = _pad(images, covered, fill)
    target = None if target is None else _pad_void(target, covered)
    total: Tensor | None = None
    visits = torch.zeros(covered, device=images.device)
    for top in _starts(covered[0], window[0], stride[0]):
        for left in _starts(covered[1], window[1], stride[1]):
            here = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            logits = _whole(model, images[here], window, fill, None if target is None else target[here])
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], *covered)
            total[here] += logits
            visits[here] += 1
    assert total is not None  # there is always one window
    return (total / visits)[..., :height, :width]


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = length - window
    return [*range(0, last, stride), last]


def _upsample(model: Any, logits: Tensor, size: Size) -> Tensor:
    enlarged: Tensor = model.upsample(logits.float(), size)  # float: half precision would make ties
    return enlarged


def _pad(images: Tensor, size: Size, fill: Color) -> Tensor:
    height, width = images.shape[-2:]
    if (height, width) == size:
        return images
    color = torch.tensor(fill, dtype=images.dtype, device=images.device).view(1, -1, 1, 1)
    padded = color.expand(images.shape[0], -1, *size).clone()
    padded[..., :height, :width] = images
    return padded


def _pad_void(target: Tensor, size: Size) -> Tensor:
    return F.pad(target, (0, size[1] - target.shape[-1], 0, size[0] - target.shape[-2]), value=VOID)
