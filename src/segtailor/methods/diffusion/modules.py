"""The networks of DiffKD; none is part of the exported student.

Batch norm uses the statistics of the batch at hand, in evaluation too, and keeps no running ones: the modules are never
used for inference, and one forward passes noisy teacher maps and student maps in turn. A convolution in front of a
batch norm has no bias, since the norm would cancel it.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

Kernel = Literal[1, 3]
TIME_ROWS = 1280
"""Rows of the published table of times, of which the schedule's 1000 are read."""


class BatchNorm(nn.BatchNorm2d):
    """Batch norm by the statistics of the batch, which leaves a single position as it is instead of refusing it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, track_running_stats=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the normalised maps (B,C,h,w), scaled and shifted."""
        if maps.numel() == maps.shape[1]:
            # One value for each channel has no spread; mean 0 and variance 1 is what fresh running statistics say.
            return maps * self.weight.view(1, -1, 1, 1) + self.bias.view(1, -1, 1, 1)
        return super().forward(maps)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution with batch norm around a narrower width, plus the input; no ReLU after the sum."""

    def __init__(self, channels: int, reduction: int = 4) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False),
            BatchNorm(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            BatchNorm(inner),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1, bias=False),
            BatchNorm(channels),
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Return maps of the same shape (B,C,h,w)."""
        result: Tensor = maps + self.layers(maps)
        return result


class Denoiser(nn.Module):
    """Predicts the noise in maps (B,C,h,w) at the times (B,); a learned vector for the time is added to every position.

    ``kernel`` 3 sees each position's neighbours, 1 only the position.
    """

    def __init__(self, channels: int, kernel: Kernel) -> None:
        super().__init__()
        self.times = nn.Embedding(TIME_ROWS, channels)
        wide = 4 * channels
        self.layers = (
            nn.Sequential(
                Bottleneck(channels),
                Bottleneck(channels),
                nn.Conv2d(channels, channels, 1, bias=False),
                BatchNorm(channels),
            )
            if kernel == 3
            else nn.Sequential(
                nn.Conv2d(channels, wide, 1, bias=False),
                BatchNorm(wide),
                nn.ReLU(),
                nn.Conv2d(wide, channels, 1, bias=False),
                BatchNorm(channels),
                nn.Conv2d(channels, wide, 1, bias=False),
                BatchNorm(wide),
                nn.ReLU(),
                nn.Conv2d(wide, channels, 1),
            )
        )

    def forward(self, noisy: Tensor, time: Tensor) -> Tensor:
        """Return the predicted noise (B,C,h,w)."""
        result: Tensor = self.layers(noisy + self.times(time)[:, :, None, None])
        return result


class NoiseAdapter(nn.Module):
    """Says for each image how much of the student's map stays when noise is mixed in: gamma in (0,1)."""

    def __init__(self, channels: int, kernel: Kernel) -> None:
        super().__init__()
        self.layers: nn.Module = (
            Bottleneck(channels, adapter_reduction(channels))
            if kernel == 3
            else nn.Sequential(
                nn.Conv2d(channels, 2 * channels, 1, bias=False),
                BatchNorm(2 * channels),
                nn.ReLU(),
                nn.Conv2d(2 * channels, channels, 1, bias=False),
                BatchNorm(channels),
            )
        )
        self.gates = nn.Linear(channels, 2)

    def forward(self, maps: Tensor, valid: Tensor | None) -> Tensor:
        """Return gamma (B,) of ``maps`` (B,C,h,w), averaged over space; ``valid`` (B,h*w) weighs the positions."""
        seen: Tensor = self.layers(maps).flatten(2)
        if valid is None:
            pooled = seen.mean(2)
        else:
            pooled = (seen * valid.unsqueeze(1)).sum(2) / valid.sum(1, keepdim=True).clamp(min=1)
        gamma: Tensor = self.gates(pooled).softmax(1)[:, 0]
        return gamma


def adapter_reduction(channels: int) -> int:
    """Return by how much the adapter narrows inside: 8, less where few channels, such as logits, come in.

    >>> [adapter_reduction(channels) for channels in (2, 19, 256)]
    [1, 2, 8]
    """
    return max(1, min(8, channels // 8))


class AutoEncoder(nn.Module):
    """Linear at each position: the teacher's width to a narrower one, and back."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), BatchNorm(width))
        self.decoder = nn.Conv2d(width, channels, 1)

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the code (B,width,h,w) of ``maps`` (B,C,h,w) and what is rebuilt from it."""
        code: Tensor = self.encoder(maps)
        rebuilt: Tensor = self.decoder(code)
        return code, rebuilt
