"""Every module of a network by its path, with what it gives: where taps can be read."""

from __future__ import annotations

from copy import deepcopy
from typing import NamedTuple

import torch
from torch import nn

from segtailor.errors import SegtailorError
from segtailor.models.adapters.adapted import PROBES, Adapted
from segtailor.models.adapters.frozen import Frozen
from segtailor.models.adapters.places import find_maps
from segtailor.models.adapters.trace import Step, evaluated, layout_of, trace
from segtailor.models.network import Network
from segtailor.models.profile import run_on_meta
from segtailor.models.segmenter import Segmenter


class PathInfo(NamedTuple):
    """A module's path, the shape (C,h,w) of its output for one image, its stride, and the taps that it is.

    ``shape`` is the output's own without its batch, and ``stride`` None, where it is no map of the image.
    """

    path: str
    shape: tuple[int, ...]
    stride: int | None
    taps: tuple[str, ...]


class PathList(NamedTuple):
    """What `list_paths` found at ``size`` (height, width); paths are those that a recipe's ``taps`` take."""

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
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = [f"{self.name} at {self.size[0]} x {self.size[1]}, its modules in the order of a forward", ""]
        lines += [
            f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip() for row in rows
        ]
        lines += ["", *(f"  {name} is {where}" for name, where in self.hidden.items())]
        example = next(
            (row for row in reversed(self.paths) if any(tap.startswith("stages.") for tap in row.taps)), None
        )
        path = example.path if example is not None else next(row.path for row in self.paths if row.stride is not None)
        lines.append(
            "Proposed as taps are those named on the right; methods know them without more. Any other map of the image "
            f"gets a name in the recipe, as in taps: {{mine: {path}}}."
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
    rows = {step.path: step for step in steps if step.output is not None}
    return PathList(
        model.name, padded, [_row(step, padded, names.get(path, [])) for path, step in rows.items()], hidden
    )


def _root(model: Network) -> nn.Module:
    """Return the module below which taps are named."""
    if isinstance(model, Adapted):
        return model.net
    if isinstance(model, Segmenter):
        return model
    offers = model.program.offers if isinstance(model, Frozen) else []
    raise SegtailorError(f"{model.name} shows no modules; its taps may be: {', '.join(offers) or 'none'}")


def _find(original: Network) -> dict[str, str | None]:
    """Return the path of the module whose output each tap is, told by a small image; None where no module gives it."""
    model = deepcopy(original)
    root = _root(model)
    with torch.no_grad():  # fresh parts that are alike would give the same values
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.rand_like(parameter) * (parameter.abs().mean() + 0.1))
    device = next((value.device for value in model.parameters()), torch.device("cpu"))
    for probe in PROBES:
        size = model.preprocess.input_size(probe)
        noise = torch.randn(1, model.planes, *size, generator=torch.Generator().manual_seed(0)).to(device)
        try:
            with evaluated(model):
                steps, output = trace(root, lambda: model.forward_normalised(noise))  # noqa: B023  (called at once)
        except RuntimeError:  # too small for it
            continue
        names = [*(f"stages.{index}" for index in range(len(output.stages))), *output.taps, "feature", "logits"]
        tensors = {name: tensor for name in names if (tensor := output.tap(name)) is not None}
        return dict(zip(tensors, find_maps(steps, list(tensors.values()), size), strict=True))
    return {}


def _row(step: Step, size: tuple[int, int], taps: list[str]) -> PathInfo:
    assert step.output is not None
    layout = layout_of(step.output, size)
    if layout is None:
        return PathInfo(step.path, tuple(step.output.shape[1:]), None, tuple(taps))
    name, channels, stride = layout
    if name.startswith("tokens"):
        return PathInfo(step.path, (channels, -(-size[0] // stride), -(-size[1] // stride)), stride, tuple(taps))
    height, width = step.output.shape[-2:] if name == "map" else step.output.shape[1:3]
    return PathInfo(step.path, (channels, height, width), stride, tuple(taps))
