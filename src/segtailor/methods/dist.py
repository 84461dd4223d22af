"""DIST: the student's class probabilities correlate with the teacher's, inside each pixel and inside each class."""

from __future__ import annotations

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from segtailor.losses import Step, full_precision, pixel_mean, recomputed, to_grid, valid_counts
from segtailor.methods.base import Channels, Method, VariantOptions, option
from segtailor.methods.kd import DESCRIPTION, check_classes, standardized
from segtailor.models.network import SegOutput

CODE = "authors' segmentation code"
NEGLIGIBLE = 1e-6
"""Variance over an image below which a class's probabilities hold little information: a deviation of 0.001."""


class DISTOptions(VariantOptions):
    """Options of ``dist``."""

    inter: NonNegativeFloat = option(1.0, "weight of the correlation over classes, pixel by pixel (beta)", source=CODE)
    intra: NonNegativeFloat = option(1.0, "weight of the correlation over pixels, class by class (gamma)", source=CODE)
    aux: NonNegativeFloat = option(
        0.4, "factor of both on the auxiliary logits, where both networks have them; 0 drops these terms", source=CODE
    )
    temperature: PositiveFloat = option(1.0, "divides the logits before the softmax; no factor T^2", source=CODE)
    standardise: bool = option(False, DESCRIPTION, source=f"off in the {CODE}")


class DIST(Method[DISTOptions]):
    """Pearson distances between class probabilities (Huang et al., NeurIPS 2022).

    Terms ``inter`` and ``intra``, and ``inter_aux`` and ``intra_aux`` on the auxiliary logits. ``published`` counts
    void like any pixel and correlates a class over all pixels of the device's batch. ``clean`` leaves void out, and
    correlates each class over the valid pixels of one image: a mean over images, so that it does not depend on how
    the batch is split. There a class counts as v / (v + 1e-6), v the teacher's variance of its probability over
    the image, so that classes that the teacher does not see do not count; the same 1e-6 guards the correlation.

        inter = 1 - mean_x corr_k(p_s(k,x), p_t(k,x)), p = softmax_k(logits / T)
        intra = 1 - mean_k corr_x(p_s(k,x), p_t(k,x))
        inter_aux, intra_aux = 0.4 times the same on auxiliary logits

    - Published figures: Cityscapes val, DeepLabV3-R18: 77.10; alone, retrained by its code, 76.31
    - Limitations: two classes: the correlation of two numbers is 1 or -1, so that `inter` has no gradient; where
      calibrated probabilities are wanted, since a correlation ignores scale and shift: take kd
    - Source: Huang et al., NeurIPS 2022 (arXiv 2205.10536), as in hunto/DIST_KD, segmentation
    """

    name = "dist"
    summary = "DIST: probabilities correlate with the teacher's, over classes and over pixels"

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        if options.standardise:
            check_classes(self.name, self.num_classes)
        self.labels = "ignore_mask" if options.clean else "unused"
        self.inputs = frozenset({"logits", "aux_logits"} if options.aux else {"logits"})

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the terms whose weight is not 0."""
        terms = self._pair(student.logits, teacher.logits, target, step, 1.0, "")
        if self.options.aux and student.aux_logits is not None and teacher.aux_logits is not None:
            terms |= self._pair(student.aux_logits, teacher.aux_logits, target, step, self.options.aux, "_aux")
        return terms

    def _pair(
        self, student: Tensor, teacher: Tensor, target: Tensor, step: Step, factor: float, suffix: str
    ) -> dict[str, Tensor]:
        options = self.options
        size = student.shape[-2:]
        teacher = to_grid(teacher, size)
        terms = {}
        settings = options.temperature, options.standardise
        if options.inter:
            cells = recomputed(_inter_cells, student, teacher, *settings)
            terms[f"inter{suffix}"] = (
                factor * options.inter * pixel_mean(cells, target if options.clean else None, step)
            )
        if options.intra:
            valid = valid_counts(target, size) if options.clean else None
            distance = recomputed(_intra, student, teacher, valid, *settings)
            terms[f"intra{suffix}"] = factor * options.intra * distance
        return terms


def probabilities(logits: Tensor, temperature: float = 1.0, standardise: bool = False) -> Tensor:
    """Return the softmax over classes of ``logits`` (B,K,h,w), standardized before it if wished, as (B,K,h*w)."""
    values = standardized(logits) if standardise else full_precision(logits)
    return (values.flatten(2) / temperature).softmax(1)


def correlation(first: Tensor, second: Tensor, dim: int | tuple[int, ...], eps: float = 1e-8) -> Tensor:
    """Return Pearson's correlation over ``dim``, ``eps`` added to the product of norms; 0 where one is constant.

    >>> round(correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.0, 4.0, 7.0]), 0).item(), 4)
    0.9934
    """
    first, second = (values - values.mean(dim, keepdim=True) for values in (first, second))
    norms = torch.linalg.vector_norm(first, dim=dim) * torch.linalg.vector_norm(second, dim=dim)
    result: Tensor = (first * second).sum(dim) / (norms + eps)
    return result


def intra_by_image(student: Tensor, teacher: Tensor, valid: Tensor, eps: float = NEGLIGIBLE) -> Tensor:
    """Return 1 - the correlation over an image's positions, averaged over the classes that the teacher sees: (B,).

    ``student`` and ``teacher`` (B,K,n) are probabilities; position x counts ``valid`` (B,n) times. With variances v
    and covariance c the correlation is ``(c + eps) / sqrt((v_s + eps) (v_t + eps))``, which is 1 where the two are
    equal and never more; class k weighs ``v_t / (v_t + eps)``. An image without valid positions gives 0.

    >>> teacher = torch.tensor([[[0.9, 0.1, 0.3], [0.1, 0.9, 0.7]]])
    >>> round(intra_by_image(1 - teacher, teacher, torch.tensor([[1.0, 1.0, 0.0]])).item(), 4)
    2.0
    """
    weight = (valid / valid.sum(1, keepdim=True).clamp(min=1)).to(student.dtype).unsqueeze(1)
    student, teacher = (values - (values * weight).sum(2, keepdim=True) for values in (student, teacher))
    covariance, own, guide = (
        (weight * first * second).sum(2)
        for first, second in ((student, teacher), (student, student), (teacher, teacher))
    )
    distance = 1 - (covariance + eps) * ((own + eps) * (guide + eps)).rsqrt()
    share = guide / (guide + eps)
    return (share * distance).sum(1) / share.sum(1).clamp(min=eps)


def _inter_cells(student: Tensor, teacher: Tensor, temperature: float, standardise: bool) -> Tensor:
    own, guide = (probabilities(logits, temperature, standardise) for logits in (student, teacher))
    return 1 - correlation(own, guide, 1).view(len(student), *student.shape[-2:])


def _intra(student: Tensor, teacher: Tensor, valid: Tensor | None, temperature: float, standardise: bool) -> Tensor:
    own, guide = (probabilities(logits, temperature, standardise) for logits in (student, teacher))
    if valid is None:
        return 1 - correlation(own, guide, (0, 2)).mean()
    return intra_by_image(own, guide, valid).mean()
