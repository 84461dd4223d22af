"""Parameters, multiply-adds and taps of a model, and every module by its path."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from segtailor.errors import SegtailorError
from segtailor.models.adapters.discovery import find_maps
from segtailor.models.adapters.onnx import OnnxNetwork
from segtailor.models.adapters.wrapper import Adapted, run_on_noise
from segtailor.models.backbones import run_without_values
from segtailor.models.network import Network, SegOutput
from segtailor.models.segmenter import Segmenter, is_published
from segtailor.models.taps import evaluated, layout_of, to_map, trace


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, those of a file that runs outside PyTorch included."""
    stored = sum(getattr(part, "stored_parameters", 0) for part in model.modules())
    return stored + sum(parameter.numel() for parameter in model.parameters())


def count_multiply_adds(model: Network, size: tuple[int, int]) -> int:
    """Return the multiply-adds of one image of ``size``: convolutions, linear layers and attention products.

    They are 0 for a network that runs outside PyTorch, whose work is not seen.
    """
    return run_and_count(model, size)[1]


def run_and_count(model: Network, size: tuple[int, int], exact: bool = False) -> tuple[SegOutput, int]:
    """Return what `run_on_meta` gives, and the multiply-adds that it takes."""
    with FlopCounterMode(display=False) as counter:
        output = run_on_meta(model, size, exact)
    return output, int(counter.get_total_flops()) // 2


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
            padding: Any = module.padding
            geometry = zip(inputs[0].shape[2:], padding, module.kernel_size, module.stride, strict=True)
            cells = math.prod((side + 2 * pad - kernel) // stride + 1 for side, pad, kernel, stride in geometry)
            total += module.weight.numel() * cells
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()

    hooks = [module.register_forward_hook(count) for module in model.modules()]
    try:
        run_on_meta(model, size)
    finally:
        for hook in hooks:
            hook.remove()
    return total


def run_on_meta(model: Network, size: tuple[int, int], exact: bool = False) -> SegOutput:
    """Run ``model`` in eval mode on one image of ``size``; the output has shapes alone.

    The size is padded to the network's multiple, or replaced by its one size, unless ``exact``. Nothing is computed
    or stored, but for networks that cannot run without values.
    """
    if not exact or model.preprocess.size is not None:
        size = model.preprocess.input_size(size)
    with evaluated(model), torch.no_grad():
        output: SegOutput
        try:
            output = run_without_values(_Normalized(model), torch.empty(1, model.planes, *size, device="meta"))
        except Exception:  # foreign networks may look at values, or run outside PyTorch
            device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
            output = model.forward_normalized(torch.zeros(1, model.planes, *size, device=device))
    return output.to("meta")


class _Normalized(nn.Module):
    """Gives `forward_normalized` the name that `functional_call` asks for."""

    def __init__(self, model: Network) -> None:
        super().__init__()
        self.model = model

    def forward(self, inputs: Tensor) -> SegOutput:
        return self.model.forward_normalized(inputs)


DEFAULT_TAP = "feature"
"""The tap that feature methods use unless a recipe names another."""


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return ``rows`` as lines of a table whose third column is numbers."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pads = [str.rjust if index == 2 else str.ljust for index in range(len(widths))]
    return [
        "  " + "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)).rstrip()
        for row in rows
    ]


class TapInfo(NamedTuple):
    """A tap's name, its shape (C,h,w) for one image, and its stride."""

    name: str
    shape: tuple[int, ...]
    stride: int


@dataclass(frozen=True)
class Inspection:
    """The findings of `inspect_model`; ``published_multiply_adds`` is None outside the published family."""

    name: str
    num_classes: int
    size: tuple[int, int]
    parameters: int
    multiply_adds: int
    published_multiply_adds: int | None
    taps: list[TapInfo]
    output_stride: int
    note: str
    preprocess: str
    licenses: dict[str, str]

    def text(self) -> str:
        """Return the lines that `segtailor inspect` prints."""
        height, width = self.size
        lines = [
            f"{self.name}, {self.num_classes} classes, at {height} x {width}",
            f"  parameters      {self.parameters / 1e6:.3f} M",
            f"  multiply-adds   {f'{self.multiply_adds / 1e9:.2f} G' if self.multiply_adds else 'not counted'}",
        ]
        if self.published_multiply_adds is not None:
            figure = f"{self.published_multiply_adds / 1e9:.1f} G"
            lines.append(
                f"  published count {figure} (the published tables' counter; wrong for dilation and linear layers)"
            )
        lines.append(f"  output stride   {self.output_stride}{f' ({self.note})' if self.note else ''}")
        lines.append(f"  input           {self.preprocess}")
        lines += [f"  license         {part}: {text}" for part, text in self.licenses.items()]
        rows = [("tap", "shape", "stride")]
        rows += [(tap.name, " x ".join(map(str, tap.shape)), str(tap.stride)) for tap in self.taps]
        default = next((tap for tap in self.taps if tap.name == DEFAULT_TAP), None)
        last = (
            "It gives no feature: choose a method that compares logits, or name one of its modules as a tap: "
            "taps: {feature: PATH}."
            if default is None
            else f"Methods use the tap '{DEFAULT_TAP}' unless a recipe names another: {default.shape[0]} channels at "
            f"stride {default.stride}."
        )
        return "\n".join([*lines, "", *_aligned(rows), "", last])


def inspect_model(model: Network, size: tuple[int, int] = (512, 1024)) -> Inspection:
    """Return cost and taps of ``model`` for one image of ``size`` (height, width); computes no value."""
    padded = model.preprocess.input_size(size)
    output, multiply_adds = run_and_count(model, padded)
    stages = [f"stages.{index}" for index in range(len(output.stages))]
    taps = [
        TapInfo(name, tuple(tensor.shape[1:]), _stride(name, tensor, output, model, padded))
        for name in [*stages, *output.taps, "aux_logits", "feature", "classifier_input", "logits"]
        if (tensor := output.tap(name)) is not None
    ]
    return Inspection(
        name=model.name,
        num_classes=model.num_classes,
        size=padded,
        parameters=count_parameters(model),
        multiply_adds=multiply_adds,
        published_multiply_adds=published_multiply_adds(model, padded) if is_published(model.name) else None,
        taps=taps,
        output_stride=model.stage_strides[-1] if model.stage_strides else taps[-1].stride,
        note=model.note,
        preprocess=_describe_input(model),
        licenses=dict(model.licenses),
    )


def _stride(name: str, tensor: Tensor, output: SegOutput, model: Network, size: tuple[int, int]) -> int:
    """Return the stride of the backbone's map that ``tensor`` is as large as; sizes need not divide by strides."""
    if name.startswith("stages."):
        return model.stage_strides[int(name.removeprefix("stages."))]
    for stage, stride in zip(reversed(output.stages), reversed(model.stage_strides), strict=True):
        if stage.shape[-2:] == tensor.shape[-2:]:
            return stride
    return round(size[0] / tensor.shape[-2])


def _describe_input(model: Network) -> str:
    spec = model.preprocess.spec()
    top = round(255 * spec["scale"], 4)
    mean, std = ([round(value, 3) for value in spec[key]] for key in ("mean", "std"))
    text = f"{spec['channel_order'].upper()} 0..{top:g}, mean {mean}, std {std}"
    if model.preprocess.size is not None:
        return f"{text}, resized to {model.preprocess.size[0]} x {model.preprocess.size[1]}"
    multiple = spec["size_multiple"]
    return text if multiple == 1 else f"{text}, padded to a multiple of {multiple}"


class PathInfo(NamedTuple):
    """A module's path, the shape (C,h,w) of its output for one image, its stride, and the taps that it is.

    ``shape`` is the output's own without its batch, and ``stride`` None, where it is no map of the image.
    """

    path: str
    shape: tuple[int, ...]
    stride: int | None
    taps: tuple[str, ...]


class PathList(NamedTuple):
    """The findings of `list_paths` at ``size`` (height, width); paths are those that a recipe's ``taps`` take."""

    name: str
    size: tuple[int, int]
    paths: list[PathInfo]
    hidden: dict[str, str]

    def text(self) -> str:
        """Return the lines that `segtailor inspect --paths` prints."""
        rows = [("path", "output", "stride", "tap")]
        rows += [
            (path, " x ".join(map(str, shape)), "-" if stride is None else str(stride), ", ".join(taps))
            for path, shape, stride, taps in self.paths
        ]
        lines = [f"{self.name} at {self.size[0]} x {self.size[1]}, its modules in the order of a forward", ""]
        lines += [*_aligned(rows), "", *(f"  {name} is {where}" for name, where in self.hidden.items())]
        example = next(
            (row for row in reversed(self.paths) if any(tap.startswith("stages.") for tap in row.taps)), None
        )
        path = example.path if example is not None else next(row.path for row in self.paths if row.stride is not None)
        lines.append(
            "The taps on the right are built in. Any other map of the image can be named in the recipe, as in "
            f"taps: {{mine: {path}}}."
        )
        return "\n".join(line for index, line in enumerate(lines) if line or lines[index - 1])


def list_paths(model: Network, size: tuple[int, int] = (512, 1024)) -> PathList:
    """Return every module path of ``model`` that runs, for one image of ``size`` (height, width).

    Raises SegtailorError for a network that shows no modules.
    """
    root = _root(model)
    known = model.tap_sources if isinstance(model, Adapted) else {}
    padded = model.preprocess.input_size(size)
    steps, _ = trace(root, lambda: run_on_meta(model, padded))
    names: dict[str, list[str]] = {}
    hidden = {}
    for tap, given_by in _find(model).items():
        source = known.get(tap)
        path = source.path if source is not None and source.side == "output" else given_by
        if path is not None:
            names.setdefault(path, []).append(tap)
        else:
            hidden[tap] = "no one module's output" if source is None else f"the input of {source.path}"
    outputs = {step.path: step.output for step in steps if step.output is not None}
    rows = []
    for path, output in outputs.items():
        layout = layout_of(output, padded)
        shown = output if layout is None else to_map(output, layout[0], padded, path)
        stride = None if layout is None else layout[2]
        rows.append(PathInfo(path, tuple(shown.shape[1:]), stride, tuple(names.get(path, []))))
    return PathList(model.name, padded, rows, hidden)


def _root(model: Network) -> nn.Module:
    """Return the module below which taps are named."""
    if isinstance(model, Adapted):
        return model.net
    if isinstance(model, Segmenter):
        return model
    offers = model.program.offers if isinstance(model, OnnxNetwork) else []
    raise SegtailorError(f"{model.name} shows no modules; its taps may be: {', '.join(offers) or 'none'}")


def _find(original: Network) -> dict[str, str | None]:
    """Return the path of the module whose output each tap is, by a small image; None where no module gives it."""
    model = deepcopy(original)
    root = _root(model)
    with torch.no_grad():  # fresh parts that are alike would give the same values
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter) * (parameter.abs().mean() + 0.1))
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    with evaluated(model):
        (steps, output), size = run_on_noise(
            lambda noise: trace(root, lambda: model.forward_normalized(noise.to(device))), model.preprocess, model.name
        )
    names = [*(f"stages.{index}" for index in range(len(output.stages))), *output.taps, "feature", "logits"]
    tensors = {name: tensor for name in names if (tensor := output.tap(name)) is not None}
    return dict(zip(tensors, find_maps(steps, list(tensors.values()), size), strict=True))
