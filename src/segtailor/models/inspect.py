"""What a model is made of: cost, taps, and the tap that methods use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from segtailor.models.create import is_published
from segtailor.models.network import Network
from segtailor.models.output import SegOutput
from segtailor.models.profile import count_multiply_adds, count_parameters, published_multiply_adds, run_on_meta

DEFAULT_TAP = "feature"
"""The tap that feature methods use unless a recipe names another."""


class TapInfo(NamedTuple):
    """A tap's name, its shape (C,h,w) for one image, and its stride."""

    name: str
    shape: tuple[int, ...]
    stride: int


@dataclass(frozen=True)
class Inspection:
    """What `inspect_model` found; ``published_multiply_adds`` is None outside the published family."""

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
    licences: dict[str, str]

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
        lines += [f"  licence         {part}: {licence}" for part, licence in self.licences.items()]
        rows = [("tap", "shape", "stride")]
        rows += [(tap.name, " x ".join(map(str, tap.shape)), str(tap.stride)) for tap in self.taps]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines.append("")
        lines += [f"  {name:<{widths[0]}}  {shape:<{widths[1]}}  {stride:>{widths[2]}}" for name, shape, stride in rows]
        default = next((tap for tap in self.taps if tap.name == DEFAULT_TAP), None)
        lines.append("")
        if default is None:
            lines.append(
                "It gives no feature: choose a method that compares logits, or name one of its modules as a tap: "
                "taps: {feature: PATH}."
            )
        else:
            lines.append(
                f"Methods use the tap '{DEFAULT_TAP}' unless told otherwise: {default.shape[0]} channels at stride "
                f"{default.stride}."
            )
        return "\n".join(lines)


def inspect_model(model: Network, size: tuple[int, int] = (512, 1024)) -> Inspection:
    """Return cost and taps of ``model`` for one image of ``size`` (height, width); computes no value."""
    padded = model.preprocess.input_size(size)
    output = run_on_meta(model, padded)
    stages = [f"stages.{index}" for index in range(len(output.stages))]
    names = [*stages, *output.taps, "aux_logits", "feature", "classifier_input", "logits"]
    found = [(name, output.tap(name)) for name in names]
    taps = [
        TapInfo(name, tuple(tensor.shape[1:]), _stride(name, tensor, output, model, padded))
        for name, tensor in found
        if tensor is not None
    ]
    return Inspection(
        name=model.name,
        num_classes=model.num_classes,
        size=padded,
        parameters=count_parameters(model),
        multiply_adds=count_multiply_adds(model, padded),
        published_multiply_adds=published_multiply_adds(model, padded) if is_published(model.name) else None,
        taps=taps,
        output_stride=model.stage_strides[-1] if model.stage_strides else taps[-1].stride,
        note=model.note,
        preprocess=_describe_input(model),
        licences=dict(model.licences),
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
