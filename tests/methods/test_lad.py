from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from segtailor.config import ModelConfig
from segtailor.errors import SegtailorError
from segtailor.losses import Step, channel_kl, cross_entropy
from segtailor.methods import Method, check_options, create_method
from segtailor.methods.lad import DualPath, LabelAssistedDistillation, TeacherPretraining
from segtailor.models.label_assisted import LabelAssistedTeacher

from .cases import CLASSES, EVERY_TERM, STUDENT, TEACHER, labels, output
from .test_kt import fix_components
from .tester import MethodTester

NETWORK = ModelConfig(model="deeplabv3plus-lcnet_035")


def with_teacher(method: Method) -> None:
    """Do what the job and the stage do."""
    assert isinstance(method, LabelAssistedDistillation)
    method.use_teacher(LabelAssistedDistillation.build_teacher(method.options, NETWORK, CLASSES, seed=0))
    assert method.pretraining is not None
    method.pretraining.done = True


def with_teacher_and_components(method: Method) -> None:
    with_teacher(method)
    assert isinstance(method, LabelAssistedDistillation)
    fix_components(method.base)


class TestLabelAssisted(MethodTester):
    name = "lad"
    minimal: ClassVar = frozenset({"cwd_logits"})
    prepare = staticmethod(with_teacher)
    terms = frozenset({"cwd_logits"})


class TestLabelAssistedPublished(MethodTester):
    name = "lad"
    minimal: ClassVar = frozenset({"cwd_logits"})
    prepare = staticmethod(with_teacher)
    options: ClassVar = {"variant": "published"}
    void_matters = True
    terms = frozenset({"cwd_logits"})


class TestLabelAssistedWithFeatures(MethodTester):
    minimal: ClassVar = frozenset({"kd", "kd_aux"})
    name = "lad"
    prepare = staticmethod(with_teacher_and_components)
    options: ClassVar = {"base": {"name": "kt", **EVERY_TERM, "lt_class": 0, "lt_nonclass": 0}, "lad": 0.5}
    terms = frozenset({"kd", "kd_aux", "lt_all", "ft"})


def assisted(**options: Any) -> LabelAssistedDistillation:
    checked = check_options("lad", options)
    teacher = LabelAssistedDistillation.build_teacher(checked, NETWORK, CLASSES, seed=0)
    method = create_method("lad", CLASSES, teacher.tap_channels, teacher.tap_channels, **options)
    method.use_teacher(teacher)
    assert isinstance(method, LabelAssistedDistillation)
    return method


def images(batch: int = 2) -> Tensor:
    return torch.randint(0, 256, (batch, 3, 46, 63), dtype=torch.uint8)


def test_outside_the_engine_it_is_refused_until_its_teacher_is_there_and_trained() -> None:
    outputs = output(STUDENT), output(TEACHER, seed=2), labels(), 0.5
    with pytest.raises(SegtailorError, match="method lad learns from a teacher that it builds") as error:
        create_method("lad", CLASSES, STUDENT, TEACHER)(*outputs)
    assert "\n" not in str(error.value)
    with pytest.raises(SegtailorError, match="method lad: the label-assisted teacher must be trained first"):
        assisted()(*outputs)


def test_the_default_base_is_the_published_one() -> None:
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    method = create_method("lad", CLASSES, STUDENT, TEACHER, variant="published", lad=2.0)
    with_teacher(method)
    value = method(student, teacher, labels(), 0.5)["cwd_logits"]
    torch.testing.assert_close(value, 2 * 3 * channel_kl(student.logits, teacher.logits, 4))


@pytest.mark.parametrize("base", ["dist", {"name": "kd", "temperature": 4}, {"name": "feature"}])
def test_any_method_can_be_the_base(base: Any) -> None:
    student, teacher = output(STUDENT), output(TEACHER, seed=2)
    settings = {"name": base} if isinstance(base, str) else base
    torch.manual_seed(0)
    method = create_method("lad", CLASSES, STUDENT, TEACHER, base=base)
    with_teacher(method)
    torch.manual_seed(0)
    plain = create_method(num_classes=CLASSES, student_channels=STUDENT, teacher_channels=TEACHER, **settings)
    torch.testing.assert_close(
        method(student, teacher, labels(), 0.5), plain(student, teacher, labels(), 0.5), rtol=0, atol=0
    )


