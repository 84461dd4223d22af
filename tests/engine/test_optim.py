"""Schedules, parameter groups and averaged weights."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from segtailor.config import OptimizerConfig, ScheduleConfig
from segtailor.engine.loop import learning_rate, set_learning_rate
from segtailor.engine.optim import AveragedWeights, build_optimizer
from segtailor.models import Preprocess, create_model
from segtailor.models.adapters.wrapper import Adapted


def test_poly_is_the_published_schedule() -> None:
    for step in (1, 17, 400):
        expected = 0.02 * (1 - (step - 1) / 400) ** 0.9
        assert learning_rate(step, 400, 0.02, ScheduleConfig(power=0.9)) == pytest.approx(expected)


def test_warm_up_rises_and_the_floor_holds() -> None:
    schedule = ScheduleConfig(power=0.9, warmup=10, floor=0.001)
    rates = [learning_rate(step, 100, 0.01, schedule) for step in range(1, 101)]
    assert rates[0] == pytest.approx(0.001)
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert min(rates[10:]) >= 0.001


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)
        self.frozen = nn.Parameter(torch.zeros(3), requires_grad=False)


def test_groups_separate_heads_and_spared_parameters() -> None:
    net = create_model("fcn-lcnet_050", 2)
    net.head.classifier.bias.requires_grad_(False)
    config = OptimizerConfig(name="sgd", lr=0.1, weight_decay=0.01, head_lr_factor=10, decay_norm_and_bias=False)
    optimizer = build_optimizer(nn.ModuleDict({"student": net, "projector": nn.Conv2d(2, 2, 1)}), config)
    set_learning_rate(optimizer, 0.05)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    for parameter in net.backbone.parameters():
        assert found[id(parameter)] == (0.05, 0.01 if parameter.ndim > 1 else 0.0)
    for parameter in net.head.parameters():
        if parameter.requires_grad:
            assert found[id(parameter)] == (0.5, 0.01 if parameter.ndim > 1 else 0.0)
    assert id(net.head.classifier.bias) not in found
    assert len(found) == sum(1 for _ in net.parameters()) + 1


@pytest.mark.parametrize("encoder", ["encoder", None])
def test_the_encoder_of_a_foreign_network_has_the_backbones_rate(encoder: str | None) -> None:
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1))
            self.classifier = nn.Conv2d(16, 3, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.classifier(self.encoder(x))

    net = Adapted("module:mine:net", 3, Foreign(), Preprocess(), encoder=encoder)
    optimizer = build_optimizer(net, OptimizerConfig(lr=0.1, head_lr_factor=10))
    found = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    assert found[id(net.net.encoder[0].weight)] == 0.1
    assert found[id(net.net.classifier.weight)] == 1.0


def test_the_published_recipe_is_one_group() -> None:
    optimizer = build_optimizer(Net(), OptimizerConfig(name="sgd", lr=0.02, weight_decay=5e-4))
    assert len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_averaged_weights_follow_and_copy_counters() -> None:
    net = Net()
    average = AveragedWeights(net, 0.5)
    before = net.head.weight.detach().clone()
    with torch.no_grad():
        net.head.weight.add_(1)
        counter = net.backbone[1].num_batches_tracked
        assert counter is not None
        counter.add_(7)
    average.update(net, step=10_000)
    state = average.model.state_dict()
    assert torch.allclose(state["head.weight"], before + 0.5)
    assert int(state["backbone.1.num_batches_tracked"]) == 7
    assert not any(p.requires_grad for p in average.model.parameters())
