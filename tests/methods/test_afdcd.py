from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.methods import check_options, create_method
from segtailor.methods.afdcd import DenseContrast, dense_contrast, patches
from segtailor.models.network import SegOutput

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .tester import MethodTester


class TestDenseContrast(MethodTester):
    name = "afdcd"
    minimal: ClassVar = frozenset({"kd"})
    random = True
    size_matters = True  # a larger crop is pooled more, has other patches, and fewer zeros beside its 3x3 windows
    terms = frozenset({"reconstruction", "contrast", "kd"})


class TestDenseContrastCentre(MethodTester):
    name = "afdcd"
    minimal: ClassVar = frozenset({"kd"})
    options: ClassVar = {"mask": "centre", "tap": "stages.0", "groups": 4}
    size_matters = True  # as above
    terms = frozenset({"reconstruction", "contrast", "kd"})


class TestDenseContrastPublished(MethodTester):
    name = "afdcd"
    minimal: ClassVar = frozenset({"kd"})
    options: ClassVar = {"variant": "published", "mask": "centre", "contrast": 1, "reconstruction": 1}
    void_matters = True
    size_matters = True
    terms = frozenset({"reconstruction", "contrast", "kd"})


class TestDenseContrastAlone(MethodTester):
    name = "afdcd"
    options: ClassVar = {"reconstruction": 0, "kd": 0, "tap": "feature", "patch": 3}
    random = True
    size_matters = True  # as above
    terms = frozenset({"contrast"})


class TestDenseContrastReconstructionAlone(MethodTester):
    name = "afdcd"
    options: ClassVar = {"contrast": 0, "kd": 0, "mask": "centre"}
    size_matters = True  # zeros beside the 3x3 windows
    terms = frozenset({"reconstruction"})


class TestDenseContrastLogitsAlone(MethodTester):
    name = "afdcd"
    minimal: ClassVar = frozenset({"kd"})
    options: ClassVar = {"contrast": 0, "reconstruction": 0}
    terms = frozenset({"kd"})


