from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from segtailor.errors import SegtailorError
from segtailor.methods import Method, create_method
from segtailor.methods.heteroakd import ClassProjector, Heterogeneous

from .cases import CLASSES, STUDENT, TEACHER, labels, output, tensors
from .processes import step_gradients
from .tester import EARLY, MethodTester, uneven_labels


class OneTermForTheTeachersProjector(MethodTester):
    """``teacher_task`` reads the teacher's feature alone, so no student tensor can be reached by it.

    The other terms share the student's projected feature: the gradients of one must leave the graph to the next.
    """

    def test_gradient_reaches_student_and_projectors_never_the_teacher(self) -> None:
        method, (student, teacher) = self.method(), self.pair_of_outputs()
        trained = dict(method.named_parameters())
        reached = set()
        for term, value in self.call(method, student, teacher, labels(), EARLY).items():
            leaves = {"student": tensors(student), "teacher": tensors(teacher), "method": trained}
            named = {(owner, key): leaf for owner, held in leaves.items() for key, leaf in held.items()}
            gradients = torch.autograd.grad(value, list(named.values()), allow_unused=True, retain_graph=True)
            found = {name for name, item in zip(named, gradients, strict=True) if item is not None and item.any()}
            owners = {owner for owner, _ in found}
            modules = {key.split(".")[1] for owner, key in found if owner == "method"}
            assert "teacher" not in owners
            assert ("student" in owners) == (term != "teacher_task")
            assert modules == {"hybrid": {"student"}, "student_task": {"student"}, "teacher_task": {"teacher"}}.get(
                term, set()
            )
            reached |= {key for owner, key in found if owner == "method"}
        assert reached == set(trained)


class TestHeterogeneous(OneTermForTheTeachersProjector):
    name = "heteroakd"
    minimal: ClassVar = frozenset({"kd"})
    couples_images = True
    terms = frozenset({"hybrid", "teacher_task", "student_task", "kd"})


def without_moments(method: Method) -> None:
    assert isinstance(method, Heterogeneous)
    for projector in method.projectors.values():
        assert isinstance(projector, ClassProjector)
        projector.forward = lambda feature, valid, project=projector.project: project(feature)  # type: ignore[method-assign]


def test_only_the_moments_couple_images() -> None:
    for prepare, same in ((None, False), (without_moments, True)):
        alone, parts = (step_gradients("heteroakd", {}, EARLY, uneven_labels(), count, prepare) for count in (1, 2))
        weights = [key for key in alone if key.startswith("student.")]
        assert same == all(torch.allclose(parts[key], alone[key], rtol=1e-4, atol=1e-5) for key in weights)


class TestHeterogeneousByEntropy(OneTermForTheTeachersProjector):
    name = "heteroakd"
    couples_images = True
    options: ClassVar = {"reliability": "entropy", "temperature": 2, "student_task": 0, "kd": 0}
    terms = frozenset({"hybrid", "teacher_task"})


class TestHeterogeneousLogitsAlone(MethodTester):
    name = "heteroakd"
    minimal: ClassVar = frozenset({"kd"})
    options: ClassVar = {"hybrid": 0}
    terms = frozenset({"kd"})


Cells = list[tuple[int, int, int, Tensor]]
"""Image, row, column and number of label pixels of each class, of every cell with some."""


def cells_of(target: Tensor, size: tuple[int, int]) -> Cells:
    counts = torch.zeros(len(target), *size, CLASSES)
    for image, i, j in (target != 255).nonzero().tolist():
        row, column = i * size[0] // target.shape[1], j * size[1] // target.shape[2]
        counts[image, row, column, int(target[image, i, j])] += 1
    return [(*key, counts[tuple(key)]) for key in (counts.sum(3) > 0).nonzero().tolist()]  # type: ignore[misc]


def loop_projection(projector: ClassProjector, feature: Tensor, cells: Cells) -> list[Tensor]:
    """Return the K values of every cell, each channel standardized over the pixels of all cells."""
    values = [projector.project.weight[:, :, 0, 0] @ feature[image, :, i, j] for image, i, j, _ in cells]
    pixels = torch.stack(
        [value for value, (*_, counts) in zip(values, cells, strict=True) for _ in range(int(counts.sum()))]
    )
    mean, variance = pixels.mean(0), pixels.var(0, unbiased=False)
    return [projector.weight * (value - mean) / (variance + 1e-5).sqrt() + projector.bias for value in values]


