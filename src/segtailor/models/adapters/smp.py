"""``smp:Arch/encoder`` and ``smp:ID-or-folder``: networks of segmentation_models_pytorch."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from segtailor.errors import SegtailorError, reason, unknown
from segtailor.models.adapters import Choices
from segtailor.models.adapters.discovery import find_maps
from segtailor.models.adapters.hf_files import fetch, front_matter, library, read_readme
from segtailor.models.adapters.weights import fill_from, read_weights, widened, with_fresh_classifier
from segtailor.models.adapters.wrapper import Adapted, make_preprocess, run_on_noise
from segtailor.models.backbones import ANY_SIZE, timm_license
from segtailor.models.network import Preprocess
from segtailor.models.taps import evaluated, trace

CONFIG, WEIGHTS = "config.json", ("model.safetensors", "pytorch_model.bin")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
HALVES: dict[str, tuple[float, ...]] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
UNUSUAL: dict[str, dict[str, tuple[float, ...]]] = {
    "dpn": {"mean": (124 / 255, 117 / 255, 104 / 255), "std": (0.23482446870963955,) * 3},
    "inceptionresnetv2": HALVES,
    "inceptionv4": HALVES,
    "timm-tf_efficientnet_lite": HALVES,
    "xception": HALVES,
}
"""Statistics of encoders that were not trained with ImageNet's mean and deviation, by the start of their names; smp
itself keeps them on the hub alone."""
NVIDIA = "NVIDIA Source Code License (smp's Mix Transformer): not for commercial use"


def read_repository(rest: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return configuration and tensors of the folder or hub repository ``rest``, as smp's ``save_pretrained`` wrote it.

    Raises SegtailorError where it is not there, is not of smp, or holds more than tensors.
    """
    folder = Path(rest).expanduser()
    if folder.is_file():
        raise SegtailorError(
            f"{folder} is a file; name the network as `model: smp:Arch/encoder` and this file as `weights`"
        )
    if not folder.is_dir() and not REPOSITORY.fullmatch(rest):
        raise SegtailorError(f"no such folder: {rest}; a repository on the hub is named smp:OWNER/NAME")
    config = _config(_file(rest, folder, CONFIG), rest)
    found = [name for name in WEIGHTS if (folder / name).is_file()] if folder.is_dir() else list(WEIGHTS)
    if not found:
        raise SegtailorError(f"{folder} has no weights: neither {WEIGHTS[0]} nor {WEIGHTS[1]}; copy it whole")
    try:
        path = _file(rest, folder, found[0])
    except SegtailorError as error:
        if folder.is_dir() or not _is_missing(error.__cause__):
            raise
        path = _file(rest, folder, WEIGHTS[1])  # repositories of older versions
    return config, read_weights(path)


def statistics(smp: Any, encoder: str, weights: str | None, rest: str) -> dict[str, Any]:
    """Return `Preprocess` arguments for ``encoder``: what its ImageNet weights were trained with.

    Where ``weights`` of smp's own encoders are fetched, smp's settings for them are fetched, too; else they are known.
    """
    if weights is not None or encoder.startswith("tu-"):
        ask = smp.encoders.get_preprocessing_params
        try:
            return _arguments(fetch(rest, lambda: ask(encoder, weights or "imagenet"), "smp"))
        except SegtailorError:
            if weights is not None:
                raise
            return {}  # a network of timm's without weights
    return next((dict(known) for start, known in UNUSUAL.items() if encoder.startswith(start)), {})


def encoder_license(smp: Any, encoder: str, weights: str | None) -> dict[str, str]:
    """Return the license of ``encoder``, for `Network.licenses`: of its code where that binds, else of ``weights``."""
    if encoder.startswith("mit_b"):
        return {"encoder": NVIDIA}
    if weights is None:
        return {}
    if encoder.startswith("tu-"):
        return {"encoder": timm_license(encoder.removeprefix("tu-"))}
    repository = smp.encoders.encoders.get(encoder, {}).get("pretrained_settings", {}).get(weights, {}).get("repo_id")
    if repository is None:
        return {"encoder": f"unknown (smp {encoder}, {weights})"}
    return {"encoder": f"{card_license(repository)} ({repository})"}


def card_license(repository: str) -> str:
    """Return the license that the card of ``repository``, a folder or a hub name, states; ``unknown`` where none."""
    return str(front_matter(read_readme(repository)).get("license") or "unknown")


def _arguments(settings: dict[str, Any]) -> dict[str, Any]:
    known = {"mean": tuple(settings["mean"]), "std": tuple(settings["std"])}
    order = str(settings.get("input_space") or "RGB").lower()
    # smp divides by 255 where the range ends at 1, and leaves pixels as they are else
    top = (settings.get("input_range") or (0, 1))[1]
    return {**known, "channel_order": order, "scale": 1 / 255 if top == 1 else 1.0}