def pixels_of(target: Tensor, size: tuple[int, int]) -> Tensor:
    """Count the valid label pixels of every cell."""
    counts = torch.zeros(len(target), *size)
    for image, i, j in (target != 255).nonzero().tolist():
        counts[image, i * size[0] // target.shape[1], j * size[1] // target.shape[2]] += 1
    return counts


def loop_contrast(
    student: Tensor, teacher: Tensor, counts: Tensor, groups: int, pool: int, patch: int, temperature: float
) -> tuple[float, float]:
    """Return the weighted sum of cross-entropies, one for each vector, and the weights' sum over cells."""
    images, _, height, width = student.shape
    rows, columns = -(-height // pool), -(-width // pool)
    cells: dict[tuple[int, int, int], tuple[Tensor, Tensor, float]] = {}
    for image in range(images):
        for row in range(rows):
            for column in range(columns):
                inside = [
                    (i, j)
                    for i in range(row * pool, min((row + 1) * pool, height))
                    for j in range(column * pool, min((column + 1) * pool, width))
                    if counts[image, i, j] > 0
                ]
                if inside:
                    tops = [
                        torch.stack([maps[image, :, i, j] for i, j in inside]).amax(0).view(groups, -1)
                        for maps in (student, teacher)
                    ]
                    weight = sum(float(counts[image, i, j]) for i, j in inside)
                    cells[image, row, column] = (tops[0], tops[1], weight)
    total = 0.0
    for (image, row, column), (own, guide, weight) in cells.items():
        near = [
            value[1]
            for key, value in cells.items()
            if (key[0], key[1] // patch, key[2] // patch) == (image, row // patch, column // patch)
        ]
        for group in range(groups):
            right = -(own[group] - guide[group]).abs().sum()
            wrong = [-(own[group] - other[h]).abs().sum() for other in near for h in range(groups) if h != group]
            scores = torch.stack([right, *wrong]) / temperature
            total -= weight * scores.log_softmax(0)[0].item()
    return total, sum(value[2] for value in cells.values())


@pytest.mark.parametrize("variant", ["clean", "published"])
@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
def test_terms_equal_plain_loops(variant: str, size: tuple[int, int]) -> None:
    if variant == "published":
        size = (8, 8)
    student, teacher, target = output(STUDENT, size=size), output(TEACHER, size=size, seed=2), labels()
    target[1, :20, 20:] = 255
    options: dict[str, Any] = {"mask": "centre", "pool": 2, "patch": 2, "temperature": 0.5}
    torch.manual_seed(0)
    method = create_method(
        "afdcd", CLASSES, STUDENT, TEACHER, variant=variant, reconstruction=2, contrast=3, kd=0, **options
    )
    assert isinstance(method, DenseContrast)
    assert method.rebuild is not None
    counts = pixels_of(target, size) if variant == "clean" else torch.ones(2, *size)
    own, guide = student.stages[1].detach(), teacher.stages[1].detach()
    with torch.no_grad():
        lifted = method.align(own)
        for image in range(2):
            for i in range(size[0]):
                for j in range(size[1]):
                    middle = size[0] // 3 <= i < 2 * size[0] // 3 and size[1] // 3 <= j < 2 * size[1] // 3
                    if middle or counts[image, i, j] == 0:
                        lifted[image, :, i, j] = 0
        first, second = method.rebuild[0], method.rebuild[2]  # type: ignore[index]
        hidden = F.conv2d(lifted, first.weight, first.bias, padding=1).clamp(min=0)
        rebuilt = F.conv2d(hidden, second.weight, second.bias, padding=1)
    squares = ((rebuilt - guide) ** 2).sum(1)
    total, weight = loop_contrast(rebuilt, guide, counts, 7, 2, 2, 0.5)
    terms = method(student, teacher, target, 0.5)
    if variant == "clean":
        reconstruction, contrast = (squares * counts).sum() / counts.sum() / 7, total / weight / 7
    else:
        # Every pooled cell counts once, not for the four that it stands for.
        reconstruction, contrast = squares.sum() / 2, total / 4 / (2 * 16)
    torch.testing.assert_close(terms["reconstruction"], 2 * reconstruction, rtol=1e-5, atol=0)
    torch.testing.assert_close(terms["contrast"].item(), 3 * contrast, rtol=1e-5, atol=0)


def test_clean_weights_equal_the_published_ones_at_the_published_shape() -> None:
    clean, published = (check_options("afdcd", {"variant": variant}).model_dump() for variant in ("clean", "published"))
    assert clean["reconstruction"] == pytest.approx(published["reconstruction"] * 64 * 128 * 2048, rel=0.01)
    assert clean["contrast"] == pytest.approx(published["contrast"] * 16)


def test_contrast_does_not_change_with_the_crop_size_nor_with_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(2, 8, 8, 12, generator=generator) for _ in range(2))
    valid = torch.randint(0, 3, (2, 1, 8, 12), generator=generator).float()
    total, cells = dense_contrast(student, teacher, valid, 4, 2, 2, 0.1)
    twice = [torch.cat((maps, maps), 2) for maps in (student, teacher, valid)]
    torch.testing.assert_close(dense_contrast(*twice, 4, 2, 2, 0.1)[0], 2 * total)
    assert cells == 2 * 4 * 6
    monkeypatch.setattr("segtailor.methods.afdcd.BLOCK", 1)
    torch.testing.assert_close(dense_contrast(student, teacher, valid, 4, 2, 2, 0.1)[0], total)


def test_the_vector_at_its_place_is_told_from_other_groups_only() -> None:
    # One position, two groups: the student's first vector is nearer to the teacher's second one by 2.
    student, teacher = torch.tensor([[3.0, 5.0]]).view(1, 2, 1, 1), torch.tensor([[0.0, 4.0]]).view(1, 2, 1, 1)
    total, cells = dense_contrast(student, teacher, None, 2, 4, 4, 2.0)
    expected = torch.tensor([[-3.0, -1.0], [-1.0, -5.0]]) / 2
    torch.testing.assert_close(total, -expected.log_softmax(1)[:, 0].sum())
    assert cells == 1
    # The same group at another position is no candidate.
    pair = [maps.repeat(1, 1, 1, 2) for maps in (student, teacher)]
    more, _ = dense_contrast(*pair, None, 2, 1, 4, 2.0)
    scores = torch.cat((expected, expected[:, 1:]), 1)
    torch.testing.assert_close(more, -2 * scores.log_softmax(1)[:, 0].sum())


def test_patches_hold_neighbours_and_pad_the_rest() -> None:
    maps = torch.arange(1.0, 16.0).view(1, 1, 3, 5)
    assert patches(maps, (2, 2))[..., 0].tolist() == [
        [1, 2, 6, 7],
        [3, 4, 8, 9],
        [5, 0, 10, 0],
        [11, 12, 0, 0],
        [13, 14, 0, 0],
        [15, 0, 0, 0],
    ]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 16), (17, 33)])
