from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.methods import check_options, create_method
from segtailor.models.network import SegOutput

from .cases import CLASSES, STUDENT, TEACHER, labels, output
from .tester import MethodTester


class TestDoubleSimilarity(MethodTester):
    name = "dsd"
    minimal: ClassVar = frozenset({"csd", "psd"})
    options: ClassVar = {"psd": 1, "csd": 1e-2}
    terms = frozenset({"psd", "csd"})


class TestDoubleSimilarityPublished(MethodTester):
    name = "dsd"
    minimal: ClassVar = frozenset({"csd", "psd"})
    options: ClassVar = {"variant": "published"}
    void_matters = True
    size_matters = True
    terms = frozenset({"psd", "csd"})


class TestDoubleSimilarityOfPixels(MethodTester):
    name = "dsd"
    minimal: ClassVar = frozenset({"psd"})
    options: ClassVar = {"csd": 0}
    terms = frozenset({"psd"})


class TestDoubleSimilarityOfClasses(MethodTester):
    name = "dsd"
    minimal: ClassVar = frozenset({"csd"})
    options: ClassVar = {"psd": 0, "csd": 1, "temperature": 1}
    terms = frozenset({"csd"})


class TestDoubleSimilarityWithoutAux(MethodTester):
    name = "dsd"
    minimal: ClassVar = frozenset({"csd", "psd"})
    options: ClassVar = {"psd": 1, "csd": 1e-2}
    terms = frozenset({"psd", "csd"})

    def call(self, method: Any, student: SegOutput, teacher: SegOutput, target: Tensor, progress: float) -> Any:
        return super().call(method, replace(student, aux_logits=None), teacher, target, progress)


