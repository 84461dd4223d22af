"""What every section of a recipe is made of."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, PositiveInt

Size = tuple[PositiveInt, PositiveInt]


class Strict(BaseModel):
    """A section of a recipe: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", validate_default=True)
