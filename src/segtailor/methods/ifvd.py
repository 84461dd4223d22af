"""Intra-class feature variation: each pixel's cosine to its class's mean follows the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import NonNegativeFloat
from torch import Tensor

from segtailor.losses import Step, nearest_labels
from segtailor.methods.base import Channels, Method, VariantOptions, option, read_pair, widths_of
from segtailor.models.network import SegOutput


class ClassVariationOptions(VariantOptions):
    """Options of ``ifvd``."""

    ifvd: NonNegativeFloat = option(20.0, "weight of the term", source="CIRKD benchmark (the paper: 50; its code: 200)")


def class_variation(feature: Tensor, membership: Tensor, eps: float = 1e-8) -> Tensor:
    """Return the cosine between each position's vector and the mean vector of its class in that image: (B,n).

    ``feature`` (B,C,n); ``membership`` (B,K,n) is 1 where a position is of a class, 0 elsewhere. Positions of no class
    enter no mean and give 0. No center is copied to its positions: all cosines come from one product of matrices.

    >>> class_variation(torch.tensor([[[1.0, 0.0, 5.0], [0.0, 1.0, 5.0]]]), torch.tensor([[[1.0, 1.0, 0.0]]])).tolist()
    [[0.7071067690849304, 0.7071067690849304, 0.0]]
    """
    centers = torch.bmm(feature, membership.mT) / (membership.sum(2) + 1e-6).unsqueeze(1)
    along = torch.bmm(F.normalize(centers, dim=1, eps=eps).mT, feature)
    lengths = torch.linalg.vector_norm(feature, dim=1).clamp(min=eps)
    cosines: Tensor = (along * membership).sum(1) / lengths
    return cosines


class ClassVariation(Method[ClassVariationOptions]):
    """Squared error between maps of each pixel's cosine to the mean of its class (Wang et al., ECCV 2020).

    Term ``ifvd``; means are taken in each image by itself, and the gradient flows through the student's. A cell of the
    grid has the class of its top-left label pixel. ``published`` reads the feature after dropout and counts void cells
    in the mean, where they add 0; ``clean`` reads it before dropout and averages over the cells with a class.

        ifvd = mean_x (m_s(x) - m_t(x))^2, m(x) = cos(f(x), mean of f over the class of x)

    - Published figures: Cityscapes val, DeepLabV3-R18, with kd and adversarial: 75.59, alone 74.21 (CIRKD benchmark)
    - Limitations: small crops, where a class's mean comes from few pixels (a lone one is its own mean and adds
      nothing); images without labels; relations between classes are not transferred
    - Source: Wang et al., ECCV 2020 (IFVD), as run in the CIRKD benchmark
    """

    name = "ifvd"
    summary = "intra-class feature variation: pixels' cosines to their class's mean follow the teacher"
    channel_alignment = "nothing to align: cosines have no channels"
    inputs = frozenset()

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        self.labels = "classes" if options.ifvd else "unused"
        if options.ifvd:
            widths_of(student, teacher)
            self.inputs = frozenset({options.feature_tap, "feature"})

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return ``{"ifvd": ...}``, or nothing where its weight is 0."""
        options = self.options
        if not options.ifvd:
            return {}
        own, guide = read_pair(student, teacher, options.feature_tap)
        size = own.shape[-2:]
        classes = torch.arange(self.num_classes, device=own.device).view(1, -1, 1)
        membership = (nearest_labels(target, size).flatten(1).unsqueeze(1) == classes).to(own.dtype)
        # A larger floor for clean, so that a silent position does not send back a gradient of 1e8.
        eps = 1e-4 if options.clean else 1e-8
        maps = [class_variation(feature.flatten(2), membership, eps) for feature in (own, guide)]
        errors = (maps[0] - maps[1]).square()
        if not options.clean:
            return {"ifvd": options.ifvd * errors.mean()}
        count = step.count(lambda labels: (nearest_labels(labels, size) < self.num_classes).sum(), target)
        return {"ifvd": options.ifvd * errors.sum() / count}