def _config(path: Path, rest: str) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SegtailorError(f"{path} cannot be read ({reason(error)[:120]}); save the network again") from error
    if not isinstance(config, dict) or not {"_model_class", "encoder_name"} <= config.keys():
        raise SegtailorError(
            f"smp:{rest} was not saved by segmentation_models_pytorch: its {CONFIG} names no _model_class and no "
            "encoder_name"
        )
    if config.get("in_channels", 3) != 3:
        raise SegtailorError(f"smp:{rest} takes {config['in_channels']} channels; only RGB networks are read")
    return config


def _file(rest: str, folder: Path, name: str) -> Path:
    if folder.is_dir():
        if not (folder / name).is_file():
            raise SegtailorError(f"{folder} has no {name}: it is no folder that smp's save_pretrained wrote")
        return folder / name

    from huggingface_hub import hf_hub_download

    return Path(fetch(rest, lambda: hf_hub_download(rest, name), "smp"))


def _is_missing(error: BaseException | None) -> bool:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    return isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)


ARCHITECTURES = (
    *("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet"),
    *("Segformer", "DPT"),
)
DPT_STRIDE = 32
OWN = ("encoder_name", "encoder_weights", "in_channels", "classes", "activation", "aux_params")
"""Arguments set here, which a card's configuration leaves out."""


