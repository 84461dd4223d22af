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
from segtailor.models.adapters.hf_files import (
    check_place,
    fetch,
    library,
    license_of,
    read_encoder,
    read_preprocess,
    read_weights,
)
from segtailor.models.adapters.wrapper import PROBES, Adapted, Ran, make_preprocess
from segtailor.models.heads import resize
from segtailor.models.taps import evaluated

MASK_TYPES = ("mask2former", "maskformer", "oneformer")
REDUCED = "its data's first label is no class: its classes start at label 1"
FEATURE = "model.pixel_level_module.decoder.mask_projection"
"""The pixel decoder's last layer, whose product with a query is that query's mask."""
LEAST_SCORE = 1e-8
"""Scores below are raised to it before the logarithm."""
SEMANTIC_TASK = (49406, 518, 10549, 533, 29119, 1550, 49407)
"""CLIP's tokens of "the task is semantic", with start and end; OneFormer takes them as numbers, zeros behind."""
NOTE = "its logits are the log of its semantic map's normalized scores; mask classification is a teacher only"


def find_places(net: nn.Module) -> dict[str, Any]:
    """Return the paths of the encoder of ``net``, of its maps (finest first), and of the module of its auxiliary
    logits; None where they are to be found by trial."""
    config: Any = net.config
    encoder, within, names = _MAPS.get(config.model_type, lambda net, config: (None, "", None))(net, config)
    stages = None if names is None else tuple(".".join(filter(None, [encoder, within, str(name)])) for name in names)
    return {"encoder": encoder, "stages": stages, "aux": _aux(net, config)}


def _norms(path: str) -> Any:
    """Return the finder for a backbone at ``path``: what it passes on goes through its norms, where it has them."""

    def find(net: nn.Module, config: Any) -> tuple[str, str, list[str] | None]:
        norms = getattr(net.get_submodule(path), "hidden_states_norms", None)
        names = [name for name, _ in norms.named_children()] if norms is not None else []
        return path, "hidden_states_norms", names or None

    return find


def _aux(net: nn.Module, config: Any) -> str | None:
    head = getattr(net, "auxiliary_head", None)
    if head is None:
        return None
    convolutions = [
        name
        for name, module in head.named_modules()
        if isinstance(module, nn.Conv2d) and module.out_channels == config.num_labels
    ]
    return f"auxiliary_head.{convolutions[-1]}" if convolutions else None


