"""Student and methods as one module."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from segtailor.engine.module import Adversaries, Distiller
from segtailor.losses import Step
from segtailor.methods import create_method
from segtailor.methods.adversarial import LogitAdversary
from segtailor.models import create_model

NAME = "deeplabv3plus-lcnet_035"


def distiller(*names: str, aux_weight: float = 0.4, **options: Any) -> tuple[Distiller, nn.Module]:
    torch.manual_seed(0)
    student, teacher = create_model(NAME, 4), create_model(NAME, 4).eval()
    methods = {
        name: create_method(
            name,
            num_classes=4,
            student_channels=student.tap_channels,
            teacher_channels=teacher.tap_channels,
            **options,
        )
        for name in names
    }
    return Distiller(student, methods, {"kd": 2.0}, aux_weight), teacher


def batch(void: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8)
    target = torch.full((2, 32, 48), 255) if void else torch.randint(0, 4, (2, 32, 48))
    return images, target.to(torch.uint8)


@pytest.mark.parametrize("variant", ["clean", "published"])
@pytest.mark.parametrize("progress", [0.1, 0.9])
def test_a_wholly_void_batch_gives_no_nan(variant: str, progress: float) -> None:
    module, teacher = distiller("kt", variant=variant)
    images, target = batch(void=True)
    with torch.no_grad():
        guide = teacher(images)
    terms = module(images, target, {"kt": guide}, Step(progress))
    assert float(terms["task"]) == 0.0
    torch.stack(list(terms.values())).sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name


def test_terms_are_named_and_weighted() -> None:
    module, teacher = distiller("kd", "cwd")
    module.eval()
    images, target = batch()
    with torch.no_grad():
        guide = teacher(images)
        terms = module(images, target, module.select(guide, {}), Step(0.5))
        plain = module.methods["kd"](module.student(images), guide, target, Step(0.5))
    assert float(terms["kd.kd"]) == pytest.approx(2 * float(plain["kd"]), rel=1e-5)
    assert {"task", "task_aux", "kd.kd", "cwd.cwd_logits"} <= terms.keys()


def test_without_a_teacher_only_the_task_is_left() -> None:
    module, _ = distiller("kt", aux_weight=0.0)
    assert set(module(*batch(), {}, Step(0.5))) == {"task"}


def test_the_auxiliary_weight_scales_its_term() -> None:
    heavy, _ = distiller(aux_weight=0.8)
    light, _ = distiller(aux_weight=0.4)
    images, target = batch()
    torch.manual_seed(1)
    a = heavy(images, target, {}, Step(0.5))["task_aux"]
    torch.manual_seed(1)
    b = light(images, target, {}, Step(0.5))["task_aux"]
    assert float(a) == pytest.approx(2 * float(b), rel=1e-4)


def test_the_state_holds_student_and_projectors() -> None:
    module, _ = distiller("kt")
    names = module.state_dict().keys()
    assert any(name.startswith("student.backbone.") for name in names)
    assert any(name.startswith("methods.kt.") for name in names)


@pytest.mark.parametrize(
    ("options", "synchronized"),
    [
        ({"variant": "published"}, True),
        ({"variant": "published", "loss": "wgan-gp"}, False),  # its penalty takes a second derivative
        ({"variant": "clean"}, False),  # has no batch norm
    ],
)
def test_an_adversary_shares_the_moments_of_its_batch_norm(options: dict[str, Any], synchronized: bool) -> None:
    method = create_method("adversarial", 4, 8, 8, width=8, **options)
    adversary = method.adversary
    assert isinstance(adversary, LogitAdversary)
    before = {name: value.clone() for name, value in adversary.state_dict().items()}
    fabric = SimpleNamespace(setup=lambda module, optimizer: (module, optimizer))
    adversaries = Adversaries(fabric, {"adversarial": adversary}, sync_batchnorm=True)
    assert method.adversary is adversary  # the student's pass goes through the same network
    norms = [part for part in adversary.modules() if isinstance(part, nn.SyncBatchNorm)]
    assert bool(norms) == synchronized
    assert isinstance(adversary.discriminator.norm, nn.SyncBatchNorm) == synchronized
    torch.testing.assert_close(dict(adversary.state_dict()), before, rtol=0, atol=0)
    trained = adversaries.optimizers["adversarial"].param_groups[0]["params"]
    assert {id(value) for value in trained} == {id(value) for value in adversary.parameters()}
