"""``pt2:FILE``: a network saved by `torch.export.save`, run from its graph; a teacher only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError, unknown
from segtailor.models.adapters import Choices
from segtailor.models.adapters.frozen import Frozen, Program
from segtailor.models.adapters.pt2_archive import DTYPES, Archive, read_archive
from segtailor.models.adapters.pt2_graph import Graph

MULTIPLE = re.compile(r"Mul\(Integer\((\d+)\), Symbol\('(\w+)'[^()]*\)\)")
SYMBOL = re.compile(r"Symbol\('(\w+)'[^()]*\)")


def load(rest: str, choices: Choices) -> Frozen:
    """Load the exported program ``rest``; see `Frozen` for logits and taps.

    Outputs are named by their keys or numbers, and a tap may also be the path of a module of the network that was
    exported. What its input must be is the recipe's ``preprocess``; a program that takes bytes gets RGB of 0..255 as
    they are. Raises SegtailorError for a file that is missing, damaged, or holds more than tensors and a graph of
    PyTorch's own operations, and for a program of anything but one image batch.
    """
    program = ExportedProgram(Path(rest))
    return Frozen(f"pt2:{rest}", program, choices.preprocess, choices.classifier, dict(choices.taps or {}))


def create(rest: str, num_classes: int, pretrained: bool | str | Path, choices: Choices) -> Frozen:
    """Load the exported program ``rest``, which must have ``num_classes``."""
    network = load(rest, choices)
    if network.num_classes != num_classes:
        raise SegtailorError(f"pt2:{rest} has {network.num_classes} classes where {num_classes} are asked for")
    return network


class Side(NamedTuple):
    """One side of the input: its length when the program was exported, whether it is free, and then what it may be."""

    length: int
    free: bool = False
    multiple: int = 1
    least: int = 1
    most: int | None = None


class ExportedProgram(Program):
    """Runs the graph of the file ``path`` on whatever device it is moved to; its tensors are the module's own."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        archive = read_archive(path)
        try:
            self._build(archive, path)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise SegtailorError(
                f"{path} is damaged or of an unknown format ({type(error).__name__}: {error}); export it again"
            ) from error

    def _build(self, archive: Archive, path: Path) -> None:
        self.path = path
        self._places: list[str | None] = []  # of each input of the graph: its tensor's place, or None for the images
        self._constants: dict[int, Any] = {}
        kept, images = set(), []
        for spec, entry in zip(archive.signature["input_specs"], archive.graph["inputs"], strict=True):
            ((kind, value),) = spec.items()
            name = next(
                (value[key] for key in ("parameter_name", "buffer_name", "tensor_constant_name") if key in value), None
            )
            if kind == "user_input":
                images.append(entry)
                self._places.append(None)
            elif name is not None:
                kept.add(value["arg"]["name"])
                self._places.append(self._keep(name, archive))
            else:
                raise SegtailorError(f"{path} takes an input of kind {kind}, which is not read; export tensors alone")
        shapes = archive.graph["tensor_values"]
        if len(images) != 1 or "as_tensor" not in images[0]:
            raise SegtailorError(f"{path} takes {len(images)} inputs; only networks of one image batch are run")
        self._graph = Graph(archive.graph, str(path), kept)
        self._outputs = archive.outputs
        self._watched: dict[str, str] = {}
        self._read_input(shapes[images[0]["as_tensor"]["name"]], archive.ranges)

    def _keep(self, name: str, archive: Archive) -> str:
        """Register the tensor ``name`` and return what it is called here, where dots are not allowed."""
        place = f"net/{name.replace('.', '/')}"
        tensor = archive.tensors[name]
        if hasattr(self, place):  # one tensor may be several inputs
            return place
        if name in archive.parameters and tensor.is_floating_point():
            self.register_parameter(place, nn.Parameter(tensor, requires_grad=False))
        else:
            self.register_buffer(place, tensor)
        return place

    def _read_input(self, meta: dict[str, Any], ranges: dict[str, dict[str, int | None]]) -> None:
        sides = [_side(given, ranges) for given in meta["sizes"]]
        lengths = [side.length for side in sides]
        fixed = [not side.free for side in sides]
        if len(sides) != 4 or not ((fixed[1] and lengths[1] == 3) or (fixed[3] and lengths[3] == 3)):
            raise SegtailorError(f"{self.path} takes an input of shape {lengths}, no batch of RGB images")
        self._channels_last = lengths[1] != 3
        self._dtype = DTYPES[meta["dtype"]]
        self.raw = self._dtype == torch.uint8
        height, width = sides[1:3] if self._channels_last else sides[2:]
        self.batch = None if sides[0].free else sides[0].length
        self.example = (height.length, width.length)
        self.multiple = max(height.multiple, width.multiple)
        self._sides = (height, width)
        if not (height.free and width.free):
            self.size, self.multiple = self.example, 1

    @property
    def offers(self) -> list[str]:
        """The program's outputs, and the paths of the modules that it was made of."""
        return [*self._outputs, *self._graph.modules]

    def watch(self, taps: dict[str, str]) -> dict[str, str]:
        """Return the output that stands for each tap: one of the program's own, or the last value of a module."""
        for path in taps.values():
            result = None if path in self._outputs else self._graph.result_of(path)
            if result is not None:
                self._watched[result] = path
            elif path not in self._outputs:
                raise unknown(f"output or module of {self.path}", path, self.offers)
        return taps

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs for ``inputs`` (B,3,H,W), by their keys or numbers, and what is watched by its path."""
        for side, length in zip(self._sides, inputs.shape[2:], strict=True):
            if side.free and (length < side.least or (side.most is not None and length > side.most)):
                raise SegtailorError(
                    f"{self.path} was exported for sides of {side.least} to {side.most or 'any number of'} pixels, not "
                    f"{length}; export it with a wider range, or set preprocess.size"
                )
        images = inputs.permute(0, 2, 3, 1) if self._channels_last else inputs
        images = images.round().clamp(0, 255) if self.raw else images
        images = images.to(self._dtype)
        values = [images if place is None else getattr(self, place) for place in self._places]
        given = self._graph(*values, device=inputs.device, watched=self._watched)
        names = [*self._outputs, *self._watched.values()]
        return {name: value for name, value in zip(names, given, strict=True) if isinstance(value, Tensor)}


def _side(given: dict[str, Any], ranges: dict[str, dict[str, int | None]]) -> Side:
    """Return what a size says of itself: a number, a symbol, or a multiple of one."""
    if "as_int" in given:
        return Side(int(given["as_int"]))
    expression, hint = given["as_expr"]["expr_str"], given["as_expr"].get("hint") or {}
    length = int(hint.get("as_int", 0))
    if found := MULTIPLE.fullmatch(expression):
        multiple, symbol = int(found[1]), found[2]
    elif found := SYMBOL.fullmatch(expression):
        multiple, symbol = 1, found[1]
    else:
        return Side(length, True)
    limits = ranges.get(symbol, {})
    least, most = limits.get("min_val") or 1, limits.get("max_val")
    return Side(length, True, multiple, multiple * least, None if most is None else multiple * most)
