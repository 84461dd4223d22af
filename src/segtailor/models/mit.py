"""Mix Transformer (MiT-B0 to B5), SegFormer's encoder (Xie et al. 2021, arXiv:2105.15203).

Layer norm's epsilon is 1e-6 in the blocks and at the stage ends, 1e-5 in the patch embeddings and in the sequence
reduction, as in the published checkpoints. NVIDIA's own ImageNet weights may not be used commercially.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS_PER_STAGE = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
MLP_RATIO = 4
DROP_PATH = 0.1


class MiTSize(NamedTuple):
    """Channels and block counts of the four stages, and the decoder width that SegFormer pairs them with."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]
    decoder_width: int


_WIDE = (64, 128, 320, 512)
MIT_SIZES: dict[str, MiTSize] = {
    "mit_b0": MiTSize((32, 64, 160, 256), (2, 2, 2, 2), 256),
    "mit_b1": MiTSize(_WIDE, (2, 2, 2, 2), 256),
    "mit_b2": MiTSize(_WIDE, (3, 4, 6, 3), 768),
    "mit_b3": MiTSize(_WIDE, (3, 4, 18, 3), 768),
    "mit_b4": MiTSize(_WIDE, (3, 8, 27, 3), 768),
    "mit_b5": MiTSize(_WIDE, (3, 6, 40, 3), 768),
}


def find_mit(channels: tuple[int, ...], depths: tuple[int, ...]) -> str | None:
    """Return the name of the size with these ``channels`` and ``depths``, None where there is none."""
    return next((name for name, size in MIT_SIZES.items() if (size.channels, size.depths) == (channels, depths)), None)


def to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Return ``tokens`` (B,height*width,C) as a map (B,C,height,width)."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], height, width)


def to_tokens(x: Tensor) -> Tensor:
    """Return a map (B,C,h,w) as tokens (B,h*w,C)."""
    return x.flatten(2).transpose(1, 2)


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch for a whole image with probability ``rate`` while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return ``x`` (B,N,C), scaled so that its mean is kept."""
        if not self.training or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        mask = torch.rand(x.shape[0], 1, 1, dtype=torch.float32, device=x.device) < keep
        return x * (mask.to(x.dtype) / keep)


class PatchEmbedding(nn.Module):
    """An overlapping strided convolution and a layer norm; (B,in,h,w) -> tokens (B,N,out) and their grid."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(channels, eps=1e-5)

    def forward(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Return tokens, grid height and grid width."""
        x = self.proj(x)
        return self.norm(to_tokens(x)), x.shape[-2], x.shape[-1]


class ReducedAttention(nn.Module):
    """Self-attention whose keys and values come from a grid reduced by a strided convolution."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)
        self.proj = nn.Linear(channels, channels)
        self.sr: nn.Conv2d | None = None
        self.norm: nn.LayerNorm | None = None
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, stride=reduction)
            self.norm = nn.LayerNorm(channels, eps=1e-5)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return attended tokens (B,N,C)."""
        query: Tensor = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        if self.sr is not None and self.norm is not None:
            x = self.norm(to_tokens(self.sr(to_map(x, height, width))))
        key, value = self.kv(x).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.proj(attended.transpose(1, 2).flatten(2))
        return projected


class DepthwiseConv(nn.Module):
    """The 3x3 depthwise convolution inside the feed-forward part, which replaces a position code."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return convolved tokens (B,N,C)."""
        return to_tokens(self.dwconv(to_map(x, height, width)))


class MixFeedForward(nn.Module):
    """Linear, depthwise convolution, GELU, linear."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, MLP_RATIO * channels)
        self.dwconv = DepthwiseConv(MLP_RATIO * channels)
        self.fc2 = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return transformed tokens (B,N,C)."""
        return self.fc2(F.gelu(self.dwconv(self.fc1(x), height, width)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """Attention and feed-forward, each behind a layer norm and around a residual."""

    def __init__(self, channels: int, heads: int, reduction: int, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = ReducedAttention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = MixFeedForward(channels)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Return tokens (B,N,C)."""
        x = x + self.drop_path(self.attn(self.norm1(x), height, width))
        out: Tensor = x + self.drop_path(self.mlp(self.norm2(x), height, width))
        return out


class MixTransformer(nn.Module):
    """Four stages at strides 4, 8, 16 and 32; (B,3,H,W) -> four maps, finest first. H and W are at least 32."""

    def __init__(self, size: MiTSize) -> None:
        super().__init__()
        total = sum(size.depths)
        rates = iter([DROP_PATH * index / (total - 1) for index in range(total)])
        inputs = (3, *size.channels[:3])
        # Names and order of the published checkpoints: all embeddings first, then blocks and norm stage by stage.
        for index in range(4):
            kernel, stride = (7, 4) if index == 0 else (3, 2)
            embedding = PatchEmbedding(inputs[index], size.channels[index], kernel, stride)
            self.add_module(f"patch_embed{index + 1}", embedding)
        for index, (channels, depth) in enumerate(zip(size.channels, size.depths, strict=True)):
            blocks = [Block(channels, HEADS_PER_STAGE[index], REDUCTIONS[index], next(rates)) for _ in range(depth)]
            self.add_module(f"block{index + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{index + 1}", nn.LayerNorm(channels, eps=1e-6))
        self.apply(_initialise)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the four normalized maps."""
        maps = []
        for index in range(1, 5):
            tokens, height, width = self.get_submodule(f"patch_embed{index}")(x)
            for block in self.get_submodule(f"block{index}").children():
                tokens = block(tokens, height, width)
            x = to_map(self.get_submodule(f"norm{index}")(tokens), height, width).contiguous()
            maps.append(x)
        return maps


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
