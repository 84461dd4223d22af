"""The recipe: everything a run needs, read from YAML and checked once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)


def _list_of(*names: str) -> BeforeValidator:
    """Check that a value is a list of as many items as ``names``, before each item is checked."""

    def check(value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != len(names):
            raise ValueError(f"must be [{', '.join(names)}]")
        return value

    return BeforeValidator(check)


PositiveSize = Annotated[tuple[PositiveInt, PositiveInt], _list_of("height", "width")]
Channels = _list_of("first channel", "second", "third")
Stored = Annotated[int, Field(ge=-(2**31), lt=2**31)]
"""A number in a mask of up to 32 bits."""


class Strict(BaseModel):
    """A section of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True)
    removed: ClassVar[frozenset[str]] = frozenset()
    """Keys of earlier versions; their resolved recipes hold them unset, which is accepted."""

    @model_validator(mode="before")
    @classmethod
    def _pass_over_removed(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value not in (None, False) or key not in cls.removed}


class OptimizerConfig(Strict):
    """SGD with momentum, or AdamW; one learning rate unless ``head_lr_factor`` differs from 1."""

    name: Literal["sgd", "adamw"] = "adamw"
    lr: PositiveFloat = 0.002
    weight_decay: NonNegativeFloat = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    betas: Annotated[tuple[float, float], _list_of("beta1", "beta2")] = (0.9, 0.999)
    head_lr_factor: PositiveFloat = Field(1.0, description="learning rate of the heads over the backbone's")
    decay_norm_and_bias: bool = Field(True, description="weight decay on norms and biases, as the published code does")


class ScheduleConfig(Strict):
    """Poly: ``floor + (lr - floor) * (1 - (n - 1) / steps) ** power``, after a linear warm-up."""

    power: NonNegativeFloat = 0.9
    warmup: NonNegativeInt = Field(0, description="steps of linear warm-up")
    floor: NonNegativeFloat = Field(0.0, description="the least learning rate")


class TrainConfig(Strict):
    """How long, how big and with what optimizer. ``batch`` is the global batch."""

    steps: PositiveInt = 2000
    batch: PositiveInt = 8
    micro_batch: PositiveInt | None = Field(None, description="images a device holds at once; the rest is accumulated")
    seed: NonNegativeInt = 0
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = Field(default_factory=ScheduleConfig)
    clip: PositiveFloat | None = Field(None, description="largest gradient norm")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(None, description="decay of the averaged weights")
    aux_weight: NonNegativeFloat = Field(0.4, description="weight of the auxiliary head's cross-entropy")
    devices: PositiveInt | Literal["auto"] = "auto"
    nodes: PositiveInt = 1
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    sync_batchnorm: bool = Field(True, description="with several processes, batch norm sees the global batch")
    threads: PositiveInt | None = Field(None, description="CPU threads; default: PyTorch's")
    log_every: PositiveInt = 10
    checkpoint_every: PositiveInt | None = Field(None, description="default: evaluate.every")


class EvaluateConfig(Strict):
    """When and how a model is scored; always at the size of the masks."""

    every: PositiveInt = 200
    batch: PositiveInt = 4
    mode: Literal["whole", "slide"] = "whole"
    window: PositiveSize | None = Field(None, description="sliding window; default: data.crop")
    stride: PositiveSize | None = Field(None, description="sliding stride; default: two thirds of the window")
    samples: NonNegativeInt = Field(4, description="validation images shown in the report")


