"""Rows that other code made count again where today's code gives one of their arm's the very same figures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from plan import Comparison, Study
from rows import FINGERPRINT, read_json, unit_name
from work import train_arms

from segtailor.engine.runs import write_json
from segtailor.errors import SegtailorError

CODE = ("code", "method", "network")
"""What a row run again can vouch for; another recipe, teacher or PyTorch is no other version of the same row."""


def confirm(study: Study, places: Iterable[str]) -> int:
    """Run the rows at ``places`` (COMPARISON/arms/ARM/seedN) again, print a line on each, return how many differ.

    Where every image's confusion matrix is the same, that row and the other seeds' rows of its arm that the same code
    made get today's fingerprint. Raises SegtailorError for a place that is no row which other code made.
    """
    groups: dict[tuple[str, int], list[str]] = {}
    for place in places:
        comparison, arm, seed = _row(study, place)
        groups.setdefault((comparison.name, seed), []).append(arm)
    differ = 0
    for (name, seed), arms in groups.items():
        comparison = study.comparisons[name]
        if comparison.teacher and not study.teacher_weights(comparison.teacher).exists():
            raise SegtailorError(
                f"the rows' teacher, {study.teacher_run(comparison.teacher)}, is not there; train it with --teachers"
            )
        train_arms(study, comparison, seed, arms)
        for arm in arms:
            line, confirmed = _adopt(study, comparison, arm, seed, arms)
            differ += not confirmed
            print(line, flush=True)
    return differ


def _row(study: Study, place: str) -> tuple[Comparison, str, int]:
    parts = [part for part in Path(place).parts if part != "arms"][-3:]
    comparison = study.comparisons.get(parts[0])
    seed = parts[-1].removeprefix("seed")
    if (
        len(parts) != 3
        or comparison is None
        or parts[1] not in comparison.arms
        or not seed.isdigit()
        or int(seed) not in comparison.recipe.seeds
    ):
        raise SegtailorError(f"{place} is no row of the study; a row is COMPARISON/arms/ARM/seedN")
    changed = _changed(study, comparison, parts[1], int(seed))
    if not changed or not changed <= set(CODE):
        why = (
            f"it was made by other {', '.join(sorted(changed))}"
            if changed
            else "it is not there, or today's code made it"
        )
        raise SegtailorError(f"{place}: {why}; only a row that other code alone tells from today's can be confirmed")
    return comparison, parts[1], int(seed)


def _changed(study: Study, comparison: Comparison, arm: str, seed: int) -> set[str]:
    made_by = _made_by(study, comparison, arm, seed)
    expected = study.expected(comparison, arm, seed)
    return {key for key in expected if made_by and made_by.get(key) != expected[key]}


def _made_by(study: Study, comparison: Comparison, arm: str, seed: int) -> dict[str, Any]:
    return read_json(study.results / comparison.name / "arms" / arm / f"seed{seed}" / FINGERPRINT) or {}


def _adopt(study: Study, comparison: Comparison, arm: str, seed: int, together: list[str]) -> tuple[str, bool]:
    place = f"{comparison.name}/arms/{arm}/seed{seed}"
    new = study.runs / unit_name(study, comparison, seed, together) / "arms" / arm / f"seed{seed}" / "confusions.npz"
    if not new.exists():
        return f"{place}: not confirmed, it failed this time; see {new.parent}", False
    if not _same(study.results / place / "confusions.npz", new):
        return f"{place}: not confirmed, the figures differ; --anew runs such rows again", False
    old = _made_by(study, comparison, arm, seed)
    adopted = []
    for other in comparison.recipe.seeds:
        made_by = _made_by(study, comparison, arm, other)
        same_code = made_by and all(made_by.get(key) == old.get(key) for key in CODE)
        if same_code and _changed(study, comparison, arm, other) <= set(CODE):
            today = {**made_by, **study.expected(comparison, arm, other)}
            write_json(study.results / comparison.name / "arms" / arm / f"seed{other}" / FINGERPRINT, today)
            adopted.append(str(other))
    return f"{place}: confirmed, every image's figures are the same; seeds {', '.join(adopted)} count as today's", True


def _same(first: Path, second: Path) -> bool:
    with np.load(first) as old, np.load(second) as new:
        return set(old.files) == set(new.files) and all(np.array_equal(old[name], new[name]) for name in old.files)