class SmpNetwork(Adapted):
    """A network of segmentation_models_pytorch, without its activation and its classifier of whole images."""

    own_layout = "segmentation_models_pytorch"

    def fitting(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return ``tensors`` without the classifier of whole images, which plays no part in segmentation."""
        return {name: value for name, value in tensors.items() if not name.startswith("classification_head.")}


def create(rest: str, num_classes: int, pretrained: bool | str | Path, choices: Choices) -> SmpNetwork:
    """Build ``Arch/encoder`` for ``num_classes``; with ``pretrained`` the encoder has smp's ImageNet weights, or those
    of that name (``noisy-student``, ``advprop``, ...).

    ``choices.config`` holds further arguments of smp's constructor. A folder or hub repository that smp wrote is a
    start for a student where ``pretrained`` is true: its classifier is fresh where the class counts differ. Raises
    SegtailorError for unknown names and for weights out of reach.
    """
    smp = library(rest, "smp")
    named = _named(smp, rest)
    if named is not None:
        weights = "imagenet" if pretrained is True else str(pretrained) if pretrained else None
        return _build(smp, rest, *named, num_classes, dict(choices.config or {}), choices, weights)
    if not pretrained and not Path(rest).expanduser().is_dir():
        hint = "A trained network that smp saved is given as `weights`, or to a student with `pretrained: true`."
        raise unknown("architecture of segmentation_models_pytorch", rest.partition("/")[0], _known(smp), hint)
    if not pretrained:
        raise SegtailorError(
            f"smp:{rest} holds trained weights: give it as `weights`, or to a student with `pretrained: true`"
        )
    return _load(smp, rest, choices, num_classes)


def load(rest: str, choices: Choices) -> SmpNetwork:
    """Load the trained network that smp's ``save_pretrained`` wrote to the folder or hub repository ``rest``.

    Where it has one class, given by a sigmoid, it becomes a network of two classes with the same probabilities. Raises
    SegtailorError for a repository that is not there, is not of smp or does not fit.
    """
    smp = library(rest, "smp")
    if _named(smp, rest) is not None:
        raise SegtailorError(
            f"smp:{rest} is an architecture without weights; name it as `model`, with `weights: FILE`, or give the "
            "folder that save_pretrained wrote"
        )
    return _load(smp, rest, choices, None)


def _load(smp: Any, rest: str, choices: Choices, num_classes: int | None) -> SmpNetwork:
    config, tensors = read_repository(rest)
    architecture = _architecture(smp, config["_model_class"])
    count = int(config.get("classes", 1))
    trained_with = config.get("activation")
    network = _build(smp, rest, architecture, config["encoder_name"], num_classes or max(count, 2), config, choices)
    fitting = widened(network.fitting(tensors), network)
    fill_from(network, with_fresh_classifier(fitting, network) if num_classes else fitting, f"smp:{rest}")
    local = Path(rest).expanduser().is_dir()
    if not local:  # smp writes its code's license into a folder's card, not the weights'
        network.licenses = {"model": f"{card_license(rest)} ({rest}'s card)", **network.licenses}
    if count > 2 and trained_with == "sigmoid":
        network.note = "it was trained with a sigmoid for each class; its logits are taken as a softmax's"
    return network


def _build(
    smp: Any,
    rest: str,
    architecture: str,
    encoder: str,
    num_classes: int,
    config: dict[str, Any],
    choices: Choices,
    weights: str | None = None,
) -> SmpNetwork:
    kept = {name: value for name, value in config.items() if name not in OWN and not name.startswith("_")}
    arguments = {"encoder_name": encoder, "in_channels": 3, "classes": num_classes, "encoder_weights": None, **kept}
    kind = getattr(smp, architecture)
    net = _construct(smp, rest, kind, arguments)
    accepted = {name: net.config[name] for options in ANY_SIZE for name in options if name in net.config}
    if weights is not None:
        settings = smp.encoders.encoders.get(encoder, {}).get("pretrained_settings")
        if settings is not None and weights not in settings:
            raise unknown(f"weights of smp's encoder {encoder}", weights, settings)
        named = True if encoder.startswith("tu-") else weights
        net = fetch(rest, lambda: kind(**{**arguments, **accepted, "encoder_weights": named}), "smp")
    known = {**statistics(smp, encoder, weights, rest), **_sizes(net, accepted)}
    preprocess = make_preprocess(f"smp:{rest}", {**known, **choices.preprocess})
    plain = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in net.config.items()
        if name not in OWN
    }
    return SmpNetwork(
        f"smp:{architecture}/{encoder}",
        num_classes,
        net,
        preprocess,
        classifier=choices.classifier,
        taps=choices.taps,
        encoder="encoder",
        stages=_stages(net, preprocess),
        options={"config": plain},
        licenses=encoder_license(smp, encoder, weights),
    )


def _construct(smp: Any, rest: str, kind: Any, arguments: dict[str, Any]) -> Any:
    """Return the network without weights, such that it takes images of any size where its encoder can."""
    encoder = arguments["encoder_name"]
    own = encoder in smp.encoders.encoders
    problem: SegtailorError | None = None
    if own or encoder.startswith(("tu-", "timm-")):
        chosen = any(name in arguments for options in ANY_SIZE for name in options)
        for options in ({},) if own or chosen else ANY_SIZE:
            try:
                return fetch(rest, lambda: kind(**{**options, **arguments}), "smp")  # noqa: B023  (called at once)
            except SegtailorError as error:
                problem = error
    if problem is None or "Unknown model" in str(problem):
        import timm

        names = [*smp.encoders.get_encoder_names(), *(f"tu-{name}" for name in timm.list_models())]
        raise unknown("encoder of segmentation_models_pytorch", encoder, names) from problem
    raise problem


def _sizes(net: Any, accepted: dict[str, Any]) -> dict[str, Any]:
    """Return the one size that ``net`` takes, or the multiple that it needs."""
    encoder: Any = net.encoder
    if getattr(encoder, "is_fixed_input_size", False) and not accepted:
        return {"size": tuple(encoder.input_size[-2:])}
    if type(net).__name__ == "DPT":  # its decoder halves the tokens' grid on its way
        return {"size_multiple": math.lcm(int(encoder.output_stride), DPT_STRIDE)}
    if getattr(net, "requires_divisible_input_shape", True) or accepted:
        return {"size_multiple": int(encoder.output_stride)}
    return {}


def _stages(net: Any, preprocess: Preprocess) -> list[str] | None:
    """Return the paths of the encoder's own maps from stride 4 on, or None where they are no module's outputs."""
    try:
        with evaluated(net):
            (steps, maps), size = run_on_noise(lambda noise: trace(net, lambda: net.encoder(noise)), preprocess, "")
    except SegtailorError:  # reported where the whole network is tried
        return None
    maps = maps[0] if isinstance(maps, tuple) else maps  # DPT's come with their prefix tokens
    coarse = [each for each in maps if each.shape[1] and 4 * each.shape[-1] <= size[-1]]
    paths = find_maps(steps, coarse, size)
    found = [path for path in paths if path is not None]
    return found if len(found) == len(coarse) else None


def _named(smp: Any, rest: str) -> tuple[str, str] | None:
    """Return architecture and encoder where ``rest`` names them, None where it may be a folder or a repository."""
    first, _, encoder = rest.partition("/")
    if first.lower() not in (name.lower() for name in _known(smp)):
        return None
    if not encoder:
        raise SegtailorError(f"smp:{rest} names no encoder; write smp:{first}/resnet18, or another of smp's encoders")
    return _architecture(smp, first), encoder


def _architecture(smp: Any, name: str) -> str:
    known = _known(smp)
    found = next((each for each in known if each.lower() == name.lower()), None)
    if found is None:
        raise unknown("architecture of segmentation_models_pytorch", name, known)
    return found


def _known(smp: Any) -> list[str]:
    return [name for name in ARCHITECTURES if isinstance(getattr(smp, name, None), type)]
