"""Tiny networks of other libraries with random weights that no two channels share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

CLASSES = 3
CNN, VIT = "tu-test_resnet", "tu-test_vit"
SMALL: dict[str, dict[str, Any]] = {
    "Unet": {"decoder_channels": (16, 16, 16, 8, 8)},
    "UnetPlusPlus": {"decoder_channels": (16, 16, 16, 8, 8)},
    "MAnet": {"decoder_channels": (16, 16, 16, 8, 8), "decoder_pab_channels": 8},
    "Linknet": {},
    "FPN": {"decoder_pyramid_channels": 32, "decoder_segmentation_channels": 32},
    "PSPNet": {"psp_out_channels": 16},
    "PAN": {"decoder_channels": 16},
    "DeepLabV3": {"decoder_channels": 16},
    "DeepLabV3Plus": {"decoder_channels": 16},
    "UPerNet": {"decoder_channels": 16},
    "Segformer": {"decoder_segmentation_channels": 16},
    "DPT": {"decoder_intermediate_channels": (8, 8, 8, 8), "decoder_fusion_channels": 8},
}
"""smp's architectures, with constructor arguments that make them small."""


def shuffled(net: nn.Module, seed: int = 0) -> nn.Module:
    """Give ``net`` weights, and statistics of its batch norms, that are unlike their first values; in eval mode."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.1 * torch.randn_like(parameter))
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.8, 1.2)
    return net.eval()


def smp_net(architecture: str = "FPN", classes: int = CLASSES, encoder: str | None = None, **arguments: Any) -> Any:
    """Return a small network of smp."""
    import segmentation_models_pytorch as smp

    torch.manual_seed(0)
    kind = getattr(smp, architecture)
    encoder = encoder or (VIT if architecture == "DPT" else CNN)
    given = {**SMALL[architecture], **arguments}
    return shuffled(kind(encoder_name=encoder, encoder_weights=None, classes=classes, **given))


def photo(height: int, width: int, count: int = 1) -> Tensor:
    """Return raw RGB noise (B,3,H,W)."""
    generator = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


class SmallNet(nn.Module):
    """A user's network of three convolutions, which enlarges its logits itself."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 2, 1), nn.ReLU())
        self.classifier = nn.Conv2d(12, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B,K,H,W) of ``x`` (B,3,H,W)."""
        return functional.interpolate(self.classifier(self.encoder(x)), x.shape[-2:], mode="bilinear")