class RunConfig(Strict):
    """Name, folder and license policy of the run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")] | None = None
    folder: Path = Path("runs")
    exists: Literal["error", "resume", "replace"] = "error"
    license_policy: Literal["any", "permissive"] = Field(
        "any", description="permissive refuses weights that are not for commercial use"
    )


class SplitConfig(Strict):
    """Paths of one split of a folder data set, below ``root``; give ``images`` and ``masks``, or ``list``."""

    images: str | None = Field(None, description="folder of images")
    masks: str | None = Field(None, description="folder of masks; a mask has its image's name")
    list: str | None = Field(None, description="text file with one 'image mask' pair a line")


class UnlabelledConfig(Strict):
    """Images without masks, pseudo-labeled by the teacher on the fly."""

    images: Path = Field(description="folder of images; sub-folders are read, too")
    share: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="share of each batch that is unlabelled")
    limit: PositiveInt | None = Field(None, description="use only so many of them, evenly chosen")
    threshold: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="confidence threshold for pseudo-labels, for methods that need labels"
    )


class DataConfig(Strict):
    """Which images and masks, at what size, and how training windows are drawn."""

    removed = frozenset({"streaming"})
    name: str = Field("toy", description="data set: see `segtailor data ls`; `folder` for your own")
    variant: str | None = Field(None, description="which form of the data set, where it has several")
    root: Path | None = Field(None, description="folder that holds the data set")
    size: PositiveSize | None = Field(None, description="[height, width] to which images are resized on reading")
    crop: PositiveSize | None = Field(None, description="[height, width] of the training window; default: size")
    train_split: str = "train"
    val_split: str = "val"
    classes: Path | None = Field(None, description="YAML with class names, palette and void values (folder)")
    splits: dict[str, SplitConfig] | None = Field(None, description="paths of each split of a folder")
    masks: Literal["index", "color", "binary"] | None = Field(
        None, description="what a mask holds: class indices (default), palette colors, or one file for each class"
    )
    values: list[Annotated[int, Field(ge=0, le=255)]] | None = Field(
        None, description="the mask value of each class; default 0, 1, 2, ..."
    )
    void: list[Stored] | None = Field(
        None, description="mask values that are ignored, beside 255; -1 and the like, too"
    )
    reduce_zero_label: bool = Field(False, description="mask value 0 is void, and 1 the first class")
    source: str | None = Field(None, description="id or folder of a Hugging Face data set (hf)")
    config: str | None = Field(None, description="configuration of a Hugging Face data set (hf)")
    image_column: str = Field("image", description="column of images (hf, csv)")
    mask_column: str = Field("mask", description="column of masks (hf, csv)")
    annotations: Path | None = Field(
        None,
        description="table or JSON that names images and masks (csv, coco-json); {split} becomes the split's name",
    )
    limit: PositiveInt | None = Field(None, description="use only so many training images, evenly chosen")
    unlabelled: UnlabelledConfig | None = Field(None, description="images without masks beside the labelled ones")
    scale: Annotated[tuple[PositiveFloat, PositiveFloat], _list_of("smallest", "largest")] = Field(
        (0.5, 2.0), description="random scale, in steps of 0.1"
    )
    flip: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="probability of a horizontal flip")
    workers: NonNegativeInt = Field(2, description="data-loading processes")
    check: bool = Field(True, description="open every image and mask once before training")
    length: PositiveInt | None = Field(None, description="number of training scenes (toy)")

    @model_validator(mode="after")
    def _scale_is_ordered(self) -> DataConfig:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must be [smallest, largest], not {list(self.scale)}")
        return self


class PreprocessConfig(Strict):
    """The input that a network's weights expect, where the network does not declare it."""

    mean: Annotated[tuple[float, float, float], Channels] | None = Field(
        None, description="in the network's channel order, after scaling"
    )
    std: Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Channels] | None = None
    scale: PositiveFloat | None = Field(None, description="factor on pixels of 0..255; 1/255 for most networks")
    channel_order: Literal["rgb", "bgr"] | None = None
    size_multiple: PositiveInt | None = Field(None, description="height and width must be a multiple of this")
    size: PositiveSize | None = Field(None, description="[height, width] to which every input is resized")


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
    preprocess: PreprocessConfig | None = Field(None, description="overrides the network's own preprocessing")

    def options(self) -> dict[str, Any]:
        """Return the construction options that were set."""
        names = {"output_stride", "head_width", "classifier", "taps", "preprocess"}
        return self.model_dump(include=names, exclude_none=True)


class StudentConfig(ModelConfig):
    """The network that is trained: a student, or the `model` of `segtailor train`."""

    dropout: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="probability of every dropout in training; default: the network's own"
    )


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


class TrainRecipe(Strict):
    """A recipe of `segtailor train`."""

    description: str = ""
    data: DataConfig = Field(default_factory=DataConfig)
    model: StudentConfig
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    run: RunConfig = Field(default_factory=RunConfig)


def _as_list(value: Any) -> Any:
    """One method or several, each by its name alone or as a section, become a list of sections."""
    several = value if isinstance(value, list) else [value]
    return [{"name": item} if isinstance(item, str) else item for item in several]


class DistillRecipe(Strict):
    """A recipe of `segtailor distill`."""

    description: str = ""
    data: DataConfig = Field(default_factory=DataConfig)
    teacher: TeacherConfig | None = Field(None, description="not needed by methods that bring their own (lad)")
    student: StudentConfig
    method: Annotated[list[MethodConfig], BeforeValidator(_as_list), Field(min_length=1)]
    baseline: str = Field("none", description="the student alone in the report: a run folder, `train` or `none`")
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    run: RunConfig = Field(default_factory=RunConfig)


class ArmConfig(Strict):
    """One arm of a comparison: its method, and what else differs from the recipe; all else is equal."""

    method: Annotated[list[MethodConfig], BeforeValidator(_as_list), Field(min_length=1)]
    student: StudentConfig | None = Field(None, description="another student than the recipe's")
    optimizer: OptimizerConfig | None = Field(None, description="another optimizer than the recipe's")
    schedule: ScheduleConfig | None = Field(None, description="another schedule than the recipe's")
    aux_weight: NonNegativeFloat | None = Field(None, description="another weight of the auxiliary cross-entropy")
    clip: PositiveFloat | None = Field(None, description="another largest gradient norm")


ArmName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]


def _arm(value: Any) -> Any:
    """An arm may be a method's name, one method, a list of methods, or a section with `method` and more."""
    if isinstance(value, dict) and "method" not in value and "name" in value:
        return {"method": value}
    return {"method": value} if isinstance(value, str | list) else value


def _different(seeds: list[int]) -> list[int]:
    if len(set(seeds)) < len(seeds):
        raise ValueError("seeds must differ")
    return seeds


class CompareRecipe(Strict):
    """A recipe of `segtailor compare`: arms and seeds beside what all of them share."""

    removed = frozenset({"memory"})

    description: str = ""
    data: DataConfig = Field(default_factory=DataConfig)
    teacher: TeacherConfig | None = Field(None, description="not needed by methods that bring their own (lad)")
    student: StudentConfig
    arms: dict[ArmName, Annotated[ArmConfig, BeforeValidator(_arm)]] = Field(min_length=1)
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1), AfterValidator(_different)] = Field(
        [0, 1, 2], description="a seed sets data order, initial weights and noise of all arms"
    )
    spread: Literal["groups", "data"] = Field(
        "groups", description="several processes: `groups` splits seeds across them, `data` runs each arm data-parallel"
    )
    arms_at_once: PositiveInt | None = Field(None, description="arms trained side by side; default: all of a seed")
    boundary: bool = Field(True, description="score boundaries and calibration at the end, too")
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    run: RunConfig = Field(default_factory=RunConfig)


Recipe = TrainRecipe | DistillRecipe | CompareRecipe
