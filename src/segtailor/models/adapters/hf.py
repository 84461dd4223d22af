"""``hf:ID-or-folder``: transformers' semantic segmentation networks, as teacher with their weights or as student."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError
from segtailor.models.adapters import Choices
from segtailor.models.adapters.adapted import PROBES, Adapted
from segtailor.models.adapters.hf_families import places
from segtailor.models.adapters.hf_files import check_place, fetch, library
from segtailor.models.adapters.hf_licence import licence_of
from segtailor.models.adapters.hf_masks import MaskClassifier
from segtailor.models.adapters.hf_processor import read_preprocess
from segtailor.models.adapters.hf_weights import read_encoder, read_weights
from segtailor.models.adapters.result import Ran
from segtailor.models.adapters.trace import evaluated
from segtailor.models.preprocess import Preprocess

MASK_TYPES = ("mask2former", "maskformer", "oneformer")
REDUCED = "its data's first label is no class: its classes start at label 1"


class HubNetwork(Adapted):
    """A network of transformers that gives logits."""

    def run(self, inputs: Tensor) -> Ran:
        """Return the logits for normalised ``inputs`` (B,3,H,W)."""
        return Ran(self.net(pixel_values=inputs).logits)


def create(rest: str, num_classes: int, pretrained: bool | str | Path, choices: Choices) -> Adapted:
    """Build the network of the repository ``rest`` for ``num_classes``, with fresh weights unless ``pretrained``.

    With ``pretrained`` the weights are the repository's; its classifier is fresh where the class counts differ, and
    the whole head where the repository holds an encoder alone. With ``choices.config``, from a card, nothing is looked
    up. Raises SegtailorError for a repository that is not there or does not fit.
    """
    if not isinstance(pretrained, bool):
        raise SegtailorError(f"hf:{rest}: pretrained is true or false; its weights come from the repository")
    library(rest)
    if choices.config is not None:
        config = fetch(rest, lambda: _from_card(rest, dict(choices.config or {})))
        net = fetch(rest, lambda: _network_class(rest, config)(_with_classes(config, num_classes)))
        return _trainable(_wrapped(rest, num_classes, net, dict(choices.preprocess), choices))
    check_place(rest, pretrained)
    config, origin = _read_config(rest)
    net_class = _network_class(rest, config)
    preprocess, _ = read_preprocess(rest, config, choices.preprocess, pretrained)
    if not pretrained:
        net = fetch(rest, lambda: net_class(_with_classes(config, num_classes)))
        return _trainable(_wrapped(rest, num_classes, net, preprocess, choices))
    headed, before, names = _has_head(config, net_class), config.num_labels, _class_names(config)
    read = read_weights if headed else read_encoder
    net = read(rest, net_class, _with_classes(config, num_classes), before)
    classes = names if headed and before == num_classes else ()
    licences = licence_of(rest, origin)
    return _trainable(_wrapped(rest, num_classes, net, preprocess, choices, licences=licences, classes=classes))


def load(rest: str, choices: Choices) -> Adapted:
    """Load the trained network of the repository ``rest`` with its own classes.

    Raises SegtailorError for a repository that is not there, whose weights do not fit, or of another task.
    """
    library(rest)
    check_place(rest, True)
    config, origin = _read_config(rest)
    net_class = _network_class(rest, config)
    if not _has_head(config, net_class):
        raise SegtailorError(
            f"hf:{rest} is a {config.architectures[0]}, no {net_class.__name__}: it has no trained segmentation head; "
            "as a student it can start from these weights (pretrained: true)"
        )
    preprocess, reduced = read_preprocess(rest, config, choices.preprocess, True)
    count, names = config.num_labels, _class_names(config)
    net = read_weights(rest, net_class, _with_classes(config, count), count)
    licences = licence_of(rest, origin)
    network = _wrapped(rest, count, net, preprocess, choices, licences=licences, classes=names)
    if reduced:
        network.note = "; ".join(filter(None, [network.note, REDUCED]))
    return network


def _wrapped(
    rest: str, num_classes: int, net: nn.Module, preprocess: dict[str, Any], choices: Choices, **known: Any
) -> Adapted:
    config: Any = net.config
    found = places(net)
    kind = MaskClassifier if config.model_type in MASK_TYPES else HubNetwork
    try:
        normalised = Preprocess(**preprocess)
    except (TypeError, ValueError) as error:
        raise SegtailorError(f"hf:{rest}: {error}") from error
    return kind(
        f"hf:{rest}",
        num_classes,
        net.train(),
        normalised,
        classifier=choices.classifier,
        taps=choices.taps,
        encoder=found.encoder,
        stages=found.stages,
        aux=found.aux,
        options={"config": _plain(config)},
        **known,
    )


def _trainable(network: Adapted) -> Adapted:
    """Return ``network`` with the parameters frozen that no logits depend on: with several processes, their gradients
    would be waited for."""
    if not network.trainable:
        return network
    size = network.preprocess.input_size(PROBES[0])
    with evaluated(network), torch.enable_grad():
        output = network.forward_normalised(torch.zeros(1, 3, *size))
        total = output.logits.sum() + (0 if output.aux_logits is None else output.aux_logits.sum())
    parameters = list(network.parameters())
    for parameter, found in zip(parameters, torch.autograd.grad(total, parameters, allow_unused=True), strict=True):
        parameter.requires_grad_(found is not None)
    return network


def _read_config(rest: str) -> tuple[Any, str]:
    """Return the repository's configuration, and the name of what it was made from, as far as it says so."""
    transformers = library(rest)
    plain, _ = fetch(rest, lambda: transformers.PreTrainedConfig.get_config_dict(rest))
    config = fetch(rest, lambda: transformers.AutoConfig.from_pretrained(rest, trust_remote_code=False))
    return config, str(plain.get("_name_or_path") or "")


def _from_card(rest: str, plain: dict[str, Any]) -> Any:
    transformers = library(rest)
    return transformers.AutoConfig.for_model(**plain)


def _plain(config: Any) -> dict[str, Any]:
    """Return the configuration as plain values that name no folder."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "transformers_version"):
        values.pop(name, None)
    return values


def _network_class(rest: str, config: Any) -> Any:
    """Return transformers' class of a segmentation network for ``config``; SegtailorError where there is none."""
    modeling_auto: Any = importlib.import_module("transformers.models.auto.modeling_auto")
    kinds = modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING
    if config.model_type in MASK_TYPES:
        kinds = modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING
    if type(config) not in kinds:
        known = sorted([*modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES, *MASK_TYPES])
        what = (config.architectures or ["network"])[0]
        raise SegtailorError(
            f"hf:{rest} is a {what} ({config.model_type}), no semantic segmentation model; these types are: "
            f"{', '.join(known)}"
        )
    return kinds[type(config)]


def _has_head(config: Any, net_class: Any) -> bool:
    return not config.architectures or net_class.__name__ in config.architectures


def _with_classes(config: Any, num_classes: int) -> Any:
    if config.num_labels != num_classes:
        config.num_labels = num_classes
    if config.model_type == "oneformer":
        config.is_training = False  # its text branch is for its own loss
    return config


def _class_names(config: Any) -> tuple[str, ...]:
    """Return the class names, none where the configuration only counts them."""
    names = [str(config.id2label[index]) for index in sorted(config.id2label)]
    return () if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else tuple(names)
