"""The maths that the methods share: pure functions of tensors, float32 inside autocast, teacher detached."""

from __future__ import annotations

from segtailor.losses.counts import class_counts, global_batch, global_count, nearest_labels, pixel_mean, valid_counts
from segtailor.losses.divergence import channel_divergence, channel_kl, cross_entropy, pixel_kl
from segtailor.losses.maps import full_precision, standardise, to_grid
from segtailor.losses.recompute import recomputed

__all__ = [
    "channel_divergence",
    "channel_kl",
    "class_counts",
    "cross_entropy",
    "full_precision",
    "global_batch",
    "global_count",
    "nearest_labels",
    "pixel_kl",
    "pixel_mean",
    "recomputed",
    "standardise",
    "to_grid",
    "valid_counts",
]
