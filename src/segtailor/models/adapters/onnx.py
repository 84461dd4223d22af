"""``onnx:FILE``: a network as an ONNX file, run by ONNX Runtime; a teacher only."""

from __future__ import annotations

import hashlib
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError, install, reason, unknown
from segtailor.models.adapters import Choices
from segtailor.models.adapters.discovery import LEAST_PROBABILITY, are_probabilities
from segtailor.models.adapters.wrapper import refusal, run_on_noise
from segtailor.models.heads import resize
from segtailor.models.network import Network, Preprocess, SegOutput
from segtailor.models.taps import layout_of, to_map

MOST_OFFERED = 8
DTYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(uint8)": torch.uint8,
}
"""Inputs that images can be given as."""


def load(rest: str, choices: Choices) -> OnnxNetwork:
    """Load the ONNX file ``rest``; see `OnnxNetwork` for logits and taps, whose names are those of the file's outputs.

    What its input must be is the recipe's ``preprocess``; a file that takes bytes gets RGB of 0..255 as they are.
    Raises SegtailorError for a file that is missing, damaged, or takes anything but one image batch, and where ONNX
    Runtime is not installed.
    """
    program = OnnxFile(Path(rest))
    return OnnxNetwork(f"onnx:{rest}", program, choices.preprocess, choices.classifier, dict(choices.taps or {}))


def create(rest: str, num_classes: int, pretrained: bool | str | Path, choices: Choices) -> OnnxNetwork:
    """Load the ONNX file ``rest``, which must have ``num_classes``."""
    network = load(rest, choices)
    if network.num_classes != num_classes:
        raise SegtailorError(f"onnx:{rest} has {network.num_classes} classes where {num_classes} are asked for")
    return network


class OnnxFile(nn.Module):
    """Runs the file ``path``: preprocessed images (B,3,H,W) in, its outputs by name.

    On the CPU, or on a GPU where both PyTorch and ONNX Runtime have one. ``batch`` is the number of images that it
    takes at a time (None: any), ``size`` the one size that it takes (None: any), ``raw`` says that it takes bytes, and
    ``stored_parameters`` counts the file's weights. Its only tensor is the hash of the file and of the files
    beside it that hold its weights, which makes a teacher's fingerprint meaningful.
    """

    digest: Tensor
    size: tuple[int, int] | None = None

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


