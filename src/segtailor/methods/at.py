"""Attention transfer: where the student's feature is active follows the teacher's."""

from __future__ import annotations

from typing import Annotated

import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat
from torch import Tensor

from segtailor.losses import Step, full_precision, valid_counts
from segtailor.methods.base import Channels, Method, VariantOptions, option, read_pair, widths_of
from segtailor.models.network import SegOutput


class AttentionTransferOptions(VariantOptions):
    """Options of ``at``."""

    at: NonNegativeFloat = option(
        1.0,
        "weight of the term, for each tap",
        published=10000.0,
        source=(
            "our choice: near the published 10000 at its grid of 64 x 128, where the mean is the sum over "
            "8192; published: CIRKD benchmark"
        ),
    )
    taps: str | Annotated[list[str], Field(min_length=1)] = option(
        "feature", "`feature` (in front of the classifier), `stages.N`, or a list of taps", source="CIRKD benchmark"
    )

    def chosen(self) -> list[str]:
        """Return the taps without repeats, in order; `decoder` is another word for `feature`, as in ``kt``."""
        taps = [self.taps] if isinstance(self.taps, str) else self.taps
        return list(dict.fromkeys("feature" if tap == "decoder" else tap for tap in taps))


def attention(feature: Tensor, multiplicity: Tensor | None = None) -> Tensor:
    """Return the mean square over channels of ``feature`` (B,C,h,w) at each position, brought to L2 norm 1: (B, h*w).

    ``multiplicity`` (B, h*w) says how often a position counts: its entry is multiplied by the square root, so that
    products of two results are sums over that many equal positions. Void positions and silent features give zeros.

    >>> import torch
    >>> attention(torch.tensor([[[[1.0, 2.0, 9.0]]]]), torch.tensor([[9.0, 1.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929, 0.0]]
    """
    energy = full_precision(feature).square().mean(1).flatten(1)
    if multiplicity is not None:
        energy = energy * multiplicity.sqrt()
    return F.normalize(energy, dim=1, eps=1e-12)


class AttentionTransfer(Method[AttentionTransferOptions]):
    """Squared error between maps of activity, one for each image and tap (Zagoruyko and Komodakis, ICLR 2017).

    Term ``at``; with several taps ``at.TAP``. ``published`` reads the feature after dropout and averages over all
    cells, so that the term shrinks as the crop grows; ``clean`` reads it before dropout, lets each cell count as often
    as it has valid label pixels, in the norm and in the sum, and does not divide by their number.

        at = mean_b sum_x (q_s(x) - q_t(x))^2, q = a / |a|, a(x) = mean_c f(c,x)^2

    - Limitations: it passes one number for each position, and nothing of which class is there; positions of little
      activity, as small or thin objects often are, hardly count
    - Source: Zagoruyko and Komodakis, ICLR 2017 (arXiv 1612.03928), as run in the CIRKD benchmark
    """

    name = "at"
    summary = "attention transfer: the map of mean squared activations, at norm 1, follows the teacher's"
    channel_alignment = "nothing to align: the maps have no channels"

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        self.tap_of: dict[str, str] = {}
        taps = options.chosen() if options.at else []
        for tap in taps:
            widths_of(student, teacher, tap)
            term = f"at.{tap}" if len(taps) > 1 else "at"
            self.tap_of[term] = options.feature_tap if tap == "feature" else tap
        self.inputs = frozenset([*self.tap_of.values(), *({"feature"} & set(taps))])
        self.labels = "ignore_mask" if options.clean and taps else "unused"

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the term of each tap, or nothing where the weight is 0."""
        terms = {}
        for term, tap in self.tap_of.items():
            own, guide = read_pair(student, teacher, tap)
            counts = valid_counts(target, own.shape[-2:]) if self.options.clean else None
            errors = (attention(own, counts) - attention(guide, counts)).square()
            terms[term] = self.options.at * (errors.mean() if counts is None else errors.sum(1).mean())
        return terms