def cells_of(target: Tensor, size: tuple[int, int], variant: str) -> list[tuple[int, int]]:
    """Return every cell of the grid, or, for clean, one cell for each valid pixel of ``target`` (H,W)."""
    if variant == "published":
        return [(i, j) for i in range(size[0]) for j in range(size[1])]
    height, width = target.shape
    pixels = [(i, j) for i in range(height) for j in range(width) if target[i, j] != 255]
    return [(i * size[0] // height, j * size[1] // width) for i, j in pixels]


@pytest.mark.parametrize("variant", ["published", "clean", "clean without aux"])
def test_residual_attention_equals_plain_loops(variant: str) -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    target[0, :20] = 255
    variant, _, lacking = variant.partition(" ")
    if lacking:
        teacher = replace(teacher, aux_logits=None)
    layers = ["aux_logits", "feature" if variant == "clean" else "classifier_input", "logits"][1 if lacking else 0 :]
    total = torch.zeros((), dtype=torch.float64)
    for image in range(2):
        cells = cells_of(target[image], (6, 8), variant)
        residuals: list[list[Tensor]] = []
        for network in (student, teacher):
            attentions = []
            for layer in layers:
                values = getattr(network, layer)[image].double()
                energy = torch.stack([values[:, i, j].square().mean() for i, j in cells])
                attentions.append(energy / energy.norm())
            differences = [later - earlier for earlier, later in combinations(attentions, 2)]
            residuals.append([difference / difference.norm() for difference in differences])
        for own, guide in zip(*residuals, strict=True):
            error = (own - guide.detach()).square()
            total = total + (error.mean() if variant == "published" else error.sum()) / len(residuals[0]) / 2
    method = create_method("dsd", CLASSES, STUDENT, TEACHER, variant=variant, psd=3)
    value = method(student, teacher, target, 0.5)["psd"]
    torch.testing.assert_close(value.double(), 3 * total, rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(item, student.logits)[0] for item in (value, 3 * total)]
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-4 * gradients[1].abs().max()


@pytest.mark.parametrize("variant", ["published", "clean"])
def test_class_similarity_equals_plain_loops(variant: str) -> None:
    size = (5, 7)  # windows at the edge are cut off
    student, teacher = output(STUDENT, size=size), output(TEACHER, size=size, seed=2)
    target = labels(size=(43, 60))
    target[0, :20] = 255
    total = torch.zeros((), dtype=torch.float64)
    for image in range(2):
        atoms = cells_of(target[image], size, variant)
        windows = sorted({(i // 2, j // 2) for i, j in atoms})
        members = {window: [atom for atom in atoms if (atom[0] // 2, atom[1] // 2) == window] for window in windows}
        similarity = []
        for network in (student, teacher):
            logits = network.logits[image].double()
            pooled = {
                window: torch.stack([logits[:, i, j] for i, j in cells]).mean(0) for window, cells in members.items()
            }
            if variant == "published":
                share = torch.stack([pooled[window] for window in windows], 1).div(4).softmax(1)
                similarity.append(share @ share.T)
            else:  # one position for each valid pixel
                values = torch.stack([pooled[i // 2, j // 2] for i, j in atoms], 1)
                share = values.div(4).softmax(1)
                similarity.append(len(atoms) * share @ share.T)
        total = total + (similarity[0] - similarity[1].detach()).square().mean() / 2
    method = create_method("dsd", CLASSES, STUDENT, TEACHER, variant=variant, csd=3)
    value = method(student, teacher, target, 0.5)["csd"]
    torch.testing.assert_close(value.double(), 3 * total, rtol=1e-5, atol=0)
    gradients = [torch.autograd.grad(item, student.logits)[0] for item in (value, 3 * total)]
    assert (gradients[0] - gradients[1]).abs().max() <= 1e-4 * gradients[1].abs().max()


def test_clean_weights_are_near_the_published_at_the_published_grid() -> None:
    size = (64, 128)
    student, teacher = output(STUDENT, 1, size), output(TEACHER, 1, size, seed=2)
    for network in (student, teacher):
        network.classifier_input = network.feature
    clean, published = (
        create_method("dsd", CLASSES, STUDENT, TEACHER, variant=variant)(
            student, teacher, torch.zeros(1, *size, dtype=torch.uint8), 0.5
        )
        for variant in ("clean", "published")
    )
    assert 0.5 < clean["psd"] / published["psd"] < 2
    assert 0.5 < clean["csd"] / published["csd"] < 2


def test_rounding_is_not_made_a_direction() -> None:
    # Even maps have equal attentions, whatever their values, so every residual is 0 up to rounding.
    method = create_method("dsd", CLASSES, STUDENT, TEACHER, psd=1, csd=0)
    even = [
        SegOutput(*(torch.full((2, width, 6, 8), value) for width, value in zip((6, 6, 9), values, strict=True)))
        for values in ((0.3, 0.7, 1.1), (1.3, 0.9, 0.17))
    ]
    assert method(*even, labels(), 0.5)["psd"] < 1e-3


def test_layers_on_finer_grids_are_brought_to_the_logits() -> None:
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    assert student.feature is not None
    student.feature = student.feature.detach()
    finer = replace(student, feature=student.feature.repeat_interleave(2, 2).repeat_interleave(2, 3))
    method = create_method("dsd", CLASSES, STUDENT, TEACHER, csd=0)
    expected = method(student, teacher, labels(), 0.5)
    torch.testing.assert_close(method(finer, teacher, labels(), 0.5), expected)


@pytest.mark.parametrize("role", ["student", "teacher"])
def test_published_names_the_network_without_aux_logits(role: str) -> None:
    outputs = {"student": output(STUDENT), "teacher": output(TEACHER)}
    outputs[role] = replace(outputs[role], aux_logits=None)
    method = create_method("dsd", CLASSES, STUDENT, TEACHER, variant="published")
    with pytest.raises(SegtailorError, match=f"method dsd, .*needs aux_logits, and the {role} returns none") as error:
        method(*outputs.values(), labels(), 0.5)
    assert "\n" not in str(error.value)
    alone = create_method("dsd", CLASSES, STUDENT, TEACHER, variant="published", psd=0)
    assert set(alone(*outputs.values(), labels(), 0.5)) == {"csd"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"psd": -1}, "option 'psd': .*greater than or equal to 0"),
        ({"temperature": 0}, "option 'temperature': .*greater than 0"),
        ({"cds": 2}, "unknown option of method 'dsd' 'cds'; nearest: csd"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as error:
        check_options("dsd", options)
    assert "\n" not in str(error.value)


def test_without_psd_no_feature_is_needed() -> None:
    assert create_method("dsd", CLASSES, {}, {}, psd=0).labels == "ignore_mask"
    method = create_method("dsd", CLASSES, {}, {}, psd=0, csd=0)
    assert method.labels == "unused"
    assert method(output(STUDENT), output(TEACHER), None, 0.5) == {}
