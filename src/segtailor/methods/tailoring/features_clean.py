"""Feature tailoring and its triplet, mended.

Both features are standardised per channel over valid positions, so that neither scale nor offset matters. Channels are
recombined by convex weights that carry no gradient (a goal does not move because the student pushes it), or by a
convolution that learns. Tailors learn; their output is added to the recombined maps and standardised again, so that a
constant output, which costs nothing under the published divergence, costs as much as an unrelated one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from segtailor.losses import recomputed, standardise
from segtailor.methods.tailoring.recombination import Tailoring, cosines, recombine
from segtailor.methods.tailoring.triplet import triplet


def mixing_weights(
    student: Tensor, teacher: Tensor, valid: Tensor, early: bool, sharpness: float
) -> tuple[Tensor, Tensor]:
    """Return convex weights (B,C,D) that favour correlated channels, and weights that favour the others.

    Softmax over the recombined channels of the correlation, and of its complement, divided by ``sharpness``. ``valid``
    (B,h*w) weighs the positions. Constants.
    """
    with torch.no_grad():
        student, teacher = standardise(student, valid), standardise(teacher, valid)
        mixing = cosines(teacher, student) if early else cosines(student, teacher)
        return (mixing / sharpness).softmax(2), ((1 - mixing) / sharpness).softmax(2)


def matching(
    student: Tensor, teacher: Tensor, valid: Tensor, tailoring: Tailoring | None, mixing: Tensor, early: bool
) -> Tensor:
    """Return the feature term: 1 minus the correlation of a channel with its goal, averaged over channels and images.

    That is half the mean squared distance of standardised channels, a standardised regression. ``early`` compares the
    tailored student with the teacher, otherwise the student with the tailored teacher; the gradient reaches the tailor
    and a trained ``mixing`` in both. Without ``tailoring`` channels are only recombined. Wholly void images give 0.
    """

    def compute(student: Tensor, teacher: Tensor, mixing: Tensor) -> Tensor:
        student, teacher = standardise(student, valid), standardise(teacher, valid)
        if early:
            student = _tailored(student, valid, tailoring, mixing)
        else:
            teacher = _tailored(teacher, valid, tailoring, mixing)
        return channel_squares(student, teacher, valid).mean() / 2

    return recomputed(compute, student, teacher, mixing)


def contrast(
    student: Tensor,
    teacher: Tensor,
    valid: Tensor,
    projector: Tensor | None,
    tailoring: Tailoring | None,
    mixing: tuple[Tensor, Tensor],
    early: bool,
    margin: float,
) -> Tensor:
    """Return the triplet on whole channels at unit norm; positive and negative are constants.

    Neither the student nor a tailor may move the goals to please this term; it reaches the student through the anchor,
    which ``projector`` (C_t,C_s) takes to the width of the goals where that is another.
    """
    with torch.no_grad():
        feature = standardise(student if early else teacher, valid)
        near, far = (_tailored(feature, valid, tailoring, weights) for weights in mixing)
    return triplet(student, projector, near, far, valid, margin)


def _tailored(feature: Tensor, valid: Tensor, tailoring: Tailoring | None, mixing: Tensor) -> Tensor:
    recombined = recombine(mixing, feature)
    return standardise(recombined if tailoring is None else tailoring(mixing, feature).add_(recombined), valid)


def channel_squares(first: Tensor, second: Tensor, valid: Tensor) -> Tensor:
    """Return the squared distances, in [0,4], between channels of two standardised maps: (B,C,h,w) give (B,C).

    ``valid`` (B,h*w) weighs the positions. Half the square is 1 minus the correlation; wholly void images give 0.

    >>> maps = standardise(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    >>> round(channel_squares(maps, -maps, torch.ones(1, 3)).item(), 3)
    4.0
    """
    weight = valid / valid.sum(1, keepdim=True).clamp(min=1)
    return torch.bmm((first - second).flatten(2).square(), weight.unsqueeze(2)).squeeze(2)
