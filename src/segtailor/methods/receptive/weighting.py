"""How much each token counts in an image."""

from __future__ import annotations

from torch import Tensor, nn

from segtailor.losses import full_precision


class TokenWeighting(nn.Module):
    """Shares of the tokens: softmax of a 1x1 convolution of the image's mean of a 3x3 convolution, nothing between."""

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(channels, channels, 3, padding=1)
        self.shares = nn.Conv2d(channels, tokens, 1)

    def forward(self, values: Tensor, multiplicity: Tensor | None = None) -> Tensor:
        """Return (B,T), rows that sum to 1, for ``values`` (B,C,h,w).

        ``multiplicity`` (B,h*w) says how often each position counts in the mean; where it is 0 the position is zeroed
        before its neighbours see it.
        """
        values = full_precision(values)
        if multiplicity is None:
            mean = self.local(values).mean((2, 3), keepdim=True)
        else:
            counts = multiplicity.to(values.dtype).view(len(values), 1, *values.shape[2:])
            total = (self.local(values * (counts > 0)) * counts).sum((2, 3), keepdim=True)
            mean = total / counts.sum((2, 3), keepdim=True).clamp(min=1)
        result: Tensor = self.shares(mean).flatten(1).softmax(1)
        return result
