"""`segtailor repro`: a recorded row of a comparison trained anew, and whether it falls within the spread."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segtailor.config import CompareRecipe
from segtailor.errors import SegtailorError
from segtailor.jobs.build import arm_recipe
from segtailor.jobs.distill import distill
from segtailor.recipes import set_value, validate
from segtailor.results.model import read_comparison
from segtailor.results.statistics import spread

WIDTH = 2.0
"""How many standard deviations over seeds count as within the spread."""


@dataclass(frozen=True)
class Reproduction:
    """A row trained anew. ``low`` and ``high`` bound the spread over seeds; None with fewer than two seeds."""

    row: str
    recorded: float
    found: float
    low: float | None
    high: float | None

    @property
    def within(self) -> bool:
        """Whether the new score lies within the spread, or is the recorded one."""
        same = abs(self.found - self.recorded) < 1e-6
        return same or (self.low is not None and self.high is not None and self.low <= self.found <= self.high)

    def text(self) -> str:
        """Return the lines that the command prints."""
        lines = [
            f"{self.row}: mIoU {100 * self.found:.2f}, recorded {100 * self.recorded:.2f} "
            f"({100 * (self.found - self.recorded):+.2f})"
        ]
        if self.low is None or self.high is None:
            lines.append("no spread: fewer than two seeds were recorded; only an equal score counts as reproduced")
        else:
            lines.append(f"spread over seeds (mean ± {WIDTH:g} sd): {100 * self.low:.2f} to {100 * self.high:.2f}")
        lines.append("within the spread" if self.within else "NOT within the spread")
        return "\n".join(lines)


def repro(row: str | Path, overrides: Mapping[str, Any] | None = None) -> Reproduction:
    """Train the arm and seed of ``row`` alone, from the recipe that its comparison recorded.

    ``row`` is the folder ``COMPARISON/arms/ARM/seedN``, or its ``outcome.json``. ``overrides`` changes what does not
    change the result: where data and teacher lie, the device, the run's name. Raises ``SegtailorError`` when the row or
    its recipe cannot be read, or the teacher is not where it was.
    """
    place = Path(row)
    place = place.parent if place.name == "outcome.json" else place
    if not (place / "outcome.json").is_file():
        raise SegtailorError(f"no row at {row}: give COMPARISON/arms/ARM/seedN, a folder with an outcome.json")
    comparison = read_comparison(place.parents[2])
    arm, seed = place.parent.name, int(place.name.removeprefix("seed"))
    run = comparison.runs.get((arm, seed))
    if run is None or run.outcome is None:
        raise SegtailorError(f"{place} is no finished row; its comparison does not count it")
    recipe = validate(CompareRecipe, comparison.recipe, str(place.parents[2] / "comparison.json"))
    single = arm_recipe(recipe, arm, seed).model_dump(mode="json")
    single["run"] = {"name": f"repro-{comparison.name}-{arm}-seed{seed}", "folder": "runs", "exists": "resume"}
    for key, value in (overrides or {}).items():
        set_value(single, key, value)
    _require_teacher(single, f"{arm}, seed {seed}")
    result = distill(json.loads(json.dumps(single)))
    found = next(entry["miou"] for entry in result.results["rows"] if entry["role"] == "distilled")
    found_spread = spread([outcome.miou for outcome in comparison.finished(arm).values()])
    low = high = None
    if found_spread is not None and found_spread.std is not None:
        low = found_spread.mean - WIDTH * found_spread.std
        high = found_spread.mean + WIDTH * found_spread.std
    return Reproduction(f"{arm}, seed {seed}", run.outcome.miou, float(found), low, high)


def _require_teacher(recipe: Mapping[str, Any], row: str) -> None:
    weights = str((recipe.get("teacher") or {}).get("weights") or "")
    if weights and ":" not in weights and not Path(weights).exists():
        raise SegtailorError(
            f"{row}: its teacher lay at {weights}, where there is none; train it again, or say with --teacher.weights "
            "where it is"
        )
