"""Published variants equal the published implementations: values to 1e-5, gradients to 1e-4 of their largest entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from segtailor.losses import full_precision
from segtailor.methods import Method, create_method
from segtailor.methods.tailoring.logits import count_atoms, tailor
from segtailor.methods.tailoring.recombination import FeatureTailoring
from segtailor.models.output import SegOutput

FILE = Path(__file__).parents[1] / "golden" / "case_a.safetensors"


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(FILE)


def build(golden: dict[str, Tensor], name: str, options: dict[str, Any]) -> Method:
    method = create_method(name, 19, student_channels=128, teacher_channels=256, variant="published", **options)
    if name == "kt":
        module = method.tailoring["decoder"]
        assert isinstance(module, FeatureTailoring)
        prefix = "modules.kt."
        module.load_state_dict({key[len(prefix) :]: value for key, value in golden.items() if key.startswith(prefix)})
    if name == "cwd":
        method.load_state_dict({"projector.weight": golden["modules.cwd.feature.projector.weight"]})
    return method


def outputs(golden: dict[str, Tensor]) -> tuple[SegOutput, SegOutput]:
    student = SegOutput(
        logits=golden["student_logits"].clone().requires_grad_(),
        aux_logits=golden["student_aux_logits"].clone().requires_grad_(),
        classifier_input=golden["student_feature"].clone().requires_grad_(),
    )
    teacher = SegOutput(
        logits=golden["teacher_logits"],
        aux_logits=golden["teacher_aux_logits"],
        classifier_input=golden["teacher_feature"],
    )
    return student, teacher


@pytest.mark.parametrize(
    ("figure", "name", "options", "term", "progress"),
    [
        ("kd.T1", "kd", {}, "kd", 0.5),
        ("kd.T4", "kd", {"temperature": 4}, "kd", 0.5),
        ("cwd.logits.T4", "cwd", {"logits": 1, "feature": 1}, "cwd_logits", 0.5),
        ("cwd.feature.T4", "cwd", {"logits": 1, "feature": 1}, "cwd_feature", 0.5),
        ("kt.kd.main", "kt", {}, "kd", 0.1),
        ("kt.kd.aux", "kt", {"kd_aux": 1}, "kd_aux", 0.1),
        ("kt.lt.all", "kt", {}, "lt_all", 0.1),
        ("kt.lt.class", "kt", {}, "lt_class", 0.5),
        ("kt.lt.nonclass", "kt", {}, "lt_nonclass", 0.5),
        ("kt.ft.early", "kt", {}, "ft", 0.1),
        ("kt.ft.late", "kt", {}, "ft", 0.25),
        ("kt.contrastive.early", "kt", {}, "contrastive", 0.2499),
        ("kt.contrastive.late", "kt", {}, "contrastive", 1.0),
    ],
)
def test_equals_the_golden_figure(
    golden: dict[str, Tensor], figure: str, name: str, options: dict[str, Any], term: str, progress: float
) -> None:
    student, teacher = outputs(golden)
    value = build(golden, name, options)(student, teacher, golden["target"], progress)[term]
    torch.testing.assert_close(value.double(), golden[f"{figure}.value"][0], rtol=1e-5, atol=0)
    value.backward()
    leaves = {"logits": student.logits, "aux_logits": student.aux_logits, "feature": student.classifier_input}
    checked = 0
    for leaf, tensor in leaves.items():
        assert tensor is not None
        expected = golden.get(f"{figure}.grad.student_{leaf}")
        if expected is None:
            assert tensor.grad is None or not tensor.grad.any()
            continue
        assert tensor.grad is not None
        assert (tensor.grad - expected).abs().max() <= 1e-4 * expected.abs().max()
        checked += 1
    assert checked == 1


def test_tailored_teacher_logits_equal_the_golden_ones(golden: dict[str, Tensor]) -> None:
    logits, target = full_precision(golden["teacher_logits"]).flatten(2), golden["target"]
    atoms = count_atoms(target, 19, (8, 16), with_void=True)
    raised, capped = tailor(logits, atoms, atoms.inside * (logits > 0), target[0].numel())

    def enlarge(values: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(values.unflatten(2, (8, 16)), scale_factor=8, mode="nearest")

    is_class = target.unsqueeze(1) == torch.arange(19).view(1, -1, 1, 1)
    tailored = torch.where(is_class, enlarge(raised), enlarge(capped))
    torch.testing.assert_close(tailored, golden["kt.lt.tailored_teacher_logits"], rtol=1e-5, atol=1e-5)