class OnnxNetwork(Network):
    """Wraps ``program`` as a teacher; it is never trained and never stored.

    The logits are the output ``classifier``, else the first that is a map of at least two classes; their number is read
    from the output for a small image. ``taps`` names further outputs. Probabilities are turned into logits by their
    logarithm. Logits are enlarged bilinearly, pixels as areas (``align_corners`` False).

    Raises SegtailorError for a program that does not run, gives class indices only, or has no such output.
    """

    trainable = False
    has_aux = False
    stage_strides = ()

    def __init__(
        self, name: str, program: OnnxFile, preprocess: dict[str, Any], classifier: str | None, taps: dict[str, str]
    ) -> None:
        super().__init__()
        self.name, self.program, self.licenses = name, program, {}
        self.preprocess = _preprocess(name, program, preprocess)
        self._taps = taps
        self._find(classifier)

    def forward_normalized(self, inputs: Tensor) -> SegOutput:
        """Return the output for ``inputs`` (B,3,H,W) that are preprocessed already."""
        size = inputs.shape[-2:]
        try:
            found = self._run(inputs)
        except (SegtailorError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # any program may fail in any way
            raise refusal(error, self.name, size) from error
        maps = {tap: to_map(found[name], self._layouts[tap], size, tap) for tap, name in self._taps.items()}
        logits = to_map(found[self._output], self._layouts["logits"], size, "logits")
        if self._probabilities:
            logits = logits.clamp(min=LEAST_PROBABILITY).log()
        feature = maps.pop("feature", None)
        return SegOutput(logits, None, feature, feature, (), maps)

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``logits`` (B,K,h,w) at ``size``, bilinear, pixels as areas."""
        return resize(logits, size, align_corners=False)

    def spec(self) -> dict[str, Any]:
        """Raise SegtailorError: the file itself is the network."""
        raise SegtailorError(f"{self.name} cannot be stored as a model of segtailor; keep its file and name that")

    def _run(self, inputs: Tensor) -> dict[str, Tensor]:
        """Return the outputs, float32, of as many images at a time as the program takes."""
        count = self.program.batch
        with torch.autocast(inputs.device.type, enabled=False):
            inputs = inputs.float()
            if count is None:
                return {name: value.float() for name, value in self.program(inputs).items()}
            parts = []
            for images in torch.split(inputs, count):
                full = torch.cat([images, images[-1:].expand(count - len(images), -1, -1, -1)])
                parts.append({name: value[: len(images)].float() for name, value in self.program(full).items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def _find(self, classifier: str | None) -> None:
        with torch.no_grad():
            outputs, size = run_on_noise(
                lambda noise: self._run(self.preprocess(128 + 64 * noise)), self.preprocess, self.name
            )
        self._output = _find_logits(self.name, outputs, size, classifier, set(self._taps.values()))
        logits = outputs[self._output]
        layout = layout_of(logits, size) if logits.ndim == 4 else None
        if layout is None or layout[1] < 2:
            raise SegtailorError(f"{self.name}: its output {_shown(self._output, logits)} is no map of class logits")
        self.num_classes = layout[1]
        self._layouts, self.tap_channels = {"logits": layout[0]}, {}
        for tap, name in self._taps.items():
            if name not in outputs:
                raise unknown(f"output of {self.name} for '{tap}'", name, outputs)
            found = layout_of(outputs[name][:1], size)
            if found is None:
                raise SegtailorError(f"{self.name}: its output {_shown(name, outputs[name])} is no map of the image")
            self._layouts[tap], self.tap_channels[tap] = found[0], found[1]
        if "feature" in self.tap_channels:
            self.tap_channels["classifier_input"] = self.tap_channels["feature"]
        self._probabilities = are_probabilities(to_map(logits, layout[0], size, "logits"))
        notes = ["its probabilities are taken as logits by their logarithm"] if self._probabilities else []
        others = [name for name in self.program.offers if name != self._output]
        more = f"; taps may be: {', '.join(others[:MOST_OFFERED])}{', ...' if len(others) > MOST_OFFERED else ''}"
        notes += [] if "feature" in self.tap_channels else [f"no feature is named{more if others else ''}"]
        self.note = "; ".join(notes)


def _preprocess(name: str, program: OnnxFile, given: dict[str, Any]) -> Preprocess:
    known: dict[str, Any] = {}
    if program.size is not None:
        known["size"] = program.size
        asked = given.get("size")
        if asked is not None and tuple(asked) != program.size:
            height, width = program.size
            raise SegtailorError(
                f"{name} takes images of {height} x {width} only; leave preprocess.size out, or set it to that"
            )
    if program.raw:
        known |= {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "scale": 1.0}
    elif not {"mean", "std", "scale"} & given.keys():
        print(
            f"note: {name} does not say what its input must be: RGB by ImageNet's mean and std is taken; set "
            "teacher.preprocess (mean, std, scale, channel_order) if it was trained otherwise",
            file=sys.stderr,
        )
    return Preprocess(**{**known, **given})


def _find_logits(
    name: str, outputs: dict[str, Tensor], size: tuple[int, int], classifier: str | None, taken: set[str]
) -> str:
    """Return the name of the output that holds the logits."""
    if classifier is not None:
        if classifier not in outputs:
            raise unknown(f"output of {name} for its logits", classifier, outputs)
        return classifier
    maps = {key: layout_of(value, size) for key, value in outputs.items() if value.ndim == 4 and key not in taken}
    fit = [key for key, layout in maps.items() if layout is not None and layout[1] >= 2]
    if len(fit) > 1:
        print(
            f"note: {name} has {len(fit)} outputs that may be its logits ({', '.join(fit)}); {fit[0]} is taken, set "
            "teacher.classifier to another if it is not right",
            file=sys.stderr,
        )
    if fit:
        return fit[0]
    listed = ", ".join(_shown(key, value) for key, value in outputs.items())
    planes = [value.squeeze() for value in outputs.values()]
    if any(
        plane.ndim == 2 and layout_of(plane[None, None], size) is not None and bool((plane == plane.round()).all())
        for plane in planes
    ):
        raise SegtailorError(
            f"{name} gives class indices and no logits ({listed}); export it again without its final argmax"
        )
    raise SegtailorError(f"{name} gives no map of class logits (1,K,h,w) ({listed}); choose another network")


def _shown(name: str, value: Tensor) -> str:
    return f"{name} {list(value.shape)}"


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
    except Exception as error:  # each kind of damage has its own exception
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
    return SegtailorError(f"ONNX files need ONNX Runtime: {install('export')}")
