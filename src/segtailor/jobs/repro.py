"""`segtailor repro`: train a recorded row of a comparison again, and check that it falls within the spread."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segtailor.config import CompareRecipe
from segtailor.errors import SegtailorError, unknown
from segtailor.jobs.compare import all_arms, arm_recipe
from segtailor.jobs.distill import distill
from segtailor.methods import check_options
from segtailor.recipes import set_value, validate
from segtailor.results.model import Comparison, read_comparison
from segtailor.results.record import find_record, read_record, read_rows
from segtailor.results.statistics import spread

WIDTH = 2.0
"""How many standard deviations over seeds count as within the spread."""


@dataclass(frozen=True)
class Reproduction:
    """A row trained again. ``low`` and ``high`` bound the spread over seeds; None with fewer than two seeds."""

    row: str
    recorded: float
    found: float
    low: float | None
    high: float | None

    @property
    def within(self) -> bool:
        """Whether the new score is within the spread, or is the recorded one."""
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


def repro(
    source: str | Path, overrides: Mapping[str, Any] | None = None, *, arm: str | None = None, seed: int | None = None
) -> Reproduction:
    """Train one arm with one seed alone, from the recipe that its comparison recorded.

    ``source`` is the folder of a row, ``COMPARISON/arms/ARM/seedN``, or, with ``arm`` and ``seed``, the folder of a
    comparison, or a record by its file or name (`segtailor.results.record`). ``overrides`` changes what does not change
    the result: where data and teacher are, the device, the run's name. Raises ``SegtailorError`` when the row or its
    recipe cannot be read, when this version no longer has its options, or when the teacher is not there.
    """
    comparison, name, number, changes, commit = _find(source, arm, seed)
    row = f"{name}, seed {number}"
    run = comparison.runs[name, number]
    if run.outcome is None:
        raise SegtailorError(f"{row} of {comparison.name} is no finished row; its comparison does not count it")
    try:
        recipe = validate(CompareRecipe, comparison.recipe, f"the recipe of {comparison.name}")
        single = arm_recipe(recipe, name, number).model_dump(mode="json")
        for method in all_arms(recipe)[name].method:
            check_options(method.name, method.options())
    except SegtailorError as error:
        if not commit:
            raise
        raise SegtailorError(f"{error} (recorded at commit {commit}; check it out to train this row)") from error
    single["run"] = {"name": f"repro-{comparison.name}-{name}-seed{number}", "folder": "runs", "exists": "resume"}
    for key, value in {**changes, **(overrides or {})}.items():
        set_value(single, key, value)
    weights = str((single.get("teacher") or {}).get("weights") or "")
    if weights and ":" not in weights and not Path(weights).exists():
        raise SegtailorError(
            f"{row}: its teacher was at {weights}, which does not exist; train it again, or name its place with "
            "--teacher.weights"
        )
    result = distill(json.loads(json.dumps(single)))
    found = result.results.row("distilled").miou
    found_spread = spread([outcome.miou for outcome in comparison.finished(name).values()])
    low = high = None
    if found_spread is not None and found_spread.std is not None:
        low = max(0.0, found_spread.mean - WIDTH * found_spread.std)
        high = min(1.0, found_spread.mean + WIDTH * found_spread.std)
    return Reproduction(row, run.outcome.miou, found, low, high)


def _find(source: str | Path, arm: str | None, seed: int | None) -> tuple[Comparison, str, int, Mapping[str, Any], str]:
    """Return the comparison, its arm and seed, what that row changed of the recipe, and the commit that made it."""
    place = Path(source)
    if arm is None or seed is None:
        place = place.parent if place.name == "outcome.json" else place
        number = place.name.removeprefix("seed")
        if not (place / "outcome.json").is_file() or not number.isdigit():
            raise SegtailorError(
                f"no row at {source}: give COMPARISON/arms/ARM/seedN, a folder with an outcome.json, or a record with "
                "an arm and a seed: segtailor repro NAME ARM SEED"
            )
        place, arm, seed = place.parents[2], place.parent.name, int(number)
    rows: Mapping[tuple[str, int], Mapping[str, Any]] = {}
    if place.is_dir():
        comparison = read_comparison(place)
    else:
        place = find_record(place)
        comparison, rows = read_record(place), read_rows(place)
    if arm not in comparison.arms:
        raise unknown("arm", arm, comparison.arms, f"{comparison.name} has {len(comparison.arms)}")
    if seed not in comparison.seeds:
        raise SegtailorError(f"no seed {seed} in {comparison.name}; there are {', '.join(map(str, comparison.seeds))}")
    row = rows.get((arm, seed), {})
    return comparison, arm, seed, row.get("changes", {}), str(row.get("commit") or "")
