"""The study's rows: which are there and count, and how a trained arm becomes one."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fingerprint import differences
from plan import Comparison, Study

from segtailor.engine.runs import write_json
from segtailor.errors import SegtailorError
from segtailor.jobs.build import recorded
from segtailor.results.model import read_comparison

FINGERPRINT = "fingerprint.json"
KEPT = ("outcome.json", "confusions.npz")
TAKEN = "taken"
"""In a fingerprint, where a row is a copy: ``from``, the row it is a copy of, and ``alone_seconds``, what the student
alone took in the run that made that."""
UNIT = "unit"
"""In a fingerprint, the run that the row was trained in; its time is told where the student alone was trained there."""
State = Literal["there", "failed", "missing", "damaged", "other"]
WORDS: dict[State, str] = {
    "there": "there",
    "failed": "failed",
    "missing": "not run",
    "damaged": "damaged",
    "other": "made by something else",
}


@dataclass(frozen=True)
class Row:
    """One arm with one seed; ``note`` says what is wrong with it, or what it was made by."""

    comparison: str
    arm: str
    seed: int
    state: State
    note: str = ""

    @property
    def place(self) -> str:
        """Where it lies under the study's results."""
        return f"{self.comparison}/arms/{self.arm}/seed{self.seed}"


def check_rows(study: Study, comparison: Comparison) -> list[Row]:
    """Return every planned row of ``comparison`` with its state."""
    folder = study.results / comparison.name
    found = _runs(folder)
    rows = []
    for seed in comparison.recipe.seeds:
        for arm in comparison.arms:
            state, note = _state(study, comparison, folder, found, arm, seed)
            rows.append(Row(comparison.name, arm, seed, state, note))
    return rows


def collect(study: Study, comparison: Comparison) -> list[str]:
    """Take over what the comparison's units have finished since; returns the rows' places."""
    taken: list[str] = []
    if comparison.settled:
        return taken
    pattern = re.compile(re.escape(comparison.name) + r"-seed(\d+)-[0-9a-f]{8}\.json")
    for path in sorted(study.runs.glob(f"{comparison.name}-seed*.json")):
        match = pattern.fullmatch(path.name)
        if match is None:
            continue
        unit, seed = path.with_suffix(""), int(match[1])
        for arm, made_by in (read_json(path) or {}).items():
            outcome = read_json(unit / "arms" / arm / f"seed{seed}" / "outcome.json") or {}
            target = study.results / comparison.name / "arms" / arm / f"seed{seed}"
            planned = arm in comparison.arms and seed in comparison.recipe.seeds
            if outcome.get("status") not in ("finished", "failed") or not planned or target.exists():
                continue
            if differences(made_by, study.expected(comparison, arm, seed)):
                continue
            write_plan(study, comparison)
            waiting = target.with_name(target.name + ".part")
            shutil.rmtree(waiting, ignore_errors=True)
            waiting.mkdir(parents=True)
            for name in KEPT:
                if (source := unit / "arms" / arm / f"seed{seed}" / name).exists():
                    shutil.copyfile(source, waiting / name)
            write_json(waiting / FINGERPRINT, {**made_by, UNIT: unit.name})
            waiting.rename(target)
            taken.append(f"{comparison.name}/arms/{arm}/seed{seed}")
    return taken


def unit_name(study: Study, comparison: Comparison, seed: int, arms: list[str]) -> str:
    """Return the name of the run that trains ``arms`` with ``seed``: the same as long as nothing changes."""
    made_by = {arm: study.expected(comparison, arm, seed) for arm in arms}
    digest = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()[:8]
    return f"{comparison.name}-seed{seed}-{digest}"


def set_aside(study: Study, row: Row) -> Path:
    """Move a row that does not count out of the results; nothing is deleted."""
    target = study.runs / "set-aside" / f"{row.place.replace('/', '-')}-{time.strftime('%Y%m%d-%H%M%S')}"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(study.results / row.place, target)
    return target


def beside(run: Path) -> Path:
    """Return the file that says what a run is made by: beside its folder, which is the run's own."""
    return run.with_name(f"{run.name}.json")


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the mapping in ``path``; None where there is none that can be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _runs(folder: Path) -> dict[tuple[str, int], Any]:
    """Return what the comparison's reader makes of the rows; nothing where it cannot read the folder."""
    try:
        return dict(read_comparison(folder).runs)
    except SegtailorError:
        return {}


def _state(
    study: Study, comparison: Comparison, folder: Path, found: dict[tuple[str, int], Any], arm: str, seed: int
) -> tuple[State, str]:
    place = folder / "arms" / arm / f"seed{seed}"
    if not place.exists():
        return "missing", ""
    made_by = read_json(place / FINGERPRINT)
    if made_by is None:
        return "damaged", f"{FINGERPRINT} cannot be read"
    changed = differences(made_by, study.expected(comparison, arm, seed))
    if changed and not comparison.settled:
        return "other", f"other {', '.join(changed)}"
    run = found.get((arm, seed))
    if run is None:
        # comparison.json is missing, or older than the plan; the row's own files are sound or the next check says so.
        run_status, reason = (read_json(place / "outcome.json") or {}).get("status", "damaged"), ""
    else:
        run_status, reason = run.status, run.reason
    if run_status == "failed":
        return "failed", reason
    if run_status != "finished":
        return "damaged", reason or "outcome.json cannot be read"
    if run is not None and (run.outcome is None or run.outcome.images is None):
        return "damaged", "confusions.npz cannot be read"
    return "there", ""


def write_plan(study: Study, comparison: Comparison) -> None:
    """Write the comparison's own file: that of a unit, with the arms and seeds of today's plan."""
    target = study.results / comparison.name / "comparison.json"
    units = sorted(study.runs.glob(f"{comparison.name}-seed*-*/comparison.json"))
    sources = [plan for path in (*units, target) if (plan := read_json(path)) is not None]
    if not sources:
        raise SegtailorError(f"{target} cannot be read, and no unit is left to write it anew; restore it from git")
    recipe = recorded(comparison.recipe)
    names = {"name": f"{study.path.stem}-{comparison.name}", "arms": comparison.arms}
    plan = {**sources[0], **names, "seeds": comparison.recipe.seeds, "recipe": recipe}
    if read_json(target) != plan:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_json(target, plan)