_PIXELS = _norms("model.pixel_level_module.encoder")
# of each type: its encoder, where the maps' modules are below it, and their names there, finest first
_MAPS: dict[str, Any] = {
    # BEiT's head counts the embedding as 1
    "beit": lambda net, config: ("beit", "layers", [max(index - 2, 0) for index in config.out_indices]),
    "data2vec-vision": lambda net, config: (
        "data2vec_vision", "encoder.layer", [max(index - 2, 0) for index in config.out_indices]
    ),
    "dpt": lambda net, config: ("dpt", "encoder.layer", None if config.is_hybrid else config.backbone_out_indices),
    "mask2former": _PIXELS,
    "maskformer": _PIXELS,
    "mobilenet_v2": lambda net, config: ("mobilenet_v2", "layer", (1, 4, 11, 15)),  # the last layers of a width
    "mobilevit": lambda net, config: ("mobilevit", "encoder.layer", range(1, 5)),
    "mobilevitv2": lambda net, config: ("mobilevitv2", "encoder.layer", range(1, 5)),
    "oneformer": _PIXELS,
    "sapiens2": lambda net, config: (
        "model", "model.layer", [max(config.num_hidden_layers * part // 4 - 1, 0) for part in range(1, 5)]
    ),
    "segformer": lambda net, config: ("segformer", "stages", range(config.num_encoder_blocks)),
    "tipsv2_dpt": lambda net, config: (
        "backbone", "encoder.layer", [index - 1 for index in config.backbone_config.out_indices]
    ),
    "upernet": _norms("backbone"),
}  # fmt: skip


def semantic_logits(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Return per-pixel logits (B,K,h,w): the log of each class's share in the queries' masks.

    ``class_logits`` (B,Q,K+1), the null class last; ``mask_logits`` (B,Q,h,w). A class's score is the sum over queries
    of its probability times the mask's (Cheng et al. 2021, arXiv:2107.06278, semantic inference).

    >>> semantic_logits(torch.zeros(1, 1, 3), torch.zeros(1, 1, 1, 1)).exp().flatten().tolist()
    [0.5, 0.5]
    """
    classes = class_logits.float().softmax(dim=-1)[..., :-1]
    scores = torch.einsum("bqk,bqhw->bkhw", classes, mask_logits.float().sigmoid())
    return (scores / scores.sum(dim=1, keepdim=True).clamp_min(LEAST_SCORE)).clamp_min(LEAST_SCORE).log()


def semantic_task(length: int) -> Tensor:
    """Return OneFormer's input for the semantic task, (1,length)."""
    kept = SEMANTIC_TASK if length >= len(SEMANTIC_TASK) else (*SEMANTIC_TASK[: length - 1], SEMANTIC_TASK[-1])
    return torch.tensor([[*kept, *[0] * (length - len(kept))]])


class MaskClassifier(Adapted):
    """A network that classifies masks, seen through its semantic map; ``feature`` is its pixel decoder's map.

    It cannot be trained here: its own training matches queries to segments, of which a semantic map knows nothing.
    """

    trainable = False
    note = NOTE

    def __init__(self, name: str, num_classes: int, net: nn.Module, *args: Any, **kwargs: Any) -> None:
        config: Any = net.config
        if config.model_type == "oneformer":
            net.register_buffer("semantic_task", semantic_task(config.task_seq_len), persistent=False)
        own = kwargs.pop("taps", None) or {}
        super().__init__(name, num_classes, net, *args, taps={"feature": FEATURE, **own}, **kwargs)
        self.options.pop("taps")
        self.options |= {"taps": dict(own)} if own else {}
        self.requires_grad_(False)

    def run(self, inputs: Tensor) -> Ran:
        """Return the semantic map's logits for normalized ``inputs`` (B,3,H,W)."""
        task = getattr(self.net, "semantic_task", None)
        further = {} if task is None else {"task_inputs": task.expand(len(inputs), -1)}
        result = self.net(pixel_values=inputs, **further)
        return Ran(semantic_logits(result.class_queries_logits, result.masks_queries_logits))

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``logits`` (B,K,h,w) at ``size``; the scores are enlarged, not their logarithms."""
        if tuple(logits.shape[-2:]) == tuple(size):
            return logits
        return resize(logits.exp(), size, self.align_corners).clamp_min(LEAST_SCORE).log()


class HubNetwork(Adapted):
    """A network of transformers that gives logits."""

    def run(self, inputs: Tensor) -> Ran:
        """Return the logits for normalized ``inputs`` (B,3,H,W)."""
        return Ran(self.net(pixel_values=inputs).logits)


def create(rest: str, num_classes: int, pretrained: bool | str | Path, choices: Choices) -> Adapted:
    """Build the network of the repository ``rest`` for ``num_classes``, with fresh weights unless ``pretrained``.

    With ``pretrained`` the weights are the repository's; its classifier is fresh where the class counts differ, and
    the whole head where the repository holds an encoder alone. With ``choices.config``, from a card, nothing is looked
    up. Raises SegtailorError for a repository that is not there or does not fit.
    """
    if not isinstance(pretrained, bool):
        raise SegtailorError(f"hf:{rest}: pretrained is true or false; its weights come from the repository")
    transformers = library(rest)
    if choices.config is not None:
        plain = dict(choices.config)
        config = fetch(rest, lambda: transformers.AutoConfig.for_model(**plain))
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
    licenses = license_of(rest, origin)
    return _trainable(_wrapped(rest, num_classes, net, preprocess, choices, licenses=licenses, classes=classes))


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
    licenses = license_of(rest, origin)
    network = _wrapped(rest, count, net, preprocess, choices, licenses=licenses, classes=names)
    if reduced:
        network.note = "; ".join(filter(None, [network.note, REDUCED]))
    return network


def _wrapped(
    rest: str, num_classes: int, net: nn.Module, preprocess: dict[str, Any], choices: Choices, **known: Any
) -> Adapted:
    config: Any = net.config
    plain: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    for local in ("_name_or_path", "transformers_version"):
        plain.pop(local, None)
    kind = MaskClassifier if config.model_type in MASK_TYPES else HubNetwork
    return kind(
        f"hf:{rest}",
        num_classes,
        net.train(),
        make_preprocess(f"hf:{rest}", preprocess),
        classifier=choices.classifier,
        taps=choices.taps,
        options={"config": plain},
        **find_places(net),
        **known,
    )


def _trainable(network: Adapted) -> Adapted:
    """Return ``network`` with the parameters frozen that no logits depend on: with several processes, their gradients
    would be waited for."""
    if not network.trainable:
        return network
    size = network.preprocess.input_size(PROBES[0])
    with evaluated(network), torch.enable_grad():
        output = network.forward_normalized(torch.zeros(1, 3, *size))
        sums = [logits.sum() for logits in (output.logits, output.aux_logits) if logits is not None]
    parameters = list(network.parameters())
    for parameter, found in zip(parameters, torch.autograd.grad(sums, parameters, allow_unused=True), strict=True):
        parameter.requires_grad_(found is not None)
    return network


def _read_config(rest: str) -> tuple[Any, str]:
    """Return the repository's configuration, and the name of what it was made from, as far as it says so."""
    transformers = library(rest)
    plain, _ = fetch(rest, lambda: transformers.PreTrainedConfig.get_config_dict(rest))
    config = fetch(rest, lambda: transformers.AutoConfig.from_pretrained(rest, trust_remote_code=False))
    return config, str(plain.get("_name_or_path") or "")


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
    if config.num_labels != num_classes:  # setting it renames the classes
        config.num_labels = num_classes
    if config.model_type == "oneformer":
        config.is_training = False  # its text branch is for its own loss
    return config


def _class_names(config: Any) -> tuple[str, ...]:
    """Return the class names, none where the configuration only counts them."""
    names = [str(config.id2label[index]) for index in sorted(config.id2label)]
    return () if all(name == f"LABEL_{index}" for index, name in enumerate(names)) else tuple(names)
