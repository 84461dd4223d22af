"""Networks of our own: backbone, head and auxiliary head, built by the name ``HEAD-BACKBONE``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segtailor.errors import SegtailorError, reason, unknown
from segtailor.models.adapters import Choices, family_of, split_name
from segtailor.models.adapters.wrapper import PROBES
from segtailor.models.backbones import Backbone, is_timm_name, timm_backbone
from segtailor.models.checkpoint_keys import load_published_backbone
from segtailor.models.heads import FCN, HEADS, Head, resize
from segtailor.models.mit import MIT_SIZES, MixTransformer
from segtailor.models.network import Network, Preprocess, SegOutput
from segtailor.models.taps import Source, Taps, evaluated, trace

PUBLISHED_RESNETS = ("resnet18", "resnet50", "resnet101")
PUBLISHED_HEADS = ("deeplabv3", "pspnet")
PUBLISHED_PREPROCESS: dict[str, Any] = {
    "mean": (104.00698793, 116.66876762, 122.67891434),
    "std": (1.0, 1.0, 1.0),
    "scale": 1.0,
    "channel_order": "bgr",
}
"""The published benchmark's input: BGR in 0..255 minus the mean color."""

COMMON_BACKBONES = (
    *("resnet18", "resnet50", "resnet101", "resnet18d", "resnet50d", "mobilenetv2", "mobilenetv3_large_100"),
    *("mobilenetv4_conv_small", "tf_efficientnet_lite0", "tf_efficientnet_lite1", "tf_efficientnet_lite2"),
    *("efficientnet_b0", "lcnet_050", "lcnet_100", "regnety_002", "convnext_atto", "convnext_tiny"),
    *("swin_tiny_patch4_window7_224", "vit_small_patch16_224"),
    *("vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"),
)
RESERVED = ("feature", "classifier_input", "logits", "aux_logits")
MIT_STRIDE = 32
MOST_CLASSES = 255


