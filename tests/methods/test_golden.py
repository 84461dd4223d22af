"""Published variants of kd, cwd and kt equal the published implementations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from segtailor.losses import full_precision
from segtailor.methods import Method, create_method
from segtailor.methods._kt_terms import FeatureTailoring, count_atoms, tailor

from .golden import CLASSES, STUDENT_WIDTH, TEACHER_WIDTH, assert_equals_golden, golden, module_state


def build(name: str, options: dict[str, Any]) -> Method:
    method = create_method(name, CLASSES, STUDENT_WIDTH, TEACHER_WIDTH, variant="published", **options)
    if name == "kt":
        module = method.tailoring["decoder"]
        assert isinstance(module, FeatureTailoring)
        module.load_state_dict(module_state("kt."))
    if name == "cwd":
        method.load_state_dict(module_state("cwd.feature."))
    return method


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
def test_equals_the_golden_figure(figure: str, name: str, options: dict[str, Any], term: str, progress: float) -> None:
    assert_equals_golden(figure, build(name, options), term, progress)


def test_tailored_teacher_logits_equal_the_golden_ones() -> None:
    stored = golden()
    logits, target = full_precision(stored["teacher_logits"]).flatten(2), stored["target"]
    atoms = count_atoms(target, 19, (8, 16), with_void=True)
    raised, capped = tailor(logits, atoms, atoms.inside * (logits > 0), target[0].numel())

    def enlarge(values: Tensor) -> Tensor:
        return torch.nn.functional.interpolate(values.unflatten(2, (8, 16)), scale_factor=8, mode="nearest")

    is_class = target.unsqueeze(1) == torch.arange(19).view(1, -1, 1, 1)
    tailored = torch.where(is_class, enlarge(raised), enlarge(capped))
    torch.testing.assert_close(tailored, stored["kt.lt.tailored_teacher_logits"], rtol=1e-5, atol=1e-5)
