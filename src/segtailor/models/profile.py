"""What a model costs: parameters, multiply-adds, and the published tables' own count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segtailor.models.backbones import run_without_values
from segtailor.models.network import Network
from segtailor.models.output import SegOutput


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, those of a file that runs outside PyTorch included."""
    stored = sum(getattr(part, "stored_parameters", 0) for part in model.modules())
    return stored + sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: Network, size: tuple[int, int]) -> int:
    """Return the multiply-adds of one image of ``size``: convolutions, linear layers and attention products.

    They are 0 for a network that runs outside PyTorch, whose work is not seen.
    """
    with FlopCounterMode(display=False) as counter:
        run_on_meta(model, size)
    return int(counter.get_total_flops()) // 2


def published_multiply_adds(model: Network, size: tuple[int, int]) -> int:
    """Return what the published tables' counter says for one image of ``size``.

    It takes ``(size + 2 * padding - kernel) // stride + 1`` as a convolution's output size, which is too large for a
    dilated one, counts a linear layer once whatever it is applied to, and counts nothing else. Source: the benchmark
    that Table 1 of the KT paper (doi 10.1016/j.patcog.2025.112399) takes its FLOPs from.
    """
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], _: Any) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += _published_convolution(module, inputs[0])
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    try:
        run_on_meta(model, size)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def _published_convolution(module: nn.Conv2d, x: Tensor) -> int:
    cells = 1
    for axis in range(2):
        padding = module.padding[axis]
        assert isinstance(padding, int)
        cells *= (x.shape[2 + axis] + 2 * padding - module.kernel_size[axis]) // module.stride[axis] + 1
    return module.weight.numel() * cells


def run_on_meta(model: Network, size: tuple[int, int], exact: bool = False) -> SegOutput:
    """Run ``model`` in eval mode on one image of ``size``; the output has shapes alone.

    The size is what the network makes of it (its own, or padded to its multiple), unless ``exact``. Nothing is computed
    or stored, but for networks that cannot run without values.
    """
    if not exact or model.preprocess.size is not None:
        size = model.preprocess.input_size(size)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        output: SegOutput
        try:
            output = run_without_values(_Normalised(model), torch.empty(1, model.planes, *size, device="meta"))
        except Exception:  # foreign networks may look at values, or run outside PyTorch
            device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
            with torch.no_grad():
                output = model.forward_normalised(torch.zeros(1, model.planes, *size, device=device))
        return output.to("meta")
    finally:
        for module, was_training in training.items():
            module.training = was_training


class _Normalised(nn.Module):
    """Gives `forward_normalised` the name that `functional_call` asks for."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> SegOutput:
        return self.model.forward_normalised(inputs)
