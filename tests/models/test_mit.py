from __future__ import annotations

import pytest
import torch
from torch import nn

from segtailor.models.mit import MIT_SIZES, DropPath, MixTransformer


def test_layer_norms_have_the_published_epsilons() -> None:
    with torch.device("meta"):
        net = MixTransformer(MIT_SIZES["mit_b0"])
    epsilons = {name: module.eps for name, module in net.named_modules() if isinstance(module, nn.LayerNorm)}
    small = {name for name, value in epsilons.items() if value == 1e-6}
    large = {name for name, value in epsilons.items() if value == 1e-5}
    assert small | large == set(epsilons)
    assert large == {name for name in epsilons if name.startswith("patch_embed") or name.endswith("attn.norm")}


@pytest.mark.parametrize(("name", "millions"), [("mit_b0", 3.32), ("mit_b2", 24.2), ("mit_b4", 60.8), ("mit_b5", 81.4)])
def test_sizes_are_the_papers(name: str, millions: float) -> None:
    with torch.device("meta"):
        net = MixTransformer(MIT_SIZES[name])
    assert sum(parameter.numel() for parameter in net.parameters()) / 1e6 == pytest.approx(millions, rel=0.01)


def test_sizes_that_do_not_divide_by_32_work() -> None:
    net = MixTransformer(MIT_SIZES["mit_b0"]).eval()
    with torch.no_grad():
        shapes = [tuple(item.shape[-2:]) for item in net(torch.randn(1, 3, 45, 70))]
    assert shapes == [(12, 18), (6, 9), (3, 5), (2, 3)]


def test_drop_path_drops_whole_images_keeps_the_mean_and_rises_with_depth() -> None:
    torch.manual_seed(0)
    drop = DropPath(0.25).train()
    kept = drop(torch.ones(4000, 2, 3)).flatten(1)
    assert kept.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert torch.equal(kept.amin(1), kept.amax(1))
    assert kept.mean().item() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(drop.eval()(torch.ones(4, 2, 3)), torch.ones(4, 2, 3))
    with torch.device("meta"):
        net = MixTransformer(MIT_SIZES["mit_b0"])
    rates = [module.rate for module in net.modules() if isinstance(module, DropPath)]
    assert rates == sorted(rates)
    assert (rates[0], rates[-1]) == (0.0, pytest.approx(0.1))
