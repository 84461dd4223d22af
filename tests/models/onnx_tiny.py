"""Tiny networks that tests write as ONNX files."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 5
IMAGES = torch.randint(0, 256, (3, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


class Tiny(nn.Module):
    """Logits at stride 4, enlarged to the image, and the feature in front of the classifier."""

    def __init__(self, ending: str = "logits") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.classifier = nn.Conv2d(12, CLASSES, 1)
        self.ending = ending
        with torch.no_grad():
            self.norm.running_mean.uniform_(-0.1, 0.1)
        self.eval()

    def features(self, inputs: Tensor) -> Tensor:
        return F.relu(self.body(F.relu(self.norm(self.stem(inputs)))))

    def forward(self, inputs: Tensor) -> Any:
        if self.ending in ("raw", "last"):
            inputs = inputs.permute(0, 3, 1, 2) if self.ending == "last" else inputs.float() / 255
        feature = self.features(inputs)
        logits = F.interpolate(self.classifier(feature), size=inputs.shape[-2:], mode="bilinear", align_corners=False)
        endings = {
            "argmax": logits.argmax(1),
            "argmax plane": logits.argmax(1, keepdim=True).float(),
            "softmax": logits.softmax(1),
            "last": logits.permute(0, 2, 3, 1),
            "feature": {"out": logits, "feature": feature},
            "feature first": {"feature": feature, "out": logits},
            "pooled": logits.mean((2, 3)),
        }
        return endings.get(self.ending, logits)


def write_onnx(
    path: Path, net: nn.Module, shape: tuple[int, ...] = (1, 3, 64, 96), free: dict[int, str] | None = None,
    dtype: torch.dtype = torch.float32, outputs: tuple[str, ...] = ("out",),
) -> Path:  # fmt: skip
    """Export ``net``; ``free`` names the axes that may have any length."""
    example = torch.zeros(shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net, (example,), path, input_names=["image"], output_names=list(outputs), dynamo=False,
            dynamic_axes={"image": free or {}, **{name: {0: "batch"} for name in outputs if free and 0 in free}},
        )  # fmt: skip
    return path
