"""The arms of a comparison: each is an ordinary distillation, whose recipe can be run alone."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from segtailor.config import ArmConfig, CompareRecipe, DistillRecipe, MethodConfig, ModelConfig, RunConfig
from segtailor.errors import SegtailorError
from segtailor.methods import check_options

ALONE = "none"


def all_arms(recipe: CompareRecipe) -> dict[str, ArmConfig]:
    """Return the recipe's arms by name, and before them the student alone where no arm is.

    Each further student of the recipe gets an arm of its own alone, ``none-MODEL``.
    """
    students = {_student(recipe, arm).model_dump_json() for arm in recipe.arms.values() if is_alone(arm)}
    missing: dict[str, ArmConfig] = {}
    for student in [recipe.student, *(arm.student for arm in recipe.arms.values() if arm.student is not None)]:
        if student.model_dump_json() in students:
            continue
        students.add(student.model_dump_json())
        own = student is recipe.student
        name = ALONE if own else f"{ALONE}-{student.model}"
        while name in recipe.arms or name in missing:
            name += "-alone"
        missing[name] = ArmConfig(method=[MethodConfig(name="none")], student=None if own else student)
    return {**missing, **recipe.arms}


def baseline_of(recipe: CompareRecipe) -> str:
    """Return the arm that is the recipe's own student alone."""
    return next(
        name for name, arm in all_arms(recipe).items() if is_alone(arm) and _student(recipe, arm) == recipe.student
    )


def is_alone(arm: ArmConfig) -> bool:
    """Whether the arm is a student trained without a method."""
    return [method.name for method in arm.method] == ["none"]


def arm_recipe(recipe: CompareRecipe, name: str, seed: int) -> DistillRecipe:
    """Return the recipe that trains the arm ``name`` with ``seed`` alone, by `segtailor distill`."""
    arm = all_arms(recipe)[name]
    changes: dict[str, Any] = {"seed": seed}
    for key in ("optimizer", "schedule", "aux_weight", "clip"):
        if (value := getattr(arm, key)) is not None:
            changes[key] = value
    return DistillRecipe(
        description=f"the arm {name} of a comparison, seed {seed}",
        data=recipe.data, teacher=recipe.teacher, student=_student(recipe, arm), method=arm.method,
        train=recipe.train.model_copy(update=changes), evaluate=recipe.evaluate,
        run=RunConfig(name=f"seed{seed}", folder=recipe.run.folder, exists="resume"),
    )  # fmt: skip


def recorded(recipe: CompareRecipe) -> dict[str, Any]:
    """Return ``recipe`` as a comparison records it: with all options of each method, whatever their defaults become.

    A method whose options are wrong stays as it was given; its arm fails, and says why.
    """
    plain = recipe.model_dump(mode="json")
    for name, arm in recipe.arms.items():
        for index, method in enumerate(arm.method):
            with suppress(SegtailorError):
                options = check_options(method.name, method.options()).model_dump(mode="json")
                plain["arms"][name]["method"][index] |= options
    return plain


def arm_folder(folder: Path, name: str, seed: int) -> Path:
    """Return where the files of one arm and seed lie in a comparison's folder."""
    return folder / "arms" / name / f"seed{seed}"


def _student(recipe: CompareRecipe, arm: ArmConfig) -> ModelConfig:
    return arm.student or recipe.student
