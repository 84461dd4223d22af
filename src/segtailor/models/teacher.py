"""The teacher: a model that never learns."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from segtailor.models.output import SegOutput
from segtailor.models.preprocess import Preprocess
from segtailor.models.segmenter import Segmenter


class Teacher(nn.Module):
    """Wraps ``model``: always in eval mode, without gradients, called with the target beside the images."""

    sees_target = True

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.training = False

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode whatever ``mode`` says."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Teacher:
        """Stay frozen whatever ``requires_grad`` says."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor, target: Tensor | None = None) -> SegOutput:
        """Return the detached output for raw RGB ``images`` (B,3,H,W); ``target`` (B,H,W) is ignored here."""
        return self.model(images).detach()  # type: ignore[no-any-return]

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``logits`` (B,K,h,w) at ``size`` by the model's own rule."""
        return self.model.upsample(logits, size)

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model.name

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return self.model.num_classes

    @property
    def preprocess(self) -> Preprocess:
        """The model's preprocessing."""
        return self.model.preprocess

    @property
    def tap_channels(self) -> dict[str, int]:
        """Channels of every tap."""
        return self.model.tap_channels

    @property
    def has_aux(self) -> bool:
        """Whether the output carries auxiliary logits."""
        return self.model.has_aux

    def fingerprint(self) -> str:
        """Return a hash of every parameter and buffer, bit for bit."""
        digest = hashlib.sha256()
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
