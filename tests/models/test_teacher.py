from __future__ import annotations

import pytest
import torch

from segtailor.models import Teacher, create_model

IMAGES = torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TARGET = torch.zeros(2, 32, 48, dtype=torch.uint8)


@pytest.fixture
def teacher() -> Teacher:
    return Teacher(create_model("fcn-lcnet_050", 3).train())


def test_a_teacher_stays_in_eval_mode_and_frozen(teacher: Teacher) -> None:
    before = teacher.fingerprint()
    torch.nn.Sequential(teacher).train().requires_grad_(True)
    assert not any(module.training for module in teacher.modules())
    teacher.train()
    teacher.requires_grad_()
    assert not any(module.training for module in teacher.modules())
    output = teacher(IMAGES, TARGET)
    tensors = [output.logits, output.aux_logits, output.feature, *output.stages]
    assert not any(tensor.requires_grad for tensor in tensors)
    assert teacher.fingerprint() == before


def test_the_target_is_ignored_and_the_model_described(teacher: Teacher) -> None:
    assert torch.equal(teacher(IMAGES, TARGET).logits, teacher(IMAGES).logits)
    assert teacher.num_classes == 3
    assert teacher.has_aux
    assert teacher.tap_channels["feature"] == 64
    assert teacher.upsample(teacher(IMAGES).logits, (32, 48)).shape == (2, 3, 32, 48)


@pytest.mark.parametrize(
    "name", ["head.classifier.bias", "head.block.1.running_mean", "head.block.1.num_batches_tracked"]
)
def test_the_fingerprint_sees_every_bit(teacher: Teacher, name: str) -> None:
    before = teacher.fingerprint()
    tensor = teacher.model.state_dict()[name].view(-1)
    tensor[0] += 1
    assert teacher.fingerprint() != before
    tensor[0] -= 1
