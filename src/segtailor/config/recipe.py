"""The recipes: of `train`, `distill` and `compare`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

from segtailor.config.base import Strict
from segtailor.config.data import DataConfig
from segtailor.config.model import MethodConfig, ModelConfig, TeacherConfig
from segtailor.config.train import EvaluateConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig


class TrainRecipe(Strict):
    """A recipe of `segtailor train`."""

    description: str = ""
    data: DataConfig = Field(default_factory=DataConfig)
    model: ModelConfig
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
    student: ModelConfig
    method: Annotated[list[MethodConfig], BeforeValidator(_as_list), Field(min_length=1)]
    baseline: str = Field("none", description="the student alone in the report: a run folder, `train` or `none`")
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    run: RunConfig = Field(default_factory=RunConfig)


class ArmConfig(Strict):
    """One arm of a comparison: its method, and what else differs from the recipe; all else is equal."""

    method: Annotated[list[MethodConfig], BeforeValidator(_as_list), Field(min_length=1)]
    student: ModelConfig | None = Field(None, description="another student than the recipe's")
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

    description: str = ""
    data: DataConfig = Field(default_factory=DataConfig)
    teacher: TeacherConfig | None = Field(None, description="not needed by methods that bring their own (lad)")
    student: ModelConfig
    arms: dict[ArmName, Annotated[ArmConfig, BeforeValidator(_arm)]] = Field(min_length=1)
    seeds: Annotated[list[NonNegativeInt], Field(min_length=1), AfterValidator(_different)] = Field(
        [0, 1, 2], description="each seed is a group of its own: data order, initial weights and noise"
    )
    spread: Literal["groups", "data"] = Field(
        "groups", description="with several processes: seeds are dealt to them, or each arm is data-parallel"
    )
    memory: PositiveFloat | None = Field(None, description="GiB for the arms of a group; default: what is free")
    boundary: bool = Field(True, description="score boundaries and calibration at the end, too")
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvaluateConfig = Field(default_factory=EvaluateConfig)
    run: RunConfig = Field(default_factory=RunConfig)


Recipe = TrainRecipe | DistillRecipe | CompareRecipe
