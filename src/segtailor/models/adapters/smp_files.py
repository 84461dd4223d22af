"""Networks that segmentation_models_pytorch saved, on the hub or in a folder, and its encoders' own statistics."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import yaml
from torch import Tensor

from segtailor.errors import SegtailorError, reason
from segtailor.models.adapters.weights import read_weights

T = TypeVar("T")
EXTRA = 'pip install "segtailor[smp]"'
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


def library(rest: str) -> Any:
    """Return the module segmentation_models_pytorch; SegtailorError with the command that installs it."""
    try:
        import segmentation_models_pytorch
    except ModuleNotFoundError as error:
        raise SegtailorError(f"smp:{rest} needs segmentation_models_pytorch: {EXTRA}") from error
    return segmentation_models_pytorch


def fetch(rest: str, action: Callable[[], T]) -> T:
    """Return what ``action`` gives, without warnings; every failure is one SegtailorError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return action()
    except SegtailorError:
        raise
    except Exception as error:  # hub, files and constructors fail in many ways
        raise SegtailorError(_explained(rest, error)) from error


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
            return _arguments(fetch(rest, lambda: ask(encoder, weights or "imagenet")))
        except SegtailorError:
            if weights is not None:
                raise
            return {}  # a network of timm's without weights
    return next((dict(known) for start, known in UNUSUAL.items() if encoder.startswith(start)), {})


def encoder_licence(smp: Any, encoder: str, weights: str | None) -> dict[str, str]:
    """Return the licence of ``encoder``, for `Network.licences`: of its code where that binds, else of ``weights``."""
    if encoder.startswith("mit_b"):
        return {"encoder": NVIDIA}
    if weights is None:
        return {}
    if encoder.startswith("tu-"):
        import timm

        config = timm.get_pretrained_cfg(encoder.removeprefix("tu-"))
        return {"encoder": f"{getattr(config, 'license', None) or 'unknown'} (timm {encoder.removeprefix('tu-')})"}
    repository = smp.encoders.encoders.get(encoder, {}).get("pretrained_settings", {}).get(weights, {}).get("repo_id")
    if repository is None:
        return {"encoder": f"unknown (smp {encoder}, {weights})"}
    return {"encoder": f"{card_licence(repository)} ({repository})"}


def card_licence(repository: str) -> str:
    """Return the licence that the card of ``repository``, a folder or a hub name, states; ``unknown`` where none."""
    try:
        text = _file(repository, Path(repository), "README.md").read_text(encoding="utf-8", errors="replace")
        front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        stated = yaml.safe_load(front[1]) if front else None
    except (SegtailorError, OSError, yaml.YAMLError):
        return "unknown"
    return str(stated.get("license") or "unknown") if isinstance(stated, dict) else "unknown"


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

    def download() -> Path:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(rest, name))

    return fetch(rest, download)


def _is_missing(error: BaseException | None) -> bool:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    return isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError)


def _explained(rest: str, error: BaseException) -> str:
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in chain)

    if has(GatedRepoError):
        return f"smp:{rest} is gated: ask for access on its page, then log in with `hf auth login`"
    if has(RepositoryNotFoundError):
        return f"smp:{rest}: no such folder, and no public repository on the hub; check the name, or `hf auth login`"
    if has(LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError):
        offline = "offline mode is on (HF_HUB_OFFLINE)" if constants.is_offline_mode() else "there is no connection"
        return f"smp:{rest}: what it needs from the hub is not in the local cache, and {offline}; connect once"
    return f"smp:{rest} cannot be built or read ({(reason(error).strip() or type(error).__name__)[:200]})"
