from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch

from segtailor.errors import SegtailorError
from segtailor.methods import check_options, create_method
from segtailor.models.network import SegOutput

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .golden import CLASSES as GOLDEN_CLASSES
from .golden import STUDENT_WIDTH, TEACHER_WIDTH, assert_equals_golden
from .tester import MethodTester


class TestAttentionTransfer(MethodTester):
    name = "at"
    minimal: ClassVar = frozenset({"at"})
    terms = frozenset({"at"})


class TestAttentionTransferPublished(MethodTester):
    name = "at"
    minimal: ClassVar = frozenset({"at"})
    options: ClassVar = {"variant": "published"}
    void_matters = True
    size_matters = True
    terms = frozenset({"at"})


class TestAttentionTransferOfStages(MethodTester):
    name = "at"
    minimal: ClassVar = frozenset({"at.feature", "at.stages.0", "at.stages.1"})
    options: ClassVar = {"taps": ["stages.0", "stages.1", "decoder"]}
    terms = frozenset({"at.stages.0", "at.stages.1", "at.feature"})


class TestAttentionTransferOfOneStage(MethodTester):
    name = "at"
    minimal: ClassVar = frozenset({"at"})
    options: ClassVar = {"taps": "stages.0", "variant": "published"}
    void_matters = True
    size_matters = True
    terms = frozenset({"at"})


def test_equals_the_golden_figure() -> None:
    method = create_method("at", GOLDEN_CLASSES, STUDENT_WIDTH, TEACHER_WIDTH, variant="published")
    assert_equals_golden("at", method, "at", scale=10000)


@pytest.mark.parametrize("variant", ["published", "clean"])
def test_equals_plain_loops(variant: str) -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    target[0, :20] = 255
    tap = "feature" if variant == "clean" else "classifier_input"
    height, width = target.shape[1:]
    total = 0.0
    for image in range(2):
        cells = [(i, j) for i in range(6) for j in range(8)]
        if variant == "clean":  # one cell for each valid label pixel
            pixels = [(i, j) for i in range(height) for j in range(width) if target[image, i, j] != 255]
            cells = [(i * 6 // height, j * 8 // width) for i, j in pixels]
        maps = []
        for network in (student, teacher):
            feature = getattr(network, tap)[image].double()
            energy = [feature[:, i, j].square().mean().item() for i, j in cells]
            norm = sum(value**2 for value in energy) ** 0.5
            maps.append([value / norm for value in energy])
        error = sum((own - guide) ** 2 for own, guide in zip(*maps, strict=True))
        total += error / len(cells) if variant == "published" else error
    value = create_method("at", CLASSES, STUDENT, TEACHER, variant=variant, at=3)(student, teacher, target, 0.5)["at"]
    torch.testing.assert_close(value.item(), 3 * total / 2, rtol=1e-5, atol=0)


def test_each_tap_equals_the_tap_alone() -> None:
    student, teacher = output(STUDENT), output(TEACHER, seed=2)

    def terms(taps: str | list[str]) -> dict[str, Any]:
        return create_method("at", CLASSES, STUDENT, TEACHER, taps=taps)(student, teacher, labels(), 0.5)

    both = terms(["stages.1", "feature", "decoder"])
    assert set(both) == {"at.stages.1", "at.feature"}
    for tap in ("stages.1", "feature"):
        torch.testing.assert_close(both[f"at.{tap}"], terms(tap)["at"], rtol=0, atol=0)


def test_scale_of_the_teacher_does_not_matter_and_places_do() -> None:
    method = create_method("at", CLASSES, STUDENT, STUDENT)
    teacher = output(STUDENT).detach()
    assert teacher.feature is not None
    louder = SegOutput(teacher.logits, feature=7 * teacher.feature)
    moved = SegOutput(teacher.logits, feature=teacher.feature.roll(1, 3))
    assert method(louder, teacher, labels(), 0.5)["at"] < 1e-10
    assert method(moved, teacher, labels(), 0.5)["at"] > 0.05


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"at": -1}, "option 'at': .*greater than or equal to 0"),
        ({"taps": []}, "option 'taps'"),
        ({"tap": "feature"}, "unknown option of method 'at' 'tap'; nearest: taps"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as error:
        check_options("at", options)
    assert "\n" not in str(error.value)


def test_a_wrong_tap_lists_the_nearest() -> None:
    with pytest.raises(SegtailorError, match=r"unknown tap of the student 'stages\.7'; nearest: stages\.\d"):
        create_method("at", CLASSES, STUDENT, TEACHER, taps="stages.7")


def test_weight_0_needs_nothing() -> None:
    method = create_method("at", CLASSES, {}, {}, at=0)
    assert not method.inputs
    assert method.labels == "unused"
    assert method(output(STUDENT), output(TEACHER), None, 0.5) == {}
