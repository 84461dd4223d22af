"""Optimizer and averaged weights."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from segtailor.config import OptimizerConfig
from segtailor.models.network import Network


def build_optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build SGD or AdamW over the trainable parameters of a distiller.

    Parameters of a network's encoder get ``lr``; all others (heads and the method's own) get ``lr * head_lr_factor``.
    One-dimensional parameters are left out of weight decay unless ``decay_norm_and_bias``.
    """
    encoders = {
        id(parameter)
        for network in module.modules()
        if isinstance(network, Network)
        for parameter in network.encoder_parameters()
    }
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in module.parameters():
        if not parameter.requires_grad:
            continue
        factor = 1.0 if id(parameter) in encoders else config.head_lr_factor
        spared = parameter.ndim <= 1 and not config.decay_norm_and_bias
        groups.setdefault((factor, 0.0 if spared else config.weight_decay), []).append(parameter)
    listed: list[dict[str, Any]] = [
        {"params": parameters, "lr": config.lr * factor, "weight_decay": decay, "lr_factor": factor}
        for (factor, decay), parameters in groups.items()
    ]
    if config.name == "sgd":
        return torch.optim.SGD(listed, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(listed, lr=config.lr, betas=config.betas)


class AveragedWeights:
    """An exponential moving average of a model's weights and buffers.

    The decay is warmed up as ``min(decay, (1 + n) / (10 + n))``, so that a short run is not held back by its start.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards ``model`` after ``step``."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = model.state_dict()
        for name, average in self.model.state_dict().items():
            value = current[name].to(average.device)
            if average.is_floating_point():
                average.lerp_(value.to(average.dtype), 1 - decay)
            else:
                average.copy_(value)
