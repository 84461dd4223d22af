"""Which data a recipe reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from segtailor.config.base import Size, Strict


class SplitConfig(Strict):
    """Where one split of a folder data set lies, under ``root``; give ``images`` and ``masks``, or ``list``."""

    images: str | None = Field(None, description="folder of images")
    masks: str | None = Field(None, description="folder of masks; a mask has its image's name")
    list: str | None = Field(None, description="text file with one 'image mask' pair a line")


class UnlabelledConfig(Strict):
    """Images without masks, which the teacher labels in passing."""

    images: Path = Field(description="folder of images; sub-folders are read, too")
    share: Annotated[float, Field(gt=0, lt=1)] = Field(0.5, description="share of each batch that is unlabelled")
    limit: PositiveInt | None = Field(None, description="use only so many of them, evenly chosen")
    threshold: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.9, description="methods that need labels take the teacher's class where it is at least so sure"
    )


class DataConfig(Strict):
    """Which images and masks, at what size, and how training windows are drawn."""

    name: str = Field("toy", description="data set: see `segtailor data ls`; `folder` for your own")
    variant: str | None = Field(None, description="which form of the data set, where it has several")
    root: Path | None = Field(None, description="folder that holds the data set")
    size: Size | None = Field(None, description="[height, width] to which images are resized on reading")
    crop: Size | None = Field(None, description="[height, width] of the training window; default: size")
    train_split: str = "train"
    val_split: str = "val"
    classes: Path | None = Field(None, description="YAML with class names, palette and void values (folder)")
    splits: dict[str, SplitConfig] | None = Field(None, description="where each split of a folder lies")
    masks: Literal["index", "color", "binary"] | None = Field(
        None, description="what a mask holds: class indices (default), palette colours, or one file for each class"
    )
    values: list[Annotated[int, Field(ge=0, le=255)]] | None = Field(
        None, description="the mask value of each class; default 0, 1, 2, ..."
    )
    void: list[Annotated[int, Field(ge=0, le=255)]] | None = Field(
        None, description="mask values that are ignored, beside 255"
    )
    reduce_zero_label: bool = Field(False, description="mask value 0 is void, and 1 the first class")
    source: str | None = Field(None, description="id or folder of a Hugging Face data set (hf)")
    config: str | None = Field(None, description="configuration of a Hugging Face data set (hf)")
    image_column: str = Field("image", description="column of images (hf, csv)")
    mask_column: str = Field("mask", description="column of masks (hf, csv)")
    streaming: bool = Field(False, description="read a Hugging Face data set without downloading it first (hf)")
    annotations: Path | None = Field(
        None, description="the table or JSON that names images and masks (csv, coco-json); {split} stands for the split"
    )
    limit: PositiveInt | None = Field(None, description="use only so many training images, evenly chosen")
    unlabelled: UnlabelledConfig | None = Field(None, description="images without masks beside the labelled ones")
    scale: tuple[PositiveFloat, PositiveFloat] = Field((0.5, 2.0), description="random scale, in steps of 0.1")
    flip: Annotated[float, Field(ge=0, le=1)] = Field(0.5, description="probability of a horizontal flip")
    workers: NonNegativeInt = Field(2, description="data-loading processes")
    check: bool = Field(True, description="open every image and mask once before training")
    length: PositiveInt | None = Field(None, description="number of training scenes (toy)")

    @model_validator(mode="after")
    def _scale_is_ordered(self) -> DataConfig:
        if self.scale[0] > self.scale[1]:
            raise ValueError(f"scale must be [smallest, largest], not {list(self.scale)}")
        return self