@pytest.mark.parametrize("base", ["maskd", "lad", "adversarial", "none", {"logits": 2}])
def test_a_base_with_a_training_of_its_own_is_refused(base: Any) -> None:
    with pytest.raises(SegtailorError, match="cannot be the base; choose one without pre-training"):
        create_method("lad", CLASSES, STUDENT, TEACHER, base=base)


def test_a_mistake_in_the_base_names_the_nearest() -> None:
    with pytest.raises(SegtailorError, match="unknown option of method 'cwd' 'logit'; nearest: logits"):
        create_method("lad", CLASSES, STUDENT, TEACHER, base={"name": "cwd", "logit": 2})


def test_the_objective_is_two_cross_entropies_and_their_agreement() -> None:
    method = assisted(variant="published")
    assert isinstance(method.pretraining, TeacherPretraining)
    objective = method.pretraining.objective(None)
    assert isinstance(objective, DualPath)
    objective.eval()  # batch norm rests, so that both paths can be computed again
    batch, target = images(), labels()
    torch.manual_seed(3)
    terms = objective(batch, target, None, Step(0.5))
    torch.manual_seed(3)
    first, second = (objective.assisted(batch, target) for _ in range(2))
    size = (target.shape[1], target.shape[2])
    task = sum(
        cross_entropy(objective.assisted.upsample(path.logits, size), target, Step()) for path in (first, second)
    )
    agreement = channel_kl(first.logits, second.logits, 4) + channel_kl(second.logits, first.logits, 4)
    torch.testing.assert_close(terms["task"], task)
    torch.testing.assert_close(terms["consistency"], 5 * agreement)
    assert not torch.equal(first.logits, second.logits)
    sum(terms.values()).backward()  # type: ignore[union-attr]
    first_filters = next(p for p in objective.assisted.model.backbone.parameters() if p.ndim == 4)
    assert first_filters.shape[1] == 4
    assert first_filters.grad is not None
    assert first_filters.grad[:, 3].abs().sum() > 0


def test_each_direction_of_the_agreement_holds_the_other_path_constant() -> None:
    first, second = output(STUDENT).logits, output(STUDENT, seed=5).logits
    both = channel_kl(first, second, 4.0) + channel_kl(second, first, 4.0)
    (gradient,) = torch.autograd.grad(both, first)
    (alone,) = torch.autograd.grad(channel_kl(first, second.detach(), 4.0), first)
    torch.testing.assert_close(gradient, alone)


def test_the_stage_hands_the_teacher_what_it_learnt(tmp_path: Path) -> None:
    method, path = assisted(), tmp_path / "lad.safetensors"
    stage, teacher = method.pretraining, method.own_teacher
    assert stage is not None
    assert isinstance(teacher, LabelAssistedTeacher)
    objective = stage.objective(None)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter.add_(0.01)
    before = teacher.fingerprint()
    stage.save(objective, path, {"seconds": 1.0})
    stage.load(path, None)
    assert teacher.fingerprint() != before
    expected = objective.assisted.model.state_dict()  # type: ignore[attr-defined,union-attr]
    torch.testing.assert_close(dict(teacher.model.state_dict()), dict(expected), rtol=0, atol=0)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_the_teacher_is_no_part_of_what_is_trained() -> None:
    method = assisted()
    assert not list(method.parameters())
    assert not method.state_dict()


def test_another_network_can_be_the_teacher() -> None:
    method = assisted(teacher="deeplabv3plus-lcnet_050")
    assert method.own_teacher is not None
    assert method.own_teacher.name == "deeplabv3plus-lcnet_050"
    assert method.pretraining is not None
    assert method.pretraining.key() != assisted().pretraining.key()  # type: ignore[union-attr]


def test_published_settings_of_the_stage() -> None:
    stage = assisted(variant="published").pretraining
    assert stage is not None
    assert stage.optimizer is not None
    assert (stage.steps, stage.optimizer.lr, stage.optimizer.weight_decay) == (40_000, 1e-3, 1e-4)
    assert assisted().pretraining.steps is None  # type: ignore[union-attr]
