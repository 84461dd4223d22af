from __future__ import annotations

import warnings
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.methods import Method, cirkd, create_method
from segtailor.methods.cirkd import CIRKD, VectorQueue, relation_kl

from .cases import CLASSES, STUDENT, TEACHER, labels, output, tensors
from .golden import CLASSES as GOLDEN_CLASSES
from .golden import STUDENT_WIDTH, TEACHER_WIDTH, assert_equals_golden
from .tester import MethodTester, NoSyncNoFullSize

SMALL = {"pixel_queue": 40, "region_queue": 12, "pixel_samples": 30, "region_samples": 20, "pixels_per_image": 4}
ALL = frozenset({"minibatch", "memory_pixel", "memory_region"})


def fill(method: Method) -> None:
    """Give every class but the last a past, and leave the queues as they are from now on."""
    generator = torch.Generator().manual_seed(5)
    for queue in method.queues.values():  # type: ignore[union-attr, operator]
        assert isinstance(queue, VectorQueue)
        vectors = torch.randn(3, CLASSES, 4, queue.queue.shape[1], generator=generator)
        counts = torch.full((3, CLASSES), 3)
        counts[:, -1] = 0
        queue.enqueue(cirkd.unit(vectors), counts)
    method.eval()


class RelationTester(MethodTester):
    name = "cirkd"
    random = True

    def call(self, method: Any, *inputs: Any) -> Any:
        """Return the terms, and the queues to what they held: each test's calls are meant to start equal."""
        kept = [(buffer, buffer.clone()) for buffer in method.buffers()]
        terms = super().call(method, *inputs)
        for buffer, before in kept:
            buffer.copy_(before)
        return terms

    def test_means_do_not_change_with_the_crop_size(self, progress: float) -> None:
        # What is remembered is drawn at random from the grid, so the queues must stay as they are.
        self.prepare = fill
        super().test_means_do_not_change_with_the_crop_size(progress)


class TestCIRKD(RelationTester):
    minimal: ClassVar = frozenset({"minibatch"})
    couples_images = True
    options: ClassVar = SMALL
    terms = ALL


class TestCIRKDPublished(RelationTester):
    minimal: ClassVar = frozenset({"minibatch"})
    couples_images = True
    options: ClassVar = SMALL | {"variant": "published"}
    void_matters = True
    terms = ALL


class TestCIRKDMinibatch(RelationTester):
    minimal: ClassVar = frozenset({"minibatch"})
    couples_images = True
    options: ClassVar = {"memory_pixel": 0, "memory_region": 0, "within_image": False, "pool": 2}
    random = False
    terms = frozenset({"minibatch"})


def test_minibatch_equals_the_golden_figure() -> None:
    options = {"memory_pixel": 0, "memory_region": 0, "variant": "published", "temperature": 1}
    method = create_method("cirkd", GOLDEN_CLASSES, STUDENT_WIDTH, TEACHER_WIDTH, **options)
    assert_equals_golden("cirkd.minibatch.T1", method, "minibatch")


