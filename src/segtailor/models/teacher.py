"""The teacher: a model that never learns."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn
from torch.nn import functional

from segtailor.models.class_map import ClassMap
from segtailor.models.network import Network, Preprocess, SegOutput


class Teacher(nn.Module):
    """Wraps ``model``: always in eval mode, without gradients, called with the target beside the images.

    With a ``class_map`` its logits are those of the data's classes.
    """

    sees_target = True

    def __init__(self, model: Network, class_map: ClassMap | None = None) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.class_map = class_map
        self.name, self.has_aux, self.tap_channels = model.name, model.has_aux, model.tap_channels
        self.num_classes, self.classes = model.num_classes, model.classes
        if class_map is not None:
            self.num_classes, self.classes = class_map.num_classes, class_map.targets
        self.training = False

    def train(self, mode: bool = True) -> Teacher:
        """Stay in eval mode whatever ``mode`` says."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Teacher:
        """Stay frozen whatever ``requires_grad`` says."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor, target: Tensor | None = None) -> SegOutput:
        """Return the detached output for raw RGB ``images`` (B,3,H,W); ``target`` (B,H,W) is ignored here.

        Images whose size is not the multiple that the model needs are resized to the next one, so that every grid still
        shows the whole image.
        """
        output: SegOutput = self.model(self.fitted(images)).detach()
        return output if self.class_map is None else self.class_map.map_output(output)

    def fitted(self, images: Tensor) -> Tensor:
        """Return ``images`` (B,3,H,W) at a size that the model takes."""
        height, width = images.shape[-2:]
        size = self.preprocess.input_size((height, width))
        if self.preprocess.size is not None or size == (height, width):
            return images  # one fixed size is the preprocessing's own affair
        return functional.interpolate(images.float(), size, mode="bilinear", align_corners=False)

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``logits`` (B,K,h,w) at ``size`` by the model's own rule."""
        return self.model.upsample(logits, size)

    @property
    def preprocess(self) -> Preprocess:
        """The model's preprocessing."""
        return self.model.preprocess

    def fingerprint(self) -> str:
        """Return a hash of every parameter and buffer, bit for bit, and of the class map."""
        digest = hashlib.sha256()
        if self.class_map is not None:
            digest.update(f"class map {self.class_map.indices}".encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()
