"""Rows that another comparison of the study has already: the same code, method, recipe, seed, teacher and PyTorch."""

from __future__ import annotations

import shutil

from fingerprint import differences
from plan import Comparison, Study
from rows import FINGERPRINT, KEPT, TAKEN, UNIT, check_rows, read_json

from segtailor.engine.runs import write_json
from segtailor.jobs.build import baseline_of


def take_over(study: Study, comparison: Comparison) -> list[tuple[str, str]]:
    """Copy what ``comparison`` lacks and another one has; returns places of rows and of those they were taken from.

    The student alone is never taken: a row's time counts against that of the student alone in the same run.
    """
    if comparison.settled:
        return []
    alone, taken = baseline_of(comparison.recipe), []
    for row in check_rows(study, comparison):
        if row.state != "missing" or row.arm == alone:
            continue
        source = _same(study, comparison, row.arm, row.seed)
        if source is None:
            continue
        origin, target = study.results / source, study.results / row.place
        waiting = target.with_name(target.name + ".part")
        shutil.rmtree(waiting, ignore_errors=True)
        waiting.mkdir(parents=True)
        for name in KEPT:
            shutil.copyfile(origin / name, waiting / name)
        write_json(waiting / "outcome.json", {**(read_json(origin / "outcome.json") or {}), "arm": row.arm})
        made_by = read_json(origin / FINGERPRINT) or {}
        made_by.pop(UNIT, None)
        made_by[TAKEN] = {"from": source, **_alone(study, source, row.seed)}
        write_json(waiting / FINGERPRINT, made_by)
        waiting.rename(target)
        taken.append((row.place, source))
    return taken


def _alone(study: Study, source: str, seed: int) -> dict[str, float | None]:
    name = source.split("/")[0]
    alone = study.results / name / "arms" / baseline_of(study.comparisons[name].recipe) / f"seed{seed}"
    outcome = read_json(alone / "outcome.json") or {}
    parts = [outcome.get(key) for key in ("seconds", "stage_seconds", "teacher_seconds")]
    return {"alone_seconds": None if None in parts else sum(filter(None, parts))}


def _same(study: Study, comparison: Comparison, arm: str, seed: int) -> str | None:
    """Return the place of a sound row that was made by the same; a row that was itself taken is none."""
    expected = study.expected(comparison, arm, seed)
    for other in study.comparisons.values():
        if other.name == comparison.name or seed not in other.recipe.seeds:
            continue
        for name in other.arms:
            path = study.results / other.name / "arms" / name / f"seed{seed}" / FINGERPRINT
            made_by = read_json(path)
            if made_by is None or TAKEN in made_by or differences(made_by, expected):
                continue
            states = {(row.arm, row.seed): row.state for row in check_rows(study, other)}
            if states[name, seed] == "there":
                return f"{other.name}/arms/{name}/seed{seed}"
    return None
