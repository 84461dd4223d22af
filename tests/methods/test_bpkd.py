from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.methods import create_method
from segtailor.methods.bpkd import edge_shares

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .tester import MethodTester


class TestBoundaryPrivileged(MethodTester):
    name = "bpkd"
    minimal: ClassVar = frozenset({"body", "edge"})
    terms = frozenset({"body", "edge"})


class TestBoundaryPrivilegedBodyAlone(MethodTester):
    name = "bpkd"
    minimal: ClassVar = frozenset({"body"})
    options: ClassVar = {"edge": 0, "temperature": 2, "edge_width": 11}
    terms = frozenset({"body"})


class TestBoundaryPrivilegedEdgeAlone(MethodTester):
    name = "bpkd"
    minimal: ClassVar = frozenset({"edge"})
    options: ClassVar = {"body": 0, "temperature": 2, "edge_width": 3}
    terms = frozenset({"edge"})


def cells_of(target: Tensor, size: tuple[int, int]) -> dict[tuple[int, int, int], list[tuple[int, int]]]:
    """Return the valid label pixels of every cell (image, row, column)."""
    images, height, width = target.shape
    cells: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
    for image in range(images):
        for i in range(height):
            for j in range(width):
                if target[image, i, j] < CLASSES:
                    key = (image, i * size[0] // height, j * size[1] // width)
                    cells.setdefault(key, []).append((i, j))
    return cells


def loop_shares(target: Tensor, size: tuple[int, int], reach: int, dtype: torch.dtype = torch.float32) -> Tensor:
    shares = torch.zeros(len(target), CLASSES, *size, dtype=dtype)
    for (image, row, column), pixels in cells_of(target, size).items():
        for i, j in pixels:
            window = target[image, max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : j + reach + 1]
            held = {int(label) for label in window.flatten() if label < CLASSES}
            for label in held if len(held) > 1 else ():
                shares[image, label, row, column] += 1 / len(pixels)
    return shares


@pytest.mark.parametrize("size", [(6, 8), (5, 7), (46, 63)])
@pytest.mark.parametrize("width", [3, 7, 9])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_edge_shares_equal_plain_loops(size: tuple[int, int], width: int, dtype: torch.dtype) -> None:
    target = labels()
    target[1, 20:30, :] = 255
    shares, valid = edge_shares(target.to(dtype), CLASSES, size, width)
    torch.testing.assert_close(shares, loop_shares(target, size, width // 2))
    expected = torch.zeros(2, *size)
    for (image, row, column), pixels in cells_of(target, size).items():
        expected[image, row, column] = len(pixels)
    torch.testing.assert_close(valid, expected.flatten(1))


def test_edge_shares_of_more_classes_than_one_block_holds() -> None:
    target = torch.arange(40).repeat_interleave(4).view(1, 1, 160).expand(1, 4, 160)
    shares, _ = edge_shares(target, 40, (1, 40), 3)
    # Cell c is class c; the pixel at either side of a border belongs to both classes' edges.
    expected = torch.zeros(40, 40)
    for c in range(40):
        for other in {max(c - 1, 0), min(c + 1, 39)} - {c}:
            expected[c, other] = 0.25
            expected[c, c] += 0.25
    torch.testing.assert_close(shares[0, :, 0], expected)


def test_void_makes_no_edge() -> None:
    target = torch.zeros(1, 16, 16, dtype=torch.uint8)
    target[:, 4:8] = 255
    assert not edge_shares(target, 3, (4, 4), 7)[0].any()


def divergence(own: Tensor, guide: Tensor, temperature: float) -> float:
    own, guide = (own / temperature).log_softmax(0), (guide / temperature).log_softmax(0)
    return temperature**2 * (guide.exp() * (guide - own)).sum().item()


@pytest.mark.parametrize(("temperature", "dtype", "rtol"), [
    (1.0, torch.float32, 1e-4), (3.0, torch.float32, 1e-4), (3.0, torch.float64, 1e-12),
])  # fmt: skip
def test_terms_equal_plain_loops(temperature: float, dtype: torch.dtype, rtol: float) -> None:
    student, teacher, target = output(STUDENT, dtype=dtype), output(TEACHER, seed=2, dtype=dtype), labels()
    target[1, :, 20:] = 255
    cells, shares = cells_of(target, (6, 8)), loop_shares(target, (6, 8), 3, dtype)
    body, edge = 0.0, 0.0
    for image in range(2):
        inside = {key: pixels for key, pixels in cells.items() if key[0] == image}
        for label in range(CLASSES):
            rows = []
            for logits in (student.logits, teacher.logits):
                # Every cell stands in the softmax as often as it has valid pixels.
                row = [
                    (1 - shares[image, label, i, j]) * logits[image, label, i, j]
                    for (_, i, j), pixels in inside.items()
                    for _ in pixels
                ]
                rows.append(torch.stack(row))
            body += divergence(*rows, temperature) / (2 * CLASSES)
            total, count = 0.0, 0
            for (_, i, j), pixels in inside.items():
                mask = shares[image, :, i, j]
                if mask[label] > 0:
                    own, guide = (mask * logits[image, :, i, j] for logits in (student.logits, teacher.logits))
                    total += len(pixels) * float(mask[label]) * divergence(own, guide, temperature)
                    count += len(pixels)
            edge += 1.5 * total / count / 2 if count else 0.0
    assert edge > 0
    method = create_method("bpkd", CLASSES, STUDENT, TEACHER, body=2, edge=3, alpha=1.5, temperature=temperature)
    terms = method(student, teacher, target, 0.5)
    torch.testing.assert_close(terms["body"].item(), 2 * body, rtol=rtol, atol=0)
    torch.testing.assert_close(terms["edge"].item(), 3 * edge, rtol=rtol, atol=0)
    assert terms["body"].dtype == terms["edge"].dtype == dtype


def test_one_class_everywhere_leaves_no_edge_term() -> None:
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    terms = create_method("bpkd", CLASSES, STUDENT, TEACHER)(student, teacher, torch.ones_like(labels()), 0.5)
    assert terms["edge"] == 0
    assert terms["body"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edge_width": 6}, "method 'bpkd', option 'edge_width': .*odd"),
        ({"edge_width": 1}, "option 'edge_width': .*greater than or equal to 3"),
        ({"body": -1}, "option 'body': .*greater than or equal to 0"),
        ({"edges": 1}, "unknown option of method 'bpkd' 'edges'; nearest: edge"),
        ({"variant": "published"}, "unknown option of method 'bpkd' 'variant'"),
    ],
)
def test_mistakes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as error:
        create_method("bpkd", CLASSES, STUDENT, TEACHER, **options)
    assert "\n" not in str(error.value)
