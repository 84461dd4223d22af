"""Reading a comparison's folder: every run that is whole, and one line about each that is not.

A run counts when ``outcome.json`` says "finished" and its figures are sound. Without a sound ``confusions.npz`` it
still counts, but there is no interval over images. A run whose two files contradict each other, or that scored other
images than most runs, is left out: nobody can tell which figure is right.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from segtailor.comparison.record import Outcome, check_images, is_number, read_outcome
from segtailor.errors import SegtailorError, reason

VERSION = 1
Status = Literal["finished", "failed", "running", "missing", "damaged"]


@dataclass(frozen=True)
class ArmRun:
    """One arm with one seed. ``outcome`` is there when it finished; ``reason`` says why one failed or is damaged."""

    arm: str
    seed: int
    status: Status
    reason: str = ""
    outcome: Outcome | None = None


@dataclass
class Comparison:
    """A comparison as read; ``problems`` names in one line each what is missing or damaged and was left out.

    ``runs`` holds every pair of arm and seed that was planned. ``baseline`` names the arm that is the student alone;
    it is None when no arm has that name.
    """

    folder: Path
    name: str
    arms: tuple[str, ...]
    baseline: str | None
    seeds: tuple[int, ...]
    classes: tuple[str, ...]
    data: Any = None
    teacher: dict[str, Any] | None = None
    recipe: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    runs: dict[tuple[str, int], ArmRun] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def teacher_miou(self) -> float | None:
        """The teacher's mIoU on the reported images."""
        return float(self.teacher["miou"]) if self.teacher else None

    def finished(self, arm: str) -> dict[int, Outcome]:
        """Return the arm's finished runs by seed, in the comparison's order of seeds."""
        found = {seed: self.runs[arm, seed].outcome for seed in self.seeds}
        return {seed: outcome for seed, outcome in found.items() if outcome is not None}

    def with_status(self, arm: str, *statuses: Status) -> list[ArmRun]:
        """Return the arm's runs that have one of these statuses."""
        return [run for seed in self.seeds if (run := self.runs[arm, seed]).status in statuses]


def read_comparison(folder: str | Path) -> Comparison:
    """Read a comparison's folder, finished or still going.

    Raises SegtailorError when ``comparison.json`` is missing, damaged or of another version; anything wrong with a
    single run is named in ``problems`` instead.
    """
    comparison = _read_plan(Path(folder))
    for arm in comparison.arms:
        for seed in comparison.seeds:
            run, trouble = _read_run(comparison, arm, seed)
            comparison.runs[arm, seed] = run
            comparison.problems += [f"{_place(arm, seed)}: {line}" for line in trouble]
        unread = [str(run.seed) for run in comparison.with_status(arm, "missing")]
        if unread:
            plural = "seeds" if len(unread) > 1 else "seed"
            comparison.problems.append(f"arms/{arm}: no outcome.json for {plural} {', '.join(unread)}")
    _leave_out_other_images(comparison)
    planned = {_place(arm, seed) for arm, seed in comparison.runs}
    for path in sorted(comparison.folder.glob("arms/*/seed*")):
        place = path.relative_to(comparison.folder).as_posix()
        if path.is_dir() and place not in planned:
            comparison.problems.append(f"{place}: not in comparison.json; left out")
    return comparison


def _read_plan(folder: Path) -> Comparison:
    path = folder / "comparison.json"
    if not path.exists():
        raise SegtailorError(f"no comparison in {folder}: it holds no comparison.json; give the folder of a compare")
    again = "run the comparison again to write it"
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SegtailorError(f"{path} is damaged ({reason(error)}); {again}") from error
    version = plan.get("version") if isinstance(plan, dict) else None
    if version != VERSION:
        raise SegtailorError(f"{path} has version {version}, this segtailor reads version {VERSION}; {again}")
    for key, kind in (("arms", str), ("seeds", int), ("classes", str)):
        values = plan.get(key)
        sound = isinstance(values, list) and values and all(isinstance(value, kind) for value in values)
        if not sound or (key != "classes" and len(set(values)) < len(values)):
            raise SegtailorError(f"{path} is damaged ('{key}' is no list of different names or numbers); {again}")
    comparison = Comparison(
        folder=folder,
        name=str(plan.get("name") or folder.resolve().name),
        arms=tuple(plan["arms"]),
        baseline=plan.get("baseline") if plan.get("baseline") in plan["arms"] else None,
        seeds=tuple(plan["seeds"]),
        classes=tuple(plan["classes"]),
        data=plan.get("data"),
        teacher=plan.get("teacher"),
        recipe=plan.get("recipe") or {},
        environment=plan.get("environment") or {},
    )
    if comparison.baseline is None:
        comparison.problems.append(
            f"comparison.json: baseline '{plan.get('baseline')}' is no arm; no differences to it"
        )
    if comparison.teacher is not None and not (
        isinstance(comparison.teacher, dict) and is_number(comparison.teacher.get("miou"), 0, 1)
    ):
        comparison.teacher = None
        comparison.problems.append("comparison.json: the teacher has no sound 'miou'; no gap closed")
    return comparison


def _read_run(comparison: Comparison, arm: str, seed: int) -> tuple[ArmRun, list[str]]:
    """Return one run, and what is wrong with it."""
    place = comparison.folder / _place(arm, seed)
    path = place / "outcome.json"
    if not path.exists():
        return ArmRun(arm, seed, "missing"), []
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or record.get("version") != VERSION:
            raise ValueError(f"no outcome of version {VERSION}")
        if (record.get("arm"), record.get("seed")) != (arm, seed):
            raise ValueError(f"it is of arm {record.get('arm')}, seed {record.get('seed')}")
        status = record.get("status")
        if status not in ("finished", "failed", "running"):
            raise ValueError(f"status is {status!r}")
        if status != "finished":
            return ArmRun(arm, seed, status, str(record.get("reason") or "")), []
        outcome = read_outcome(record, len(comparison.classes))
    except (OSError, ValueError, OverflowError) as error:
        return ArmRun(arm, seed, "damaged", reason(error)), [f"outcome.json is damaged ({reason(error)}); left out"]
    trouble: list[str] = []
    try:
        outcome.confusion, outcome.images = check_images(place / "confusions.npz", len(comparison.classes))
    except ValueError as error:
        trouble.append(f"{reason(error)}; its mIoU counts, but there is no interval over images")
    if outcome.images is not None and abs(outcome.images.miou - outcome.miou) > 1e-5:
        why = f"outcome.json says mIoU {outcome.miou:.6f}, confusions.npz gives {outcome.images.miou:.6f}"
        return ArmRun(arm, seed, "damaged", why), [f"{why}; left out"]
    return ArmRun(arm, seed, "finished", "", outcome), trouble


def _leave_out_other_images(comparison: Comparison) -> None:
    """Keep the runs that scored the images most runs did, in the same order; name the others."""
    found = {
        key: run.outcome.images.targets
        for key, run in comparison.runs.items()
        if run.outcome is not None and run.outcome.images is not None
    }
    if len(set(found.values())) < 2:
        return
    usual = Counter(found.values()).most_common(1)[0][0]
    for (arm, seed), targets in found.items():
        if targets != usual:
            why = "scored other images than most runs, or in another order"
            comparison.runs[arm, seed] = ArmRun(arm, seed, "damaged", why)
            comparison.problems.append(f"{_place(arm, seed)}: {why}; left out")


def _place(arm: str, seed: int) -> str:
    return f"arms/{arm}/seed{seed}"
