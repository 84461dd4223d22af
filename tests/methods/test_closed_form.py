"""Figures of the published functions for closed-form inputs (float64), and label-sized plain loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from segtailor.losses import channel_kl, pixel_kl
from segtailor.methods._kt_terms import (
    clean_terms,
    cosines,
    published_contrast,
    published_matching,
    published_terms,
    recombine,
)


def wave(shape: tuple[int, ...], slope: float, kind: str) -> Tensor:
    index = torch.arange(math.prod(shape), dtype=torch.float64) * slope
    return (index.sin() if kind == "sin" else index.cos()).reshape(shape)


def close(value: Tensor, expected: float) -> None:
    torch.testing.assert_close(
        value.detach().double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-11
    )


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    shape = (2, 5, 4, 8)
    return (3 * wave(shape, 0.23, "cos") + 0.5).requires_grad_(), 4 * wave(shape, 0.37, "sin")


@pytest.fixture
def target() -> Tensor:
    image, row, column = torch.meshgrid(torch.arange(2), torch.arange(32), torch.arange(64), indexing="ij")
    value = (row + 2 * column + 3 * image) // 7 % 6
    return torch.where(value == 5, 255, torch.where(value == 4, 0, value)).to(torch.uint8)


def test_divergences(logits: tuple[Tensor, Tensor]) -> None:
    close(channel_kl(*logits, 4), 5.394116575776)
    # The collected figure for T = 1 reads 2.304661763900; an independent sum in plain floats gives this one.
    close(pixel_kl(*logits, 1), 2.304662163900)
    close(pixel_kl(*logits, 4), 4.427393738232)


def test_logit_tailoring(logits: tuple[Tensor, Tensor], target: Tensor) -> None:
    student, teacher = logits
    terms = published_terms(student, teacher, target, 4)
    for value, expected in zip(terms, (4.045580347206, 0.075975110694, 1.200967829482), strict=True):
        close(value, expected)
    sum(terms, torch.zeros(())).backward()
    gradient = student.grad
    assert gradient is not None
    close(gradient.norm(), 0.167956902909)
    close(gradient[0, 0, 0, 0], 0.009771903080)
    close(gradient[1, 3, 2, 5], -0.005735010263)
    close(gradient[:, 4].abs().sum(), 0.529425615121)


def test_feature_tailoring_with_identity_tailors() -> None:
    teacher = wave((2, 6, 4, 8), 0.11, "sin").relu()
    for early, mixed, other, figure, norm in (
        (True, 213.455254723529, 263.231411634560, 0.280243917144, 0.082612053214),
        (False, 252.255411303388, 256.823970737029, 0.059110718177, 0.021137513618),
    ):
        student = wave((2, 4, 4, 8), 0.19, "cos").relu().requires_grad_()
        mixing, feature = (cosines(teacher, student), student) if early else (cosines(student, teacher), teacher)
        close(mixing.sum(), 21.510253152816)
        close(recombine(mixing, feature).sum(), mixed)
        close(recombine(1 - mixing, feature).sum(), other)
        value = published_matching(student, teacher, recombine, early, 4)
        close(value, figure)
        close(torch.autograd.grad(value, student)[0].norm(), norm)
    triplet = published_contrast(student, teacher, lambda feature: feature, recombine, False, 1.0)
    close(triplet, 0.962001993918)
    close(torch.autograd.grad(triplet, student)[0].norm(), 0.423846845110)


def loop_channel_kl(student: Tensor, teacher: Tensor) -> Tensor:
    own, guide = (student / 4).log_softmax(0), (teacher.detach() / 4).log_softmax(0)
    return 16 * (guide.exp() * (guide - own)).sum()


def enlarged(logits: Tensor, size: tuple[int, int]) -> Tensor:
    rows = torch.tensor([i * logits.shape[2] // size[0] for i in range(size[0])])
    columns = torch.tensor([j * logits.shape[3] // size[1] for j in range(size[1])])
    return logits[:, :, rows][:, :, :, columns]


def loop_published(student: Tensor, teacher: Tensor, target: Tensor) -> list[Tensor]:
    size, classes = target.shape[1:], student.shape[1]
    big_student, big_teacher = enlarged(student, size), enlarged(teacher, size)
    terms = [torch.zeros((), dtype=torch.float64) for _ in range(3)]
    for image in range(len(target)):
        for label in range(classes):
            maps = []
            is_class = target[image] == label
            for logits in (big_student, big_teacher):
                values = logits[image, label]
                trusted = values[is_class & (values > 0)]
                inside, outside = values * is_class, values * ~is_class
                if len(trusted):
                    inside = torch.where(is_class & (values < trusted.mean()), trusted.mean(), inside)
                mean = outside.sum() / values.numel()
                outside = torch.where(~is_class & (values > mean), mean, outside)
                maps.append((values.flatten(), inside.flatten(), outside.flatten()))
            own, guide = maps
            terms[0] = terms[0] + loop_channel_kl(own[0], guide[1] + guide[2])
            terms[1] = terms[1] + loop_channel_kl(own[1], guide[1])
            terms[2] = terms[2] + loop_channel_kl(own[2], guide[2])
    return [term / (len(target) * classes) for term in terms]


def loop_clean(student: Tensor, teacher: Tensor, target: Tensor) -> list[Tensor]:
    size, classes = target.shape[1:], student.shape[1]
    big_student, big_teacher = enlarged(student, size), enlarged(teacher, size)
    terms = [torch.zeros((), dtype=torch.float64) for _ in range(3)]
    for image in range(len(target)):
        valid = target[image] != 255
        present = [label for label in range(classes) if (target[image] == label).any()]
        for label in range(classes):
            own, values, is_class = big_student[image, label], big_teacher[image, label], target[image] == label
            tailored = values.clone()
            if label in present:
                right = is_class & (big_teacher[image].argmax(0) == label)
                mean = values[right if right.any() else is_class].mean()
                tailored = torch.where(is_class & (values < mean), mean, tailored)
            others = valid & ~is_class
            if others.any():
                mean = values[others].mean()
                tailored = torch.where(others & (values > mean), mean, tailored)
            if valid.any():
                terms[0] = terms[0] + loop_channel_kl(own[valid], tailored[valid]) / classes
            if is_class.any():
                terms[1] = terms[1] + loop_channel_kl(own[is_class], tailored[is_class]) / len(present)
            if others.any():
                terms[2] = terms[2] + loop_channel_kl(own[others], tailored[others]) / classes
    return [term / len(target) for term in terms]


@pytest.mark.parametrize("variant", ["published", "clean"])
@pytest.mark.parametrize("size", [(32, 64), (29, 53), (45, 40), (4, 8), (3, 5)])
def test_logit_tailoring_equals_label_sized_loops(
    logits: tuple[Tensor, Tensor], target: Tensor, size: tuple[int, int], variant: str
) -> None:
    student, teacher = logits
    # Enlarged or cropped, image 1 wholly void below its top, and class 2 never positive.
    labels = target.repeat(1, 2, 1)[:, : size[0], : size[1]].clone()
    labels[1, size[0] // 2 :] = 255
    student, teacher = (
        torch.cat((value[:, :2], -value[:, 2:3].abs() - 1, value[:, 3:]), 1).detach().requires_grad_()
        for value in (student, teacher)
    )
    ours = (published_terms if variant == "published" else clean_terms)(student, teacher, labels, 4)
    loops = (loop_published if variant == "published" else loop_clean)(student, teacher, labels)
    for value, expected in zip(ours, loops, strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=1e-9, atol=1e-12)
        gradients = [torch.autograd.grad(item, student, retain_graph=True)[0] for item in (value, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-6, atol=1e-9)
