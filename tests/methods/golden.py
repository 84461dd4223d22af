"""The published implementations' figures: values to 1e-5, gradients to 1e-4 of their largest entry."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from segtailor.methods import Method
from segtailor.models.network import SegOutput

FILE = Path(__file__).parents[1] / "golden" / "case_a.safetensors"
CLASSES, STUDENT_WIDTH, TEACHER_WIDTH = 19, 128, 256


@cache
def golden() -> dict[str, Tensor]:
    """Return every tensor of the file: inputs, modules, values, gradients."""
    return load_file(FILE)


def module_state(prefix: str) -> dict[str, Tensor]:
    """Return the tensors ``modules.PREFIX*`` without that prefix."""
    start = f"modules.{prefix}"
    return {key[len(start) :]: value for key, value in golden().items() if key.startswith(start)}


def outputs() -> tuple[SegOutput, SegOutput]:
    """Return the student's output, leaves that ask for gradients, and the teacher's."""
    stored = golden()
    student = SegOutput(
        logits=stored["student_logits"].clone().requires_grad_(),
        aux_logits=stored["student_aux_logits"].clone().requires_grad_(),
        classifier_input=stored["student_feature"].clone().requires_grad_(),
    )
    teacher = SegOutput(
        logits=stored["teacher_logits"],
        aux_logits=stored["teacher_aux_logits"],
        classifier_input=stored["teacher_feature"],
    )
    return student, teacher


def assert_equals_golden(figure: str, method: Method, term: str, progress: float = 0.5, scale: float = 1.0) -> None:
    """Compare ``term`` of ``method`` with ``scale`` times the figure: its value, and the gradients the file holds."""
    stored = golden()
    student, teacher = outputs()
    value = method(student, teacher, stored["target"], progress)[term] / scale
    torch.testing.assert_close(value.double(), stored[f"{figure}.value"][0], rtol=1e-5, atol=0)
    value.backward()
    leaves = {"logits": student.logits, "aux_logits": student.aux_logits, "feature": student.classifier_input}
    checked = 0
    for leaf, tensor in leaves.items():
        assert tensor is not None
        expected = stored.get(f"{figure}.grad.student_{leaf}")
        if expected is None:
            assert tensor.grad is None or not tensor.grad.any()
            continue
        assert tensor.grad is not None
        assert (tensor.grad - expected).abs().max() <= 1e-4 * expected.abs().max()
        checked += 1
    assert checked == 1
