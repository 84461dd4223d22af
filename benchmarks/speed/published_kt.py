"""Knowledge Tailoring as published: label-sized maps, loops over images and classes; the reference of loss_cost.

Written from the description of the published computation, without its needless copies; its values are those of the
golden figures. Only for comparison: the package computes the same at logit size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segtailor.methods._kt_terms import FeatureTailoring
from segtailor.models.network import SegOutput


def channel_kl(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    own = F.log_softmax(student.flatten(2) / temperature, dim=2)
    guide = F.softmax(teacher.detach().flatten(2) / temperature, dim=2)
    return F.kl_div(own, guide, reduction="sum") * temperature**2 / (student.shape[0] * student.shape[1])


def tailored_maps(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the class maps and the non-class maps of label-sized ``logits`` (B,K,H,W)."""
    classes = torch.arange(logits.shape[1]).view(1, -1, 1, 1)
    is_class = target.unsqueeze(1) == classes
    of_class, of_others = logits * is_class, logits * ~is_class
    for image in range(logits.shape[0]):
        for label in range(logits.shape[1]):
            inside, outside = of_class[image, label], of_others[image, label]
            mean = inside[inside > 0].mean()
            low = is_class[image, label] & (inside < mean)
            of_class[image, label][low] = mean
            mean = outside.mean()
            high = ~is_class[image, label] & (outside > mean)
            of_others[image, label][high] = mean
    return of_class, of_others


def logit_tailoring(student: Tensor, teacher: Tensor, target: Tensor, temperature: float) -> dict[str, Tensor]:
    size = (target.shape[1], target.shape[2])
    student, teacher = (F.interpolate(logits, size=size, mode="nearest") for logits in (student, teacher))
    with torch.no_grad():
        guide_class, guide_others = tailored_maps(teacher, target)
    own_class, own_others = tailored_maps(student, target)
    return {
        "lt_all": channel_kl(student, guide_class + guide_others, temperature),
        "lt_class": channel_kl(own_class, guide_class, temperature),
        "lt_nonclass": channel_kl(own_others, guide_others, temperature),
    }


def recombined(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return the channels of ``columns`` mixed by their cosines with those of ``rows``, and by the complement."""
    high, low = [], []
    for row, column in zip(rows.flatten(2), columns.flatten(2), strict=True):
        mixing = F.normalize(row, dim=1) @ F.normalize(column, dim=1).T
        high.append(mixing @ column)
        low.append((1 - mixing) @ column)
    shape = (*rows.shape[:2], *columns.shape[2:])
    return torch.stack(high).view(shape), torch.stack(low).view(shape)


def feature_tailoring(
    student: Tensor, teacher: Tensor, modules: FeatureTailoring, early: bool, temperature: float, margin: float
) -> dict[str, Tensor]:
    layers = modules.tailor(early).layers
    high, low = recombined(teacher, student) if early else recombined(student, teacher)
    positive, negative = layers(high), layers(low)
    anchor = modules.student_projector(student) if early else student
    own, guide = (positive, teacher) if early else (student, positive)
    return {
        "ft": channel_kl(own, guide, temperature),
        "contrastive": F.triplet_margin_loss(anchor, positive, negative, margin=margin, eps=1e-7),
    }


def published_terms(
    student: SegOutput, teacher: SegOutput, target: Tensor, modules: FeatureTailoring, early: bool
) -> dict[str, Tensor]:
    """Return all published terms, unweighted but for the 0.4 of the auxiliary logits."""
    temperature, margin = 4.0, 1.0
    terms = {"kd": channel_kl(student.logits, teacher.logits, temperature)}
    if student.aux_logits is not None and teacher.aux_logits is not None:
        terms["kd_aux"] = 0.4 * channel_kl(student.aux_logits, teacher.aux_logits, temperature)
    terms |= logit_tailoring(student.logits, teacher.logits, target, temperature)
    assert student.classifier_input is not None
    assert teacher.classifier_input is not None
    return terms | feature_tailoring(
        student.classifier_input, teacher.classifier_input, modules, early, temperature, margin
    )
