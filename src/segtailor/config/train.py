"""How a recipe trains, scores and keeps its files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from segtailor.config.base import Size, Strict


class OptimizerConfig(Strict):
    """SGD with momentum, or AdamW; one learning rate unless ``head_lr_factor`` differs from 1."""

    name: Literal["sgd", "adamw"] = "adamw"
    lr: PositiveFloat = 0.002
    weight_decay: NonNegativeFloat = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
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
    """When and how a model is scored; always at the masks' own size."""

    every: PositiveInt = 200
    batch: PositiveInt = 4
    mode: Literal["whole", "slide"] = "whole"
    window: Size | None = Field(None, description="sliding window; default: data.crop")
    stride: Size | None = Field(None, description="sliding stride; default: two thirds of the window")
    samples: NonNegativeInt = Field(4, description="validation images shown in the report")


class RunConfig(Strict):
    """Where the run lies."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    folder: Path = Path("runs")
    exists: Literal["error", "resume", "replace"] = "error"
    license_policy: Literal["any", "permissive"] = Field(
        "any", description="permissive refuses weights that are not for commercial use"
    )