@pytest.mark.parametrize("reliability", ["labels", "entropy"])
def test_terms_equal_plain_loops(reliability: str) -> None:
    student, teacher, target = output(STUDENT), output(TEACHER, seed=2), labels()
    target[1, :, 20:] = 255
    torch.manual_seed(0)
    weights = {"hybrid": 2, "teacher_task": 3, "student_task": 5, "kd": 0, "temperature": 1.5}
    method = create_method("heteroakd", CLASSES, STUDENT, TEACHER, reliability=reliability, **weights)
    assert isinstance(method, Heterogeneous)
    for parameter in method.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    cells = cells_of(target, (6, 8))
    with torch.no_grad():
        own, guide = (
            loop_projection(method.projectors[role], output.feature, cells)  # type: ignore[arg-type]
            for role, output in (("student", student), ("teacher", teacher))
        )
    expected = {"hybrid": 0.0, "teacher_task": 0.0, "student_task": 0.0}
    boost: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    divergences = []
    for (image, _, _, counts), z_s, z_t in zip(cells, own, guide, strict=True):

        def doubt(logits: Tensor, counts: Tensor = counts) -> Tensor:
            share = counts / counts.sum() if reliability == "labels" else logits.softmax(0)
            return -(share * logits.log_softmax(0)).sum()

        trust = 1 - doubt(z_t) / (doubt(z_t) + doubt(z_s))
        mixed = trust * z_t + (1 - trust) * z_s
        boost[image].append((float((doubt(z_s) - doubt(mixed)).relu().exp()), float(counts.sum())))
        p, q = ((logits / 1.5).log_softmax(0) for logits in (mixed, z_s))
        divergences.append(1.5**2 * float((p.exp() * (p - q)).sum()))
        expected["teacher_task"] -= float((counts * z_t.log_softmax(0)).sum())
        expected["student_task"] -= float((counts * z_s.log_softmax(0)).sum())
    means = {
        image: sum(value * count for value, count in items) / sum(count for _, count in items)
        for image, items in boost.items()
    }
    images = [image for image, *_ in cells]
    for image, (value, count), kl in zip(images, boost[0] + boost[1], divergences, strict=True):
        expected["hybrid"] += count * value / means[image] * kl
    pixels = sum(float(counts.sum()) for *_, counts in cells)
    terms = method(student, teacher, target, 0.5)
    assert set(terms) == set(expected)
    for term, value in expected.items():
        torch.testing.assert_close(terms[term].item(), weights[term] * value / pixels, rtol=1e-4, atol=0, msg=term)


def test_where_the_student_is_surer_of_the_labels_the_target_stays_with_it() -> None:
    method = create_method("heteroakd", 2, 2, 2)
    assert isinstance(method, Heterogeneous)
    maps = torch.tensor([[9.0, -9.0], [-9.0, 9.0]]).view(1, 2, 1, 2)  # right in the first cell, wrong in the second
    shares = torch.tensor([[1.0, 1.0], [0.0, 0.0]]).view(1, 2, 1, 2)
    mixed, weight = method._target(maps, -maps, shares, torch.ones(1, 1, 1, 2))
    torch.testing.assert_close(mixed[0, :, 0], torch.tensor([[9.0, 9.0], [-9.0, -9.0]]), rtol=0, atol=1e-3)
    assert weight[0, 0, 1] > 1.9  # all there is to learn is in the second cell
    torch.testing.assert_close(weight.mean(), torch.tensor(1.0))


def test_a_single_valid_cell_gives_constant_maps_and_finite_gradients() -> None:
    student, teacher = output(STUDENT, 1, (1, 1)), output(TEACHER, 1, (1, 1), seed=2)
    method = create_method("heteroakd", CLASSES, STUDENT, TEACHER)
    terms = method(student, teacher, torch.zeros(1, 8, 8, dtype=torch.uint8), 0.5)
    torch.testing.assert_close(terms["student_task"], torch.tensor(CLASSES).log())
    sum(terms.values()).backward()  # type: ignore[union-attr]
    assert all(value.grad is None or value.grad.isfinite().all() for value in method.parameters())


def test_without_the_hybrid_term_there_are_no_projectors_and_no_feature_is_needed() -> None:
    method = create_method("heteroakd", 4, {}, {}, hybrid=0)
    assert not list(method.parameters())
    assert method.labels == "classes"
    assert method.inputs == {"logits"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher_task": 0}, "method 'heteroakd', option 'teacher_task': .*trains the teacher's projector"),
        ({"reliability": "label"}, "option 'reliability': .*'labels' or 'entropy'"),
        ({"temperature": 0}, "option 'temperature': .*greater than 0"),
        ({"hybrd": 1}, "unknown option of method 'heteroakd' 'hybrd'; nearest: hybrid"),
    ],
)
def test_mistakes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SegtailorError, match=message) as error:
        create_method("heteroakd", CLASSES, STUDENT, TEACHER, **options)
    assert "\n" not in str(error.value)


def test_the_teachers_projector_may_go_untrained_only_without_a_target() -> None:
    assert create_method("heteroakd", CLASSES, STUDENT, TEACHER, teacher_task=0, hybrid=0).inputs == {"logits"}
