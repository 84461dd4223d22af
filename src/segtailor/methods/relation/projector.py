"""What lifts the student's pixels to the teacher's width before they are compared with remembered ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segtailor.losses import standardise


class RelationProjector(nn.Module):
    """Two linear layers with batch norm and ReLU between, on rows (N,C); with ``valid`` (N), void is not seen."""

    def __init__(self, own: int, guide: int) -> None:
        super().__init__()
        self.first = nn.Linear(own, guide, bias=False)
        # Used in training alone, so nothing would read running statistics.
        self.norm = nn.BatchNorm1d(guide, track_running_stats=False)
        self.last = nn.Linear(guide, guide, bias=False)

    def forward(self, rows: Tensor, valid: Tensor | None) -> Tensor:
        """Return (N, the teacher's width)."""
        hidden = self.first(rows)
        if valid is None:
            hidden = self.norm(hidden)
        else:
            # Batch norm over the valid rows: one image whose positions are all rows of the batch.
            maps = standardise(hidden.t()[None, :, None], valid.unsqueeze(0), self.norm.eps)
            hidden = torch.addcmul(self.norm.bias, maps[0, :, 0].t(), self.norm.weight)
        lifted: Tensor = self.last(hidden.relu())
        return lifted
