"""``onnx:FILE``: a network as an ONNX file, run by ONNX Runtime; a teacher only."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segtailor.errors import SegtailorError, reason
from segtailor.models.adapters import Choices
from segtailor.models.adapters.frozen import Frozen, Program

DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
}
"""Inputs that images can be given as."""


def load(rest: str, choices: Choices) -> Frozen:
    """Load the ONNX file ``rest``; see `Frozen` for logits and taps, whose names are those of the file's outputs.

    What its input must be is the recipe's ``preprocess``; a file that takes bytes gets RGB of 0..255 as they are.
    Raises SegtailorError for a file that is missing, damaged, or takes anything but one image batch, and where ONNX
    Runtime is not installed.
    """
    program = OnnxProgram(Path(rest))
    return Frozen(f"onnx:{rest}", program, choices.preprocess, choices.classifier, dict(choices.taps or {}))


def create(rest: str, num_classes: int, pretrained: bool | str | Path, choices: Choices) -> Frozen:
    """Load the ONNX file ``rest``, which must have ``num_classes``."""
    network = load(rest, choices)
    if network.num_classes != num_classes:
        raise SegtailorError(f"onnx:{rest} has {network.num_classes} classes where {num_classes} are asked for")
    return network


class OnnxProgram(Program):
    """Runs the file ``path`` on the CPU, or on a GPU where both PyTorch and ONNX Runtime have one.

    Its only tensor is the hash of the file and of the files beside it that hold its weights, so that a teacher's
    fingerprint means something.
    """

    digest: Tensor

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._session = _open(path)
        inputs = self._session.get_inputs()
        if len(inputs) != 1:
            names = ", ".join(entry.name for entry in inputs)
            raise SegtailorError(
                f"{path} takes {len(inputs)} inputs ({names}); only networks of one image batch are run"
            )
        self._input, shape = inputs[0].name, [side if isinstance(side, int) else None for side in inputs[0].shape]
        if inputs[0].type not in DTYPES:
            raise SegtailorError(f"{path} takes {inputs[0].type}, no image; choose another network")
        self._dtype = DTYPES[inputs[0].type]
        self.raw = self._dtype == torch.uint8
        if len(shape) != 4 or (shape[1] not in (3, None) and shape[3] != 3):
            raise SegtailorError(f"{path} takes an input of shape {inputs[0].shape}, no batch of RGB images")
        self._channels_last = shape[3] == 3 and shape[1] != 3
        height, width = shape[1:3] if self._channels_last else shape[2:]
        self.batch = shape[0]
        if height is not None and width is not None:
            self.size = (height, width)
        elif height is not None or width is not None:
            raise SegtailorError(
                f"{path} takes images of shape {inputs[0].shape}, of which one side is fixed; export it with both "
                "sides fixed or both free"
            )
        digest, self.stored_parameters = _weigh(path)
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))

    @property
    def offers(self) -> list[str]:
        """The file's outputs."""
        return [entry.name for entry in self._session.get_outputs()]

    def forward(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the file's outputs for ``inputs`` (B,3,H,W), by their names."""
        images = inputs.detach().cpu()
        images = images.permute(0, 2, 3, 1) if self._channels_last else images
        images = images.round().clamp(0, 255) if self.raw else images
        fed = {self._input: images.to(self._dtype).contiguous().numpy()}
        given = self._session.run(None, fed)
        return {name: torch.from_numpy(value).to(inputs.device) for name, value in zip(self.offers, given, strict=True)}


def _open(path: Path) -> Any:
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise _missing() from None
    if not path.is_file():
        raise SegtailorError(f"no such file: {path}; give the path of an ONNX file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    wanted = ["CUDAExecutionProvider"] if torch.cuda.is_available() else []
    providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[*providers, "CPUExecutionProvider"])
    except Exception as error:  # each kind of damage has an exception of its own
        raise SegtailorError(f"ONNX Runtime cannot load {path} ({reason(error)[:200]}); export it again") from error


def _weigh(path: Path) -> tuple[bytes, int]:
    """Return the hash of the file with its weights' files, and how many weights they hold."""
    try:
        import onnx
    except ModuleNotFoundError:
        raise _missing() from None
    initializers = onnx.load(str(path), load_external_data=False).graph.initializer
    beside = {entry.value for item in initializers for entry in item.external_data if entry.key == "location"}
    digest = hashlib.sha256()
    for file in (path, *(path.parent / name for name in sorted(beside))):
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    real = {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE}
    return digest.digest(), sum(math.prod(item.dims) for item in initializers if item.data_type in real)


def _missing() -> SegtailorError:
    return SegtailorError('ONNX files need ONNX Runtime: pip install "segtailor[export]"')