class Segmenter(Network):
    """A backbone with a head and, for most heads, an auxiliary FCN head on the last map but one.

    Built by `create_model`; ``options`` are the construction options that were set.
    """

    def __init__(
        self,
        name: str,
        num_classes: int,
        backbone: Backbone,
        head: Head,
        aux_head: FCN | None,
        preprocess: Preprocess,
        options: dict[str, Any],
    ) -> None:
        super().__init__()
        self.name = name
        self.num_classes = num_classes
        self.options = options
        self.preprocess = preprocess
        self.backbone = backbone
        self.head = head
        self.aux_head = aux_head
        self.align_corners = head.align_corners
        self.note = backbone.note
        self.feature_channels = head.width
        self.licenses: dict[str, str] = {"backbone": backbone.license} if backbone.license else {}
        self.has_aux, self.stage_strides = aux_head is not None, backbone.strides
        stages = {f"stages.{index}": channels for index, channels in enumerate(backbone.channels)}
        self.tap_channels = {"feature": head.width, "classifier_input": head.width, **stages}
        self._taps = Taps(name)
        self.name_taps(options.get("taps") or {})

    def name_taps(self, taps: dict[str, str]) -> None:
        """Offer the outputs of further modules as taps: name -> path below this network.

        Raises SegtailorError for a path that it does not have, or whose output is no map.
        """
        if not taps:
            return
        for name in taps:
            if name in RESERVED or name.startswith("stages."):
                raise SegtailorError(f"{self.name} has a tap '{name}' already; choose another name")
        size = self.preprocess.input_size(PROBES[0])
        with evaluated(self):
            steps, _ = trace(self, lambda: self.forward_normalized(torch.zeros(1, 3, *size)))
        known = {step.path: step for step in steps}
        for name, path in taps.items():
            self._taps.add(name, Source(path), known, self, size)
        self._taps.attach(self)
        self.tap_channels.update(self._taps.channels)
        self.options["taps"] = {**(self.options.get("taps") or {}), **taps}

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the backbone's parameters."""
        return list(self.backbone.parameters())

    def forward_normalized(self, inputs: Tensor) -> SegOutput:
        """Return the output for ``inputs`` (B,3,H,W) that are preprocessed already."""
        self._taps.begin()
        try:
            stages = self.backbone(inputs)
            logits, feature, classifier_input = self.head(stages)
            aux_logits = None if self.aux_head is None else self.aux_head(stages[:-1]).logits
        except ValueError as error:  # a backbone's batch norm refuses a single value per channel
            height, width = inputs.shape[-2:]
            raise SegtailorError(
                f"{self.name} cannot be trained on {len(inputs)} image of {height} x {width} ({reason(error)}); set a "
                "larger data.crop or train.batch"
            ) from error
        finally:
            seen = self._taps.take()
        taps = self._taps.maps(seen, inputs.shape[-2:], self, logits)
        return SegOutput(logits, aux_logits, feature, classifier_input, tuple(stages), taps)

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``logits`` (B,K,h,w) at ``size``, bilinear, with the corner rule that the family was trained with."""
        return resize(logits, size, self.align_corners)

    def spec(self) -> dict[str, Any]:
        """Return what `create_model` needs to build the same network, as plain values."""
        return {
            "name": self.name,
            "num_classes": self.num_classes,
            **self.options,
            "preprocess": self.preprocess.spec(),
        }


def list_models() -> list[str]:
    """Return the curated names; any ``HEAD-TIMMNAME`` works beside them."""
    convolutional = [head for head in HEADS if head != "segformer"]
    names = {f"{head}-{backbone}" for head in convolutional for backbone in COMMON_BACKBONES}
    others = ("convnext_tiny", "lcnet_050", "mobilenetv2", "vit_small_patch16_224", "vit_small_patch14_dinov2")
    names.update(f"segformer-{backbone}" for backbone in (*MIT_SIZES, *others))
    return sorted(names)


def is_published(name: str) -> bool:
    """Return whether ``name`` belongs to the published benchmark family, whose checkpoints `published:` reads."""
    head, _, backbone = name.partition("-")
    if head == "segformer":
        return backbone in MIT_SIZES
    return head in PUBLISHED_HEADS and backbone in (*PUBLISHED_RESNETS, "mobilenetv2")


def create_model(
    name: str,
    num_classes: int,
    pretrained: bool | str | Path = False,
    *,
    output_stride: int | None = None,
    head_width: int | None = None,
    preprocess: dict[str, Any] | None = None,
    classifier: str | None = None,
    taps: dict[str, str] | None = None,
    config: dict[str, Any] | None = None,
) -> Network:
    """Build the network ``name`` (``HEAD-BACKBONE``, see `list_models`, or a URI of another library's) with fresh
    weights.

    ``pretrained``: True loads ImageNet weights into a timm backbone, a path loads the published benchmark's ImageNet
    file (``resnet18-imagenet.pth``, ``mit_b0.pth``; also transformers' of a Mix Transformer, its folder or its weights
    file) into one of its own. ``output_stride`` and ``head_width`` override
    the family's; ``preprocess`` are `Preprocess` arguments that override the network's own. ``taps`` names further
    module paths as taps; ``classifier`` (the module that computes the logits) and ``config`` (the other library's own
    configuration) are for networks of other libraries. Raises SegtailorError for unknown names, for a stride that the
    backbone cannot have, and for weights out of reach.

    >>> create_model("fcn-lcnet_050", num_classes=3).tap_channels["stages.0"]
    32
    """
    if not 1 <= num_classes <= MOST_CLASSES:
        raise SegtailorError(f"{name}: num_classes is {num_classes}; it must be 1 to {MOST_CLASSES}")
    if family_of(name):
        _refuse(name, output_stride=output_stride, head_width=head_width)
        library, rest = split_name(name)
        choices = Choices(classifier, taps, dict(preprocess or {}), config)
        network: Network = library.create(rest, num_classes, pretrained, choices)
        return network
    _refuse(name, classifier=classifier, config=config)
    head_name, _, backbone_name = name.partition("-")
    head_type = HEADS.get(head_name)
    known = backbone_name in MIT_SIZES or backbone_name == "mobilenetv2" or is_timm_name(backbone_name)
    if head_type is None or not known:
        names = list_models()
        if head_type is not None and backbone_name:
            import timm

            names += [f"{head_name}-{backbone}" for backbone in timm.list_models()]
        raise unknown("model", name, names)
    stride = output_stride or head_type.output_stride
    backbone = _backbone(name, backbone_name, stride, output_stride is not None, pretrained, head_type.fine_maps)
    channels, strides = backbone.channels, backbone.strides
    width = head_type.default_width(channels)
    if head_name == "segformer" and backbone_name in MIT_SIZES:
        width = MIT_SIZES[backbone_name].decoder_width
    head = head_type(channels, strides, num_classes, head_width or width)
    aux_head = None
    if head_type.has_aux and len(channels) > 1 and not (is_published(name) and backbone_name == "mobilenetv2"):
        aux_head = FCN(channels[:-1], strides[:-1], num_classes, FCN.default_width(channels[:-1]))
    options = {"output_stride": output_stride, "head_width": head_width, "taps": taps}
    return Segmenter(
        name,
        num_classes,
        backbone,
        head,
        aux_head,
        Preprocess(**{**backbone.preprocess, **(preprocess or {})}),
        {key: value for key, value in options.items() if value is not None},
    )


def _refuse(name: str, **given: Any) -> None:
    """Raise SegtailorError for options that a network of this kind does not have."""
    for option, value in given.items():
        if value is not None:
            raise SegtailorError(f"{name} has no option {option}; leave it out")


def _backbone(
    name: str, backbone_name: str, stride: int, required: bool, pretrained: bool | str | Path, fine_maps: int
) -> Backbone:
    """Build the backbone of the model ``name``; the published family has its own stem and preprocessing."""
    published = is_published(name)
    file = None if isinstance(pretrained, bool) else Path(pretrained)
    if file is not None and not published:
        raise SegtailorError(f"{name}: a file as pretrained is for the published family; set pretrained to true")
    if backbone_name in MIT_SIZES:
        if required and stride != MIT_STRIDE:
            raise SegtailorError(f"{name} cannot have output stride {stride}: leave output_stride out (it has 32)")
        size = MIT_SIZES[backbone_name]
        backbone = Backbone(MixTransformer(size), list(size.channels), [4, 8, 16, 32], PUBLISHED_PREPROCESS)
    elif published and backbone_name in PUBLISHED_RESNETS:
        backbone = timm_backbone(backbone_name, stride, required, stem_type="deep", stem_width=64)
    else:
        timm_name = "mobilenetv2_100" if backbone_name == "mobilenetv2" else backbone_name
        backbone = timm_backbone(timm_name, stride, required, pretrained is True, fine_maps)
        if pretrained is True or not published:
            return backbone  # hub weights expect the preprocessing that they were trained with
    backbone.preprocess = PUBLISHED_PREPROCESS
    if pretrained is True:
        other = f", or use {name}d" if "-resnet" in name else ""
        raise SegtailorError(
            f"{name}: no downloadable weights fit this backbone; set pretrained to the published ImageNet file"
            f" (resnet18-imagenet.pth, mit_b0.pth){other}"
        )
    if file is not None:
        backbone.license, expected = load_published_backbone(backbone.net, backbone_name, file)
        backbone.preprocess = expected or backbone.preprocess
    return backbone