@pytest.mark.parametrize("variant", ["clean", "published"])
def test_every_grid_gives_finite_terms_and_gradients(size: tuple[int, int], variant: str) -> None:
    student, teacher = output(STUDENT, size=size), output(TEACHER, size=size, seed=2)
    method = create_method("afdcd", CLASSES, STUDENT, TEACHER, variant=variant)
    terms = method(student, teacher, labels(), 0.5)
    assert terms["contrast"] > 0
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert student.stages[1].grad is not None
    assert student.stages[1].grad.isfinite().all()


def test_last_is_each_networks_own_last_stage() -> None:
    own, guide = (
        {"feature": 4, "stages.0": 3, "stages.1": 5, "stages.2": 6},
        {"feature": 4, "stages.0": 3, "stages.1": 8},
    )
    torch.manual_seed(0)
    student = SegOutput(torch.randn(1, 3, 4, 4), stages=(torch.zeros(1), torch.zeros(1), torch.randn(1, 6, 4, 4)))
    teacher = SegOutput(torch.randn(1, 3, 4, 4), stages=(torch.zeros(1), torch.randn(1, 8, 4, 4)))
    method = create_method("afdcd", 3, own, guide)
    assert method.inputs == {"stages.2", "stages.1", "logits"}
    assert method(student, teacher, torch.zeros(1, 8, 8, dtype=torch.uint8), 0.5)["reconstruction"] > 0


def test_without_stages_the_feature_is_read() -> None:
    method = create_method("afdcd", 3, {"feature": 4, "stages.0": 4}, 4)
    assert method.inputs == {"feature", "logits"}
    assert method.labels == "ignore_mask"


def test_masks_hide_what_they_say() -> None:
    maps = torch.zeros(4, 1, 60, 60)
    torch.manual_seed(0)
    method = create_method("afdcd", 3, 4, 4, mask_ratio=0.75)
    assert isinstance(method, DenseContrast)
    assert method._shown(maps).float().mean().item() == pytest.approx(0.25, abs=0.02)
    centre = create_method("afdcd", 3, 4, 4, mask="centre")
    assert isinstance(centre, DenseContrast)
    hidden = ~centre._shown(maps)
    assert hidden[:, :, 20:40, 20:40].all()
    assert hidden.sum() == 4 * 20 * 20


def test_terms_of_weight_zero_bring_no_modules() -> None:
    assert not list(create_method("afdcd", 4, {}, {}, reconstruction=0, contrast=0).parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tap": "stages.7"}, "unknown tap of the student 'stages.7'; nearest: stages"),
        ({"tap": "lats"}, "unknown tap of the student 'lats'"),
        ({"mask": "center"}, "method 'afdcd', option 'mask': .*'random' or 'centre'"),
        ({"mask_ratio": 1}, "option 'mask_ratio': .*less than 1"),
        ({"groups": 1}, "option 'groups': .*greater than or equal to 2"),
        ({"groups": 6}, "cannot split the 7 channels of the teacher's 'stages.1' into 2 to 6 equal groups"),
        ({"temperature": 0}, "option 'temperature': .*greater than 0"),
        ({"patches": 4}, "unknown option of method 'afdcd' 'patches'; nearest: patch"),
    ],
)
def test_mistakes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as error:
        create_method("afdcd", CLASSES, STUDENT, TEACHER, **options)
    assert "\n" not in str(error.value)
