"""Which networks and methods a recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveFloat, PositiveInt

from segtailor.config.base import Size, Strict


class PreprocessConfig(Strict):
    """What a network's weights expect of its input, where the network does not say so itself."""

    mean: tuple[float, float, float] | None = Field(None, description="in the network's channel order, after scaling")
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] | None = None
    scale: PositiveFloat | None = Field(None, description="factor on pixels of 0..255; 1/255 for most networks")
    channel_order: Literal["rgb", "bgr"] | None = None
    size_multiple: PositiveInt | None = Field(None, description="height and width must be a multiple of this")
    size: Size | None = Field(None, description="[height, width] to which every input is resized")

    def options(self) -> dict[str, Any]:
        """Return what was set."""
        return self.model_dump(exclude_none=True)


class ModelConfig(Strict):
    """A network, and where its weights come from."""

    model: str = Field(description="name as in `segtailor models`")
    weights: str | None = Field(None, description="run folder, weights file or URI: published:FILE.pth, hf:ID, ...")
    pretrained: bool | str = Field(False, description="ImageNet encoder: true, or the published family's file")
    output_stride: Literal[4, 8, 16, 32] | None = Field(None, description="default: the family's")
    head_width: PositiveInt | None = Field(None, description="channels before the classifier; default: the family's")

    classifier: str | None = Field(
        None, description="path of the module that computes the logits, for networks of other libraries"
    )
    taps: dict[str, str] | None = Field(
        None,
        description="taps by name and module path: {deep: encoder.layer3}; `segtailor inspect --paths` lists paths",
    )
    preprocess: PreprocessConfig | None = Field(None, description="overrides what the network says of its input")

    def options(self) -> dict[str, Any]:
        """Return the construction options that were set."""
        names = ("output_stride", "head_width", "classifier", "taps")
        values = {name: getattr(self, name) for name in names}
        values["preprocess"] = self.preprocess.options() if self.preprocess is not None else None
        return {key: value for key, value in values.items() if value is not None}


class TeacherConfig(ModelConfig):
    """The teacher: its weights, and whether it is scored before step 0."""

    check: bool = Field(True, description="stop before step 0 when the teacher is near chance")
    model: str = Field("", description="name as in `segtailor models`; may be left out when the weights carry it")
    class_map: Path | dict[str | int, str | int] | None = Field(
        None,
        description="for a teacher of other classes: its class -> class of the data, or void; or a YAML file of that",
    )


class MethodConfig(BaseModel):
    """A method by name, its weight, and the method's own options beside them."""

    model_config = ConfigDict(extra="allow")
    name: str
    weight: NonNegativeFloat = 1.0

    def options(self) -> dict[str, Any]:
        """Return the method's own options."""
        return dict(self.model_extra or {})
