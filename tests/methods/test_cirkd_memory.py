"""What the relations' memory remembers, in which order, and what is drawn from it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.methods import Method, create_method
from segtailor.methods.cirkd import CIRKD, VectorQueue, class_means, class_pixels

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .processes import Pair, step_gradients
from .test_cirkd import SMALL


def build(**options: Any) -> CIRKD:
    method = create_method("cirkd", CLASSES, STUDENT, TEACHER, **{**SMALL, **options})
    assert isinstance(method, CIRKD)
    return method


def queue_of(method: CIRKD, term: str) -> VectorQueue:
    queue = method.queues[term]
    assert isinstance(queue, VectorQueue)
    return queue


def halves() -> tuple[Any, Any, Tensor]:
    """Outputs whose teacher points along channel 0 in the upper half, class 1, and along channel 1 below, class 2."""
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    assert teacher.feature is not None
    with torch.no_grad():
        teacher.feature.zero_()
        teacher.feature[:, 0, :3] = 1
        teacher.feature[:, 1, 3:] = 1
    teacher.classifier_input = teacher.feature
    target = torch.ones(2, 48, 64, dtype=torch.uint8)
    target[:, 24:] = 2
    return student, teacher, target


@pytest.mark.parametrize(
    ("options", "pixels", "regions"),
    [
        ({}, 380_000 // 250, 380_000 // 250),
        ({"variant": "published"}, 20_000, 2_000),  # as long as published, however many classes
        ({"variant": "published", "max_pixels": 500_000}, 2_000, 2_000),
        ({"max_pixels": 0}, 20_000, 2_000),
    ],
)
def test_queues_are_as_long_as_the_variant_says(options: dict[str, Any], pixels: int, regions: int) -> None:
    method = create_method("cirkd", 250, 2, 1, **options)
    assert isinstance(method, CIRKD)
    sizes = {"memory_pixel": pixels, "memory_region": regions}
    for term, size in sizes.items():
        queue = queue_of(method, term)
        assert queue.size == size
        assert queue.queue.shape == (250 * size + 1, 1)
        assert queue.filled.tolist() == 250 * [size if "variant" in options else 0]


@pytest.mark.parametrize("legacy", [False, True])
def test_a_class_is_remembered_by_its_own_pixels(legacy: bool) -> None:
    method = build(legacy_enqueue=legacy)
    method(*halves(), 0.5)
    pixels, regions = queue_of(method, "memory_pixel"), queue_of(method, "memory_region")
    assert pixels.filled.tolist() == [0, 8, 8, 0, 0, 0]
    assert regions.filled.tolist() == [0, 2, 2, 0, 0, 0]
    upper, lower = torch.eye(10)[0], torch.eye(10)[1]
    assert (pixels.queue[40:48] == upper).all()
    # The published code takes the lower class's pixels from the top of the image.
    assert (pixels.queue[80:88] == (upper if legacy else lower)).all()
    assert (regions.queue[12:14] == upper).all()
    assert (regions.queue[24:26] == lower).all()
    rest = torch.ones(len(pixels.queue), dtype=torch.bool)
    rest[40:48] = rest[80:88] = False
    assert not pixels.queue[rest].any()


def test_void_is_not_remembered() -> None:
    method = build()
    student, teacher, target = halves()
    target[:, 24:] = 255
    method(student, teacher, target, 0.5)
    assert queue_of(method, "memory_pixel").filled.tolist() == [0, 8, 0, 0, 0, 0]
    assert queue_of(method, "memory_region").filled.tolist() == [0, 2, 0, 0, 0, 0]


def test_nothing_is_remembered_in_eval_mode() -> None:
    method = build().eval()
    student, teacher, target = halves()
    terms = method(student, teacher, target, 0.5)
    assert not any(buffer.any() for buffer in method.buffers())
    for term in ("memory_pixel", "memory_region"):  # nothing to compare with
        assert terms[term] == 0
    (terms["memory_pixel"] + terms["memory_region"]).backward()
    assert student.feature.grad is not None
    assert not student.feature.grad.any()


def test_chosen_pixels_are_distinct_and_of_their_class() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(0, 5, (3, 40), generator=generator)
    classes[0, 4:] = 4  # of five classes the last is void; classes of few pixels
    seen = set()
    for _ in range(40):
        index, counts = class_pixels(classes, 4, 6)
        for image in range(3):
            for label in range(4):
                chosen = index[image, label, : counts[image, label]].tolist()
                there = (classes[image] == label).nonzero().flatten().tolist()
                assert len(chosen) == min(6, len(there)) == len(set(chosen))
                assert set(chosen) <= set(there)
                seen |= {(image, position) for position in chosen}
    assert len(seen) == (classes < 4).sum()  # each is chosen at some time


def test_class_means_are_directions_of_means() -> None:
    rows, classes = torch.randn(2, 7, 3), torch.tensor([[0, 1, 1, 3, 0, 1, 3], [3, 3, 3, 3, 3, 3, 2]])
    means, there = class_means(rows, classes, 3)
    assert there.tolist() == [[1, 1, 0], [0, 0, 1]]
    for image, label in there.nonzero().tolist():
        mean = rows[image][classes[image] == label].mean(0)
        torch.testing.assert_close(means[image, label, 0], mean / mean.norm())


def number(*shape: int) -> Tensor:
    """Vectors of one channel that all differ."""
    number.last = getattr(number, "last", 0) + 1  # type: ignore[attr-defined]
    return (1000.0 * number.last + torch.arange(torch.Size(shape).numel())).view(*shape, 1)  # type: ignore[attr-defined]


def test_first_in_first_out() -> None:
    queue, last = VectorQueue(3, 7, 1), [[], [], []]  # type: ignore[var-annotated]
    generator = torch.Generator().manual_seed(0)
    for _ in range(12):
        vectors, counts = number(4, 3, 3), torch.randint(0, 4, (4, 3), generator=generator)
        queue.enqueue(vectors, counts)
        for label in range(3):
            for image in range(4):
                last[label] += vectors[image, label, : counts[image, label], 0].tolist()
            kept = [last[label][position] for position in range(max(0, len(last[label]) - 7), len(last[label]))]
            held = queue.queue[7 * label : 7 * label + 7, 0]
            assert sorted(held[: queue.filled[label]].tolist()) == sorted(kept)
            assert queue.pointer[label] == len(last[label]) % 7
            newest = (queue.pointer[label] - 1) % 7
            assert not kept or held[newest] == kept[-1]
    assert any(len(items) > 14 for items in last)  # it went round


def test_legacy_order_equals_the_published_one_image_after_another() -> None:
    size, queue = 13, VectorQueue(3, 13, 1)
    held, pointer = torch.zeros(3, size), [0, 0, 0]
    generator = torch.Generator().manual_seed(1)
    wrapped = 0
    for _ in range(40):
        vectors, counts = number(4, 3, 3), torch.randint(0, 4, (4, 3), generator=generator)
        queue.enqueue(vectors, counts, legacy=True)
        for image in range(4):
            for label in range(3):
                count = int(counts[image, label])
                new = vectors[image, label, :count, 0]
                if not count:
                    continue
                if pointer[label] + count >= size:
                    held[label, size - count :] = new
                    pointer[label] = 0
                    wrapped += 1
                else:
                    held[label, pointer[label] : pointer[label] + count] = new
                    pointer[label] += count
        assert queue.pointer.tolist() == pointer
        torch.testing.assert_close(queue.queue[:-1].view(3, size), held, rtol=0, atol=0)
    assert wrapped > 10
    assert queue.filled.tolist() == [size] * 3


def test_legacy_queue_that_is_too_short_is_refused() -> None:
    with pytest.raises(SegtailorError, match="at least 8 vectors"):
        build(legacy_enqueue=True, pixel_queue=7)(output(STUDENT), output(TEACHER, seed=2), labels(), 0.5)


def test_only_what_was_remembered_is_drawn() -> None:
    queue = VectorQueue(3, 50, 1)
    counts = torch.tensor([[5, 0, 1]])
    vectors = number(1, 3, 5)
    queue.enqueue(vectors, counts)
    drawn, exists = queue.sample(200)
    drawn, exists = drawn.view(3, 200), exists.view(3, 200)
    assert set(drawn[0].tolist()) == set(vectors[0, 0, :, 0].tolist())
    assert set(drawn[2].tolist()) == set(vectors[0, 2, :1, 0].tolist())
    assert exists.all(1).tolist() == [True, False, True]
    assert not exists[1].any()


def test_draws_are_of_each_class_or_shared() -> None:
    queue = VectorQueue(2, 30, 3, noise=True)
    assert queue.filled.tolist() == [30, 30]
    torch.testing.assert_close(queue.queue.norm(dim=1), torch.ones(61))
    ring = queue.queue[:-1].view(2, 30, 3)

    def slots(shared: bool) -> list[list[int]]:
        drawn = queue.sample(10, shared)[0].view(2, 10, 3)
        return [[int((ring[label] == row).all(1).nonzero()) for row in drawn[label]] for label in range(2)]

    first, second = slots(True)
    assert first == second
    assert len(set(first)) == 10
    first, second = slots(False)
    assert first != second


def test_classes_draw_alike_many(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, sample = [], VectorQueue.sample

    def noted(self: VectorQueue, number: int, shared: bool = False) -> tuple[Tensor, Tensor]:
        asked.append(number)
        return sample(self, number, shared)

    monkeypatch.setattr(VectorQueue, "sample", noted)
    build(pixel_samples=30, region_samples=20)(output(STUDENT), output(TEACHER, seed=2), labels(), 0.5)
    assert asked == [6, 4]


@pytest.mark.parametrize(("classes", "pixels"), [(19, 20000), (150, 2533), (2, 20000)])
def test_clean_queues_stay_below_700_megabytes_and_published_ones_are_whole(classes: int, pixels: int) -> None:
    for variant, size in (("clean", pixels), ("published", 20000)):
        with torch.device("meta"):
            method = create_method("cirkd", classes, 128, 256, variant=variant)
        assert isinstance(method, CIRKD)
        assert queue_of(method, "memory_pixel").size == size
        assert queue_of(method, "memory_region").size == 2000
        if variant == "clean":
            assert sum(buffer.numel() * buffer.element_size() for buffer in method.buffers()) < 700e6


def remember(folder: Path, method: Method) -> None:
    """Write what the method remembers after its forward to a file of this process."""

    def write(module: torch.nn.Module, *_: Any) -> None:
        rank = dist.get_rank() if dist.is_initialized() else "alone"
        torch.save(dict(module.named_buffers()), folder / f"{rank}.pt")

    method.register_forward_hook(write)


def test_all_processes_remember_the_same(pair: Pair, tmp_path: Path) -> None:
    target = labels(4)
    target[0, :, 20:] = 255
    prepare = partial(remember, tmp_path)
    pair.step("cirkd", SMALL, 0.5, target, 1, prepare)
    step_gradients("cirkd", SMALL, 0.5, target, 1, prepare)
    first, second, alone = (torch.load(tmp_path / f"{name}.pt") for name in (0, 1, "alone"))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    # Which pixels are drawn differs with the process, how many and the means do not.
    for name in alone:
        if name != "queues.memory_pixel.queue":
            torch.testing.assert_close(first[name], alone[name], rtol=1e-5, atol=1e-6, msg=name)
    assert alone["queues.memory_region.filled"].sum() > 4
