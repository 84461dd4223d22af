from __future__ import annotations

import torch

from segtailor.models import SegOutput


def test_taps_are_found_by_name_and_detached_together() -> None:
    base = torch.ones(1, requires_grad=True)
    output = SegOutput(base * 1, base * 2, base * 3, base * 4, (base * 5, base * 6), {"other": base * 7})
    names = ("logits", "aux_logits", "feature", "classifier_input", "stages.0", "stages.1", "other")
    assert [output.tap(name).item() for name in names] == [1, 2, 3, 4, 5, 6, 7]
    assert output.tap("stages.2") is None
    assert output.tap("nothing") is None
    cut = output.detach()
    assert [cut.tap(name).item() for name in names] == [1, 2, 3, 4, 5, 6, 7]
    assert not any(cut.tap(name).requires_grad for name in names)
    assert output.logits.requires_grad
    assert SegOutput(base).detach().feature is None
