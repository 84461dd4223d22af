"""Every method between families: other widths, strides and grids, from a CNN to a transformer and back."""

from __future__ import annotations

import pytest
import torch

from segtailor.jobs.alignment import align
from segtailor.methods import METHODS, create_method
from segtailor.methods.maskd import MaskedDistillation
from segtailor.models import Segmenter, Teacher, create_model

CLASSES = 5
VARIANTS = {
    name: ("clean", "published") if "variant" in METHODS[name].Options.model_fields else (None,) for name in METHODS
}
CASES = [
    (name, variant)
    for name, variants in VARIANTS.items()
    for variant in variants
    # Published dsd needs auxiliary logits, which a SegFormer has not; that it is refused is tested with it.
    if name != "none" and (name, variant) != ("dsd", "published")
]
CNN, TRANSFORMER = "deeplabv3plus-lcnet_035", "segformer-mit_b0"


def network(name: str) -> Segmenter:
    torch.manual_seed(0)
    return create_model(name, CLASSES, head_width=24 if name == TRANSFORMER else 16)


@pytest.mark.parametrize("pair", [(CNN, TRANSFORMER), (TRANSFORMER, CNN)], ids=["to transformer", "to CNN"])
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_a_step_between_families(
    name: str, variant: str | None, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"variant": variant} if variant else {}
    teacher, student = Teacher(network(pair[0])), network(pair[1]).train()
    before = teacher.fingerprint()
    torch.manual_seed(0)
    method = create_method(name, CLASSES, student.tap_channels, teacher.tap_channels, **options)
    if isinstance(method, MaskedDistillation):
        method.load_state_dict({"tokens": 0.1 * torch.randn_like(method.tokens)}, strict=False)
    monkeypatch.setattr(method, "check_driven", lambda: None)  # no adversary is trained here, no own teacher either
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8)
    target = torch.randint(0, CLASSES, (2, 8, 12), dtype=torch.uint8).repeat_interleave(8, 1).repeat_interleave(8, 2)
    target[:, :8] = 255
    output = student(images)
    for progress in (0.1, 0.9):
        terms = method(output, method.select(teacher(images, target)), target, progress)
        assert terms
        total = torch.stack(list(terms.values())).sum()
        assert total.isfinite()
        student.zero_grad()
        total.backward(retain_graph=True)
        gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
        assert any(gradient.abs().sum() > 0 for gradient in gradients)
        assert all(gradient.isfinite().all() for gradient in gradients)
    assert teacher.fingerprint() == before
    assert align(student, teacher, {name: method}, (64, 96)) or name == "lad"
