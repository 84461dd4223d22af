"""Augmentation-free dense contrastive distillation: rebuild the teacher's feature, and contrast its parts."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor, nn

from segtailor.errors import SegtailorError
from segtailor.losses import (
    OUTSIDE,
    Step,
    full_precision,
    pixel_kl,
    pixel_mean,
    recomputed,
    to_grid,
    valid_counts,
    valid_pixels,
)
from segtailor.methods.base import Channels, Method, VariantOptions, option, read_pair, read_tap, width_of
from segtailor.models.network import SegOutput

CODE = "Af-DCD's code"
BLOCK = 2**26
"""Numbers that the backward pass of one block of patches may hold: the distances before their sum over channels."""


class DenseContrastOptions(VariantOptions):
    """Options of ``afdcd``."""

    reconstruction: NonNegativeFloat = option(
        33.5,
        "weight of the masked reconstruction; 0 turns it off",
        published=2e-06,
        source="our choice: Af-DCD's 2e-6 (Cityscapes), times its 8192 positions and 2048 channels",
    )
    contrast: NonNegativeFloat = option(
        0.08,
        "weight of the contrast inside patches; 0 turns it off",
        published=0.005,
        source="our choice: Af-DCD's 5e-3 (Cityscapes), times its 16 groups",
    )
    kd: NonNegativeFloat = option(1.0, "weight of the pixel-wise KL on logits, at temperature 1", source=CODE)
    tap: str = option(
        "last", "`last` (each network's last backbone stage), `stages.N`, `feature`, or another tap", source=CODE
    )
    mask: Literal["random", "centre"] = option(
        "random", "what is hidden from the reconstruction: random positions, or the middle ninth", source=CODE
    )
    mask_ratio: Annotated[float, Field(ge=0, lt=1)] = option(0.75, "share of positions hidden at random", source=CODE)
    pool: int = option(4, "side of the max-pooling before the contrast; less on small grids", ge=1, source=CODE)
    patch: int = option(4, "side of a patch, in pooled cells", ge=1, source=CODE)
    groups: int = option(
        16, "groups that the channels are split into; fewer where they do not divide", ge=2, source=CODE
    )
    temperature: PositiveFloat = option(0.07, "divides the distances of the contrast", source=CODE)


class DenseContrast(Method[DenseContrastOptions]):
    """Masked reconstruction of the teacher's last stage, and contrast without other images (Af-DCD, NeurIPS 2023).

    The student's map is lifted to the teacher's width by a 1x1 convolution, most of its positions are set to zero, and
    two 3x3 convolutions rebuild the teacher's map from the rest: term ``reconstruction``, the squared error. For term
    ``contrast`` both maps are max-pooled and cut into patches, the channels into groups. A vector of the rebuilt map
    must find, by L1 distance, the teacher's vector of the same position and group among the patch's vectors of the
    other groups. Term ``kd`` is the pixel-wise KL on logits.

    ``published`` divides sums by the number of images, and the contrast by pooled cells too. ``clean`` hides void from
    the convolutions, the pooling and the contrast, and averages over valid pixels, channels and groups; its weights
    equal the published ones at the published shapes. On grids smaller than one patch of pooled cells the pooling
    shrinks, then the patch; what does not fill a patch is padded and left out, where the published code stops.

    Published weights beside the presets (reconstruction, contrast, kd): VOC 1e-6, 5e-3, 1; ADE20K 1e-6, 0.04, 0.5;
    COCO-Stuff 5e-6, 5e-3, 0.5; CamVid 8e-6, 0.01, 1 with ``pool: 1`` (on a grid cut to 44 x 44). The published training
    also clips the gradient of the method's own modules at norm 15; a recipe's ``train.clip`` clips all gradients
    together.

        reconstruction = mean_xc (r - t)^2, r = conv3x3(relu(conv3x3(mask * conv1x1(s))))
        contrast = mean -log softmax(-|r_pg - t_.|_1 / T) at t_pg, among it and the patch's t_qh, groups h != g
        kd = mean_x KL(softmax_k(t) || softmax_k(s))

    - Extra modules: a 1x1 convolution where widths differ, and two 3x3 convolutions at the teacher's width: 75M
      parameters at the published 2048 channels
    - Published figures: Cityscapes val, DeepLabV3-R101 to R18: 77.03, alone 74.21 (Af-DCD's README)
    - Limitations: little memory: its convolutions are as wide as the teacher's last stage; stages coarser than stride
      8, which leave a patch or two for an image
    - Source: Af-DCD, Fan et al., NeurIPS 2023 (github.com/OSVAI/Af-DCD)
    """

    name = "afdcd"
    summary = "Af-DCD: rebuild the teacher's masked feature, contrast it inside patches, KL on logits"
    channel_alignment = "a trained 1x1 convolution lifts the student's map to the teacher's width where they differ"
    rebuild: nn.Module | None

    def build(self, student: Channels, teacher: Channels) -> None:
        """Make the modules that the options need."""
        options = self.options
        self.rebuild = None
        self.labels = "ignore_mask" if options.clean else "unused"
        self.inputs = frozenset({"logits"} if options.kd else ())
        if options.reconstruction or options.contrast:
            self.taps = tap_names(options.tap, student, teacher)
            own, guide = width_of(student, self.taps[0], "student"), width_of(teacher, self.taps[1], "teacher")
            self.align = nn.Conv2d(own, guide, 1) if own != guide else nn.Identity()
            self.rebuild = nn.Sequential(
                nn.Conv2d(guide, guide, 3, padding=1), nn.ReLU(), nn.Conv2d(guide, guide, 3, padding=1)
            )
            self.groups = max(count for count in range(1, options.groups + 1) if guide % count == 0)
            if options.contrast and self.groups == 1:
                raise SegtailorError(
                    f"method afdcd cannot split the {guide} channels of the teacher's '{self.taps[1]}' into 2 to "
                    f"{options.groups} equal groups; choose other groups or another tap, or contrast: 0"
                )
            self.inputs |= frozenset(self.taps)

    def terms(self, student: SegOutput, teacher: SegOutput, target: Tensor, step: Step) -> dict[str, Tensor]:
        """Return the terms whose weight is not 0."""
        options, terms = self.options, {}
        labels = target if options.clean else None
        if self.rebuild is not None:
            own = full_precision(read_tap(student, self.taps[0], "student"))
            size = own.shape[-2:]
            guide = to_grid(read_tap(teacher, self.taps[1], "teacher"), size)
            valid = None if labels is None else valid_counts(labels, size).view(-1, 1, *size)
            lifted: Tensor = self.align(own)
            shown = self._shown(lifted)
            rebuilt = self.rebuild(lifted * (shown if valid is None else shown & (valid > 0)))
            if options.reconstruction:
                cells = recomputed(lambda own, guide: (own - guide).square().sum(1), rebuilt, guide)
                value = cells.sum() / len(cells) if labels is None else pixel_mean(cells / guide.shape[1], labels, step)
                terms["reconstruction"] = options.reconstruction * value
            if options.contrast:
                total, weight = dense_contrast(
                    rebuilt, guide, valid, self.groups, options.pool, options.patch, options.temperature
                )
                count = weight if labels is None else self.groups * step.count(valid_pixels, labels)
                terms["contrast"] = options.contrast * total / count
        if options.kd:
            terms["kd"] = options.kd * pixel_kl(*read_pair(student, teacher, "logits"), 1.0, labels, step)
        return terms

    def _shown(self, maps: Tensor) -> Tensor:
        """Return the positions (B,1,h,w) that the reconstruction sees."""
        (height, width), shape = maps.shape[-2:], (len(maps), 1, *maps.shape[-2:])
        if self.options.mask == "random":
            return torch.rand(shape, device=maps.device) <= 1 - self.options.mask_ratio
        shown = torch.ones(shape, dtype=torch.bool, device=maps.device)
        shown[:, :, height // 3 : 2 * height // 3, width // 3 : 2 * width // 3] = False
        return shown


def tap_names(tap: str, student_channels: Channels, teacher_channels: Channels) -> tuple[str, str]:
    """Return the student's and the teacher's tap; without stages on either side ``last`` is the feature.

    >>> tap_names("last", {"feature": 8, "stages.0": 4, "stages.1": 8}, {"feature": 8, "stages.0": 8})
    ('stages.1', 'stages.0')
    """
    if tap != "last":
        return tap, tap
    last = [
        max((int(name.removeprefix("stages.")) for name in channels if name.startswith("stages.")), default=-1)
        for channels in (student_channels, teacher_channels)
    ]
    return ("feature", "feature") if min(last) < 0 else (f"stages.{last[0]}", f"stages.{last[1]}")


def dense_contrast(
    student: Tensor, teacher: Tensor, valid: Tensor | None, groups: int, pool: int, patch: int, temperature: float
) -> tuple[Tensor, int]:
    """Return the cross-entropies of all vectors, each times its cell's valid pixels, summed; and the number of cells.

    ``student`` and ``teacher`` (B,C,h,w); ``valid`` (B,1,h,w) counts label pixels, None counts every cell once.
    """
    pool = max(1, min(pool, min(student.shape[-2:]) // patch))
    pooled, guide = recomputed(pooled_cells, student, valid, pool), pooled_cells(teacher, valid, pool)
    if valid is None:
        weight = guide.new_ones(len(guide), 1, *guide.shape[-2:])
    else:
        weight = F.avg_pool2d(valid, pool, ceil_mode=True, divisor_override=1)
    sides = (min(patch, guide.shape[-2]), min(patch, guide.shape[-1]))
    parts = [patches(maps, sides) for maps in (pooled, guide, weight)]
    vectors = parts[0].shape[1] * groups
    block = max(1, BLOCK // (vectors * parts[0].shape[1] * parts[0].shape[2]))
    total = torch.stack(
        [
            recomputed(patch_contrast, *items, groups, temperature)
            for items in zip(*(torch.split(part, block) for part in parts), strict=True)
        ]
    ).sum()
    return total, weight.numel()


def pooled_cells(maps: Tensor, valid: Tensor | None, pool: int) -> Tensor:
    """Max-pool ``maps``: whole windows as published, or, with counts of ``valid`` pixels, all cells that have some."""
    if valid is None:
        return F.max_pool2d(maps, pool)
    pooled = F.max_pool2d(torch.where(valid > 0, maps, OUTSIDE), pool, ceil_mode=True)
    return torch.where(pooled > OUTSIDE / 2, pooled, 0)


def patches(maps: Tensor, sides: tuple[int, int]) -> Tensor:
    """Cut ``maps`` (B,C,h,w), padded with zeros below and to the right, into patches (N, positions, C)."""
    height, width = sides
    maps = F.pad(maps, (0, -maps.shape[-1] % width, 0, -maps.shape[-2] % height))
    batch, channels, rows, columns = maps.shape
    cut = maps.view(batch, channels, rows // height, height, columns // width, width)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(-1, height * width, channels)


def patch_contrast(student: Tensor, teacher: Tensor, weight: Tensor, groups: int, temperature: float) -> Tensor:
    """Return the weighted sum of cross-entropies inside patches (N, positions, C); ``weight`` (N, positions, 1)."""
    count, positions, _ = student.shape
    own, guide = (values.reshape(count, positions * groups, -1) for values in (student, teacher))
    similarity = -torch.cdist(own, guide, p=1.0) / temperature
    index = torch.arange(positions * groups, device=student.device)
    # The same group at other positions is neither the answer nor a wrong one.
    candidates = (index.unsqueeze(1) % groups != index % groups) | (index.unsqueeze(1) == index)
    present = (weight > 0).expand(-1, -1, groups).reshape(count, 1, -1)
    margin = similarity - similarity.diagonal(dim1=1, dim2=2).unsqueeze(2)
    entropy = margin.masked_fill(~(candidates & present), OUTSIDE).logsumexp(2)
    return (entropy.view(count, positions, groups) * weight).sum()
