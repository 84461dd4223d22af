"""How far the denoised student is from its goal: a mean over all positions, or over the valid pixels of ``target``."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from segtailor.losses import Step, pixel_kl, pixel_mean, recomputed, valid_counts
from segtailor.methods.dist import correlation, intra_by_image, probabilities


def mse(refined: Tensor, goal: Tensor, target: Tensor | None, step: Step) -> Tensor:
    """Return the mean squared error of two maps (B,C,h,w)."""
    return pixel_mean((refined - goal).square().mean(1), target, step)


def kl(refined: Tensor, goal: Tensor, target: Tensor | None, step: Step) -> Tensor:
    """Return KL(goal || refined) over classes, pixel by pixel."""
    return pixel_kl(refined, goal, 1.0, target, step)


def dist(refined: Tensor, goal: Tensor, target: Tensor | None, step: Step) -> Tensor:
    """Return the two Pearson distances of DIST, between and within classes, summed.

    With ``target`` the second is over one image each, as in the method ``dist``; without, over the batch.
    """
    valid = None if target is None else valid_counts(target, (refined.shape[-2], refined.shape[-1]))

    def compute(refined: Tensor, goal: Tensor) -> tuple[Tensor, Tensor]:
        own, guide = probabilities(refined), probabilities(goal)
        cells = 1 - correlation(own, guide, 1).view(len(refined), *refined.shape[2:])
        if valid is None:
            return cells, 1 - correlation(own, guide, (0, 2)).mean()
        return cells, intra_by_image(own, guide, valid).mean()

    cells, within = recomputed(compute, refined, goal)
    return pixel_mean(cells, target, step) + within


DISTANCES: dict[str, Callable[[Tensor, Tensor, Tensor | None, Step], Tensor]] = {"dist": dist, "kl": kl, "mse": mse}
