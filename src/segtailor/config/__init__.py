"""The recipe: everything a run needs, read from YAML and checked once."""

from __future__ import annotations

from segtailor.config.base import Size, Strict
from segtailor.config.data import DataConfig, SplitConfig, UnlabelledConfig
from segtailor.config.model import MethodConfig, ModelConfig, PreprocessConfig, TeacherConfig
from segtailor.config.recipe import ArmConfig, CompareRecipe, DistillRecipe, Recipe, TrainRecipe
from segtailor.config.train import EvaluateConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig

__all__ = [
    "ArmConfig",
    "CompareRecipe",
    "DataConfig",
    "DistillRecipe",
    "EvaluateConfig",
    "MethodConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PreprocessConfig",
    "Recipe",
    "RunConfig",
    "ScheduleConfig",
    "Size",
    "SplitConfig",
    "Strict",
    "TeacherConfig",
    "TrainConfig",
    "TrainRecipe",
    "UnlabelledConfig",
]