def count_loop(target: Tensor) -> Tensor:
    """Valid label pixels of each cell (B,6,8)."""
    counts = torch.zeros(len(target), 6, 8)
    height, width = target.shape[1:]
    for image, row, column in (target != 255).nonzero().tolist():
        counts[image, row * 6 // height, column * 8 // width] += 1
    return counts


def cosine(first: Tensor, second: Tensor) -> Tensor:
    return first @ second / (first.norm() * second.norm()).clamp(min=1e-8)


@pytest.mark.parametrize("within_image", [True, False])
def test_minibatch_equals_loops_over_valid_pixels(within_image: bool) -> None:
    student, teacher, target = output(STUDENT, 3), output(TEACHER, 3, seed=2), labels(3)
    target[1] = 255
    target[2, 3:20, :30] = 255
    counts, total = count_loop(target), 0.0
    assert student.feature is not None
    assert teacher.feature is not None
    for i, row, column in counts.nonzero().tolist():
        divergences = []
        for j in range(3):
            keys = counts[j].nonzero().tolist()
            if not keys or (j == i and not within_image):
                continue
            logits = [
                torch.stack([cosine(map_[i, :, row, column], map_[j, :, y, x]) for y, x in keys]) / 0.1
                for map_ in (student.feature, teacher.feature)
            ]
            often = torch.stack([counts[j, y, x] for y, x in keys])
            own, guide = ((values + often.log()).log_softmax(0) for values in logits)
            divergences.append((guide.exp() * (guide - own)).sum().item())
        total += counts[i, row, column].item() * sum(divergences) / len(divergences)
    method = create_method("cirkd", CLASSES, STUDENT, TEACHER, memory_pixel=0, memory_region=0, minibatch=2,
                           within_image=within_image)  # fmt: skip
    value = method(student, teacher, target, 0.5)["minibatch"]
    torch.testing.assert_close(value.item(), 2 * total / counts.sum().item(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("variant", ["published", "clean"])
def test_memory_equals_loops_over_valid_pixels(variant: str) -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    target[1, :20] = 255
    method = create_method("cirkd", CLASSES, STUDENT, TEACHER, variant=variant, minibatch=0, kd_temperature=2, **SMALL)
    assert isinstance(method, CIRKD)
    assert method.projector is not None
    fill(method)
    with torch.no_grad():
        method.projector.norm.weight.uniform_(0.5, 1.5)
        method.projector.norm.bias.uniform_(-0.5, 0.5)
    torch.manual_seed(3)
    drawn = {term: queue.sample(number, variant == "published") for (term, queue), number in
             zip(method.queues.items(), (6, 4), strict=True)}  # fmt: skip
    torch.manual_seed(3)
    terms = method(student, teacher, target, 0.5)

    tap = "feature" if variant == "clean" else "classifier_input"
    own, guide = student.tap(tap), teacher.tap(tap)
    assert own is not None
    assert guide is not None
    cells = [(i, r, c) for i in range(2) for r in range(6) for c in range(8)]
    valid = [
        target[i, r * 46 // 6, c * 63 // 8] != 255 and bool(variant == "published" or count_loop(target)[i, r, c])
        for i, r, c in cells
    ]
    assert 0 < sum(valid) < len(cells)
    kept = [cell for cell, ok in zip(cells, valid, strict=True) if ok]
    rows = torch.stack([own[i, :, r, c] for i, r, c in (kept if variant == "clean" else cells)])
    norm = method.projector.norm
    hidden = rows @ method.projector.first.weight.t()
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias
    lifted = hidden.relu() @ method.projector.last.weight.t()
    if variant == "published":
        lifted = lifted[torch.tensor(valid)]
    for term, (keys, exists) in drawn.items():
        assert variant == "published" or not exists.all()
        total = 0.0
        for anchor, (i, r, c) in zip(lifted, kept, strict=True):
            own_p, guide_p = (
                torch.stack([cosine(value, key) / 0.2 for key, there in zip(keys, exists, strict=True) if there])
                .log_softmax(0) for value in (anchor, guide[i, :, r, c])
            )  # fmt: skip
            total += (guide_p.exp() * (guide_p - own_p)).sum().item()
        torch.testing.assert_close(terms[term].item(), 0.1 * 4 * total / len(kept), rtol=1e-4, atol=0)


def test_relations_have_the_gradients_of_the_formula_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    anchors, keys = draw(7, 3).requires_grad_(), draw(2, 5, 3).requires_grad_()
    teacher, weight = (draw(7, 4), draw(2, 5, 4)), draw(7, 2)
    multiplicity = torch.tensor([[1, 0, 2, 3, 0], [0, 0, 0, 0, 0]], dtype=torch.float64)
    monkeypatch.setitem(cirkd.BLOCK, "cpu", 20)

    def value(anchors: Tensor, keys: Tensor) -> Tensor:
        return relation_kl((anchors, keys), teacher, weight, 0.5, multiplicity)

    def formula(anchors: Tensor, keys: Tensor) -> Tensor:
        inside = torch.tensor([0, 2, 3])
        own, guide = (
            (side[0] @ side[1][0, inside].t() / 0.5 + multiplicity[0, inside].log()).log_softmax(1)
            for side in ((anchors, keys), teacher)
        )
        return (weight[:, 0] * (guide.exp() * (guide - own)).sum(1)).sum()

    torch.testing.assert_close(value(anchors, keys), formula(anchors, keys), rtol=1e-10, atol=0)
    found = torch.autograd.grad(3 * value(anchors, keys), (anchors, keys))
    expected = torch.autograd.grad(3 * formula(anchors, keys), (anchors, keys))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    # Where only the anchors learn, as with a memory.
    alone = torch.autograd.grad(value(anchors, keys.detach()), anchors)[0]
    torch.testing.assert_close(3 * alone, expected[0], rtol=1e-9, atol=1e-12)


def test_all_similarities_are_never_held(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = output(STUDENT, 4), output(TEACHER, 4, seed=2)
    method = create_method("cirkd", CLASSES, STUDENT, TEACHER, **SMALL)
    pixels = 4 * 48
    monkeypatch.setitem(cirkd.BLOCK, "cpu", 40 * pixels)
    target = labels(4)
    with NoSyncNoFullSize(40 * pixels + 1):
        torch.stack(list(method(student, teacher, target, 0.5).values())).sum().backward()


@pytest.mark.parametrize("variant", ["published", "clean"])
def test_pooling_equals_a_map_of_means(variant: str) -> None:
    small, target = output(STUDENT), labels(size=(48, 64))
    guide = output(TEACHER, seed=2)

    def enlarged(value: Any) -> Any:
        for name, tensor in tensors(value).items():
            if not name.startswith("stages"):
                noise = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(6, 8)
                big = tensor.detach().repeat_interleave(2, 2).repeat_interleave(2, 3)
                setattr(value, name, big + noise * (variant == "published"))
        return value

    plain = {"memory_pixel": 0, "memory_region": 0, "variant": variant}
    expected = create_method("cirkd", CLASSES, STUDENT, TEACHER, **plain)(small, guide, target, 0.5)
    pooling = create_method("cirkd", CLASSES, STUDENT, TEACHER, pool=2, **plain)
    found = pooling(enlarged(output(STUDENT)), enlarged(output(TEACHER, seed=2)), target, 0.5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("within_image", [True, False])
def test_one_image_is_warned_of_once(within_image: bool) -> None:
    student, teacher = output(STUDENT, 1), output(TEACHER, 1, seed=2)
    method = create_method("cirkd", CLASSES, STUDENT, TEACHER, within_image=within_image, memory_pixel=0,
                           memory_region=0)  # fmt: skip
    with pytest.warns(UserWarning, match="are within that image" if within_image else "minibatch is 0"):
        value = method(student, teacher, labels(1), 0.5)["minibatch"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method(student, teacher, labels(1), 0.5)
    value.backward()
    assert student.feature is not None
    assert student.feature.grad is not None
    assert (value > 0) == within_image
    assert student.feature.grad.any() == within_image


def test_without_memory_weights_there_is_no_queue_and_no_projector() -> None:
    method = create_method("cirkd", CLASSES, STUDENT, TEACHER, memory_pixel=0, memory_region=0, variant="published")
    assert not method.state_dict()
    assert method.labels == "unused"
    only = create_method("cirkd", CLASSES, STUDENT, TEACHER, memory_pixel=0, **SMALL)
    assert set(dict(only.named_buffers())) == {
        f"queues.memory_region.{part}" for part in ("queue", "pointer", "filled")
    }


def test_projector_is_as_large_as_published() -> None:
    method = create_method("cirkd", 19, 128, 256, **SMALL)
    assert sum(value.numel() for value in method.parameters()) == 98_816


@pytest.mark.parametrize("option", ["temperature", "kd_temperature", "pixel_queue", "pool"])
def test_refuses_zero(option: str) -> None:
    with pytest.raises(SegtailorError, match=option) as raised:
        create_method("cirkd", CLASSES, STUDENT, TEACHER, **{option: 0})
    assert "\n" not in str(raised.value)
