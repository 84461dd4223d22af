"""``torchvision:NAME``: torchvision's segmentation networks, fresh or with its COCO weights of VOC's classes."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from segtailor.errors import SegtailorError, reason, unknown
from segtailor.models.adapters import Choices
from segtailor.models.adapters.weights import fill
from segtailor.models.adapters.wrapper import AUX, Adapted, Ran
from segtailor.models.heads import resize
from segtailor.models.network import Preprocess

TRUNK = {"resnet": "", "mobilenet": "features."}
"""Prefix of the backbone's names in the weights file of an ImageNet classifier."""
HEADS = ("fc.", "classifier.")
LICENSE = "BSD-3-Clause (torchvision {}); trained on {}"
SUMMED = "its logits are the sum of two classifiers' on maps of two depths; feature is both maps one upon the other"


class TorchvisionNetwork(Adapted):
    """A network of torchvision with one classifier and, unless its weights have none, an auxiliary one."""

    own_layout = "torchvision"

    def fitting(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return ``tensors``; where they have no auxiliary classifier, the network loses its own."""
        if self.has_aux and not any(name.startswith("aux_classifier.") for name in tensors):
            setattr(self.net, "aux_classifier", None)  # noqa: B010  (typed as a module)
            self.has_aux = False
            self._taps.sources.pop(AUX, None)
            self.options["config"] = {"aux_loss": False}
        return tensors


class LiteReducedAspp(TorchvisionNetwork):
    """LR-ASPP, whose two 1x1 classifiers are summed: together they are one, on both their inputs."""

    note = SUMMED

    def run(self, inputs: Tensor) -> Ran:
        """Return the logits at the finer map's size, and both classifiers' inputs (B,C,h,w) as one."""
        net: Any = self.net
        maps = net.backbone(inputs)
        low, high = maps["low"], maps["high"]
        high = net.classifier.cbr(high) * net.classifier.scale(high)
        high = resize(high, low.shape[-2:], align_corners=False)
        logits = net.classifier.low_classifier(low) + net.classifier.high_classifier(high)
        return Ran(logits, None, torch.cat([low, high], dim=1))

    @property
    def classifier(self) -> str | None:
        """The path of the first of the two, whose outputs are counted as classes."""
        return "classifier.low_classifier"


def create(rest: str, num_classes: int, pretrained: bool | str | Path, choices: Choices) -> Adapted:
    """Build the network ``rest`` for ``num_classes``; with ``pretrained`` its backbone has ImageNet weights.

    Raises SegtailorError for unknown names and for weights out of reach.
    """
    if not isinstance(pretrained, bool):
        raise SegtailorError(f"torchvision:{rest}: pretrained is true or false; a file is given as `weights`")
    builder = _builder(rest)
    network = _build(rest, builder, num_classes, choices)
    if pretrained:
        weights = inspect.signature(builder).parameters["weights_backbone"].default
        _fill_backbone(network, rest, _fetch(rest, weights))
        network.licenses = {"encoder": LICENSE.format(weights, "ImageNet")}
    return network


def load(rest: str, choices: Choices) -> Adapted:
    """Load the network ``rest`` with torchvision's COCO weights, which know the classes of VOC.

    Raises SegtailorError for unknown names and where the weights are out of reach.
    """
    from torchvision.models import get_model_weights

    builder = _builder(rest)
    weights: Any = get_model_weights(builder).DEFAULT
    names = tuple(name.strip("_") for name in weights.meta["categories"])
    shown = weights.transforms()
    known = {"mean": tuple(shown.mean), "std": tuple(shown.std), **choices.preprocess}
    given = Choices(choices.classifier, choices.taps, known, choices.config)
    network = _build(rest, builder, len(names), given)
    tensors = network.fitting(_fetch(rest, weights))
    fill(network.net, tensors, str(weights), network.name)
    network.classes, network.licenses = names, {"model": LICENSE.format(weights, "COCO, with VOC's classes")}
    return network


def _builder(rest: str) -> Any:
    from torchvision.models import get_model_builder, list_models, segmentation

    names = list_models(module=segmentation)
    if rest not in names:
        raise unknown("segmentation network of torchvision", rest, names)
    return get_model_builder(rest)


def _build(rest: str, builder: Any, num_classes: int, choices: Choices) -> TorchvisionNetwork:
    config = dict(choices.config or {})
    if "aux_loss" in inspect.signature(builder).parameters:
        config.setdefault("aux_loss", True)
    try:
        net = builder(weights=None, weights_backbone=None, num_classes=num_classes, **config)
        preprocess = Preprocess(**choices.preprocess)
    except (TypeError, ValueError) as error:
        raise SegtailorError(f"torchvision:{rest} cannot be built ({reason(error)[:160]})") from error
    aux = getattr(net, "aux_classifier", None)
    stages = [f"backbone.layer{index}" for index in range(1, 5)] if hasattr(net.backbone, "layer4") else None
    kind = LiteReducedAspp if rest.startswith("lraspp") else TorchvisionNetwork
    return kind(
        f"torchvision:{rest}",
        num_classes,
        net,
        preprocess,
        classifier=choices.classifier,
        taps=choices.taps,
        encoder="backbone",
        stages=stages,
        aux=None if aux is None else f"aux_classifier.{len(aux) - 1}",
        options={"config": config} if config else {},
    )


def _fill_backbone(network: Adapted, rest: str, tensors: dict[str, Tensor]) -> None:
    trunk = next(prefix for family, prefix in TRUNK.items() if family in rest)
    kept = {name.removeprefix(trunk): value for name, value in tensors.items() if not name.startswith(HEADS)}
    fill(network.net.get_submodule("backbone"), kept, f"ImageNet weights of torchvision:{rest}", "its backbone")


def _fetch(rest: str, weights: Any) -> dict[str, Tensor]:
    """Return the tensors of one of torchvision's files, from its cache or from the network; nothing else is read."""
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    name = str(weights.url).rpartition("/")[2]
    known = (folder / name).is_file()
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except Exception as error:  # network, cache and file fail in many ways
        why = (reason(error).strip() or type(error).__name__)[:160]
        if known:
            raise SegtailorError(
                f"{folder / name} cannot be read ({why}); delete it, so that it is fetched again"
            ) from error
        raise SegtailorError(
            f"torchvision:{rest}: {name} is not in {folder} and cannot be fetched ({why}); connect once, or put the "
            "file there"
        ) from error
