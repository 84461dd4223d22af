"""The segmentation network: preprocessing, backbone, head, auxiliary head."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from segtailor.models.adapters.named_taps import NamedTaps
from segtailor.models.backbones import Backbone
from segtailor.models.heads import FCN, Head
from segtailor.models.heads.blocks import resize
from segtailor.models.network import Network
from segtailor.models.output import SegOutput
from segtailor.models.preprocess import Preprocess


class Segmenter(Network):
    """A backbone with a head and, for most heads, an auxiliary FCN head on the last map but one.

    Built by `create_model`. ``tap_channels`` names every tap that a method may ask for; ``options`` are the
    construction options that were set.
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
        self.licences: dict[str, str] = {"backbone": backbone.licence} if backbone.licence else {}
        self._taps = NamedTaps()
        self._taps.name(self, options.get("taps") or {})

    def name_taps(self, taps: dict[str, str]) -> None:
        """Offer the outputs of further modules as taps: name -> path below this network.

        Raises SegtailorError for a path that it does not have, or whose output is no map.
        """
        self._taps.name(self, taps)
        if taps:
            self.options["taps"] = {**(self.options.get("taps") or {}), **taps}

    def encoder_parameters(self) -> list[nn.Parameter]:
        """Return the backbone's parameters."""
        return list(self.backbone.parameters())

    @property
    def has_aux(self) -> bool:
        """Whether the output carries auxiliary logits."""
        return self.aux_head is not None

    @property
    def tap_channels(self) -> dict[str, int]:
        """Channels of every tap: the feature, the same after dropout, the backbone's maps, and those named by path."""
        taps = {"feature": self.feature_channels, "classifier_input": self.feature_channels}
        taps.update({f"stages.{index}": channels for index, channels in enumerate(self.backbone.channels)})
        return {**taps, **self._taps.channels}

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """Strides of the backbone's maps, finest first."""
        return self.backbone.strides

    def forward_normalised(self, inputs: Tensor) -> SegOutput:
        """Return the output for ``inputs`` (B,3,H,W) that are preprocessed already."""
        self._taps.begin()
        try:
            stages = self.backbone(inputs)
            logits, feature, classifier_input = self.head(stages)
            aux_logits = None if self.aux_head is None else self.aux_head(stages[:-1]).logits
        finally:
            seen = self._taps.end()
        taps = self._taps.maps(seen, inputs, self)
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
