"""The rows of a comparison that may stand in one table: made by the same code, teacher and PyTorch."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fingerprint import fingerprint
from plan import Comparison
from rows import FINGERPRINT, TAKEN, UNIT, read_json

from segtailor.errors import SegtailorError
from segtailor.jobs.build import baseline_of
from segtailor.results.leaderboard import ArmResult, Leaderboard, summarise
from segtailor.results.model import ArmRun, read_comparison
from segtailor.results.model import Comparison as Found

SHARED = {"code": "other code", "teacher": "another teacher", "torch": "another PyTorch"}
"""What all rows of a comparison must agree in."""
OWN = {
    "method": "another version of its method",
    "network": "another version of its network",
    "recipe": "another recipe",
}
"""What the rows of one arm must agree in; the recipe in whether it is the study's, as each seed's differs."""
ALIKE = 5e-4

Key = tuple[str, int]


@dataclass
class Kept:
    """One comparison with the rows that count; ``board`` is None where none was run, ``notes`` say what to know."""

    planned: Comparison
    board: Leaderboard | None = None
    notes: list[str] = field(default_factory=list)
    made_by: dict[str, Any] = field(default_factory=dict)
    taken: dict[Key, dict[str, Any]] = field(default_factory=dict)
    """Where rows were taken from that another comparison has, and what the student alone took there."""
    apart: list[Key] = field(default_factory=list)
    """Rows trained in another run than the student alone of their seed, whose seconds say nothing beside its own."""

    @property
    def found(self) -> Found | None:
        """The comparison as read, without the rows left out."""
        return self.board.comparison if self.board else None

    @property
    def alone(self) -> ArmResult | None:
        """The student alone, where it has a result."""
        result = self.board[self.found.baseline] if self.board and self.found and self.found.baseline else None
        return result if result and result.last else None

    def keys(self, *statuses: str) -> list[Key]:
        """Return the planned rows with one of these statuses; all are missing where nothing was run."""
        if self.found is None:
            planned = [(arm, seed) for arm in self.planned.arms for seed in self.planned.recipe.seeds]
            return planned if "missing" in statuses else []
        return [key for key, run in self.found.runs.items() if run.status in statuses]


def keep(planned: Comparison, results: Path, teacher: Mapping[str, Any] | None) -> Kept:
    """Read ``planned`` from the study's ``results``, and leave out what was made by something else than most rows.

    ``teacher`` is the record of its teacher, where there is one.
    """
    folder = results / planned.name
    kept = Kept(planned)
    if not folder.exists():
        return kept
    try:
        found = read_comparison(folder)
    except SegtailorError as error:
        kept.notes.append(f"its rows cannot be read: {without_folders(str(error))}")
        return kept
    strangers = _strangers(planned, folder)
    kept.notes += [f"left out: {listed(strangers)}: not in the study"] if strangers else []
    _as_planned(found, planned, folder)
    kept.made_by, old = _leave_others_out(planned, found, folder)
    # No image is drawn again: the study's tables give the interval over seeds.
    kept.board = summarise(found, resamples=1)
    kept.notes += _told(found)
    kept.notes += [f"made by another recipe than the study has now: {listed(old)}"] if old else []
    kept.taken = _taken(found, folder)
    kept.notes += _origins(kept.taken)
    kept.apart = _apart(found, folder, kept.taken)
    kept.notes += (
        [f"not trained beside the student alone, and so not timed: {listed(kept.apart)}"] if kept.apart else []
    )
    kept.notes += _on_teacher(kept, teacher)
    return kept


def listed(keys: Iterable[Key]) -> str:
    """Return rows arm by arm.

    >>> listed([("kd", 0), ("kd", 1), ("kt", 0)])
    '`kd` seeds 0, 1; `kt` seed 0'
    """
    by_arm: dict[str, list[str]] = {}
    for arm, seed in keys:
        by_arm.setdefault(arm, []).append(str(seed))
    return "; ".join(f"`{arm}` seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}" for arm, seeds in by_arm.items())


def without_folders(text: str) -> str:
    """Return ``text`` on one line, safe in a table, with absolute paths cut to their last part.

    >>> without_folders("no file /somewhere/else/a.png")
    'no file a.png'
    """
    short = re.sub(r"(?<![\w.~/])/(?:[^\s/'\":,]+/)+", "", " ".join(text.split()))
    return re.sub(r"([\\`*_<>|\[\]~$&])", r"\\\1", short)


def _strangers(planned: Comparison, folder: Path) -> list[Key]:
    """Return the rows that lie in the folder and are not planned."""
    wanted = {(arm, seed) for arm in planned.arms for seed in planned.recipe.seeds}
    places = [path for path in sorted(folder.glob("arms/*/seed*")) if path.name.removeprefix("seed").isdigit()]
    there = [(path.parent.name, int(path.name.removeprefix("seed"))) for path in places]
    return [key for key in there if key not in wanted]


def _as_planned(found: Found, planned: Comparison, folder: Path) -> None:
    """Give ``found`` the study's arms and seeds; its own file may be older than the plan."""
    runs = {}
    for arm in planned.arms:
        for seed in planned.recipe.seeds:
            there = (folder / "arms" / arm / f"seed{seed}").exists()
            new = ArmRun(arm, seed, "damaged", "not in comparison.json") if there else ArmRun(arm, seed, "missing")
            runs[arm, seed] = found.runs.get((arm, seed), new)
    found.arms, found.seeds, found.runs = tuple(planned.arms), tuple(planned.recipe.seeds), runs
    found.baseline = baseline_of(planned.recipe)


def _leave_others_out(planned: Comparison, found: Found, folder: Path) -> tuple[dict[str, Any], list[Key]]:
    """Mark as damaged what was made by something else than most; returns what the rest was made by, and what of it
    was made by another recipe than the study's.
    """
    prints: dict[Key, dict[str, Any]] = {}
    for (arm, seed), run in found.runs.items():
        if run.status in ("finished", "failed"):
            made_by = read_json(folder / "arms" / arm / f"seed{seed}" / FINGERPRINT)
            if made_by is None:
                found.runs[arm, seed] = ArmRun(arm, seed, "damaged", "no fingerprint")
            else:
                same = made_by.get("recipe") == fingerprint(planned.recipe, arm, seed, None)["recipe"]
                prints[arm, seed] = {**made_by, "recipe": same}
    usual, alike = _alike(found, prints, SHARED)
    old: list[Key] = []
    for arm in planned.arms:
        own, left = _alike(found, {key: made_by for key, made_by in alike.items() if key[0] == arm}, OWN)
        old += left if own.get("recipe") is False else []
    return usual, old


def _taken(found: Found, folder: Path) -> dict[Key, dict[str, Any]]:
    taken = {}
    for (arm, seed), run in found.runs.items():
        made_by = read_json(folder / "arms" / arm / f"seed{seed}" / FINGERPRINT) or {}
        if run.status == "finished" and TAKEN in made_by:
            taken[arm, seed] = made_by[TAKEN]
    return taken


def _apart(found: Found, folder: Path, taken: Mapping[Key, dict[str, Any]]) -> list[Key]:
    units = {}
    for arm, seed in (key for key, run in found.runs.items() if run.status == "finished"):
        made_by = read_json(folder / "arms" / arm / f"seed{seed}" / FINGERPRINT) or {}
        units[arm, seed] = made_by.get(UNIT)  # rows made before units were noted have none, and shared theirs
    alone = found.baseline or ""
    return [key for key in units if key not in taken and units[key] != units.get((alone, key[1]), units[key])]


def _origins(taken: Mapping[Key, dict[str, Any]]) -> list[str]:
    """Return one line for each comparison that rows were taken from."""
    sources: dict[str, list[Key]] = {}
    for key, origin in taken.items():
        sources.setdefault(origin["from"].split("/")[0], []).append(key)
    return [f"the same as in `{name}`, and taken from there: {listed(keys)}" for name, keys in sources.items()]


def _alike(
    found: Found, prints: Mapping[Key, dict[str, Any]], names: Mapping[str, str]
) -> tuple[dict[str, Any], dict[Key, dict[str, Any]]]:
    """Leave out what was made by something else than most; returns what those were made by, and those.

    Where as many were made by something else, the first in the study's order stay.
    """
    if not prints:
        return {}, {}
    counted = Counter(tuple(made_by.get(name) for name in names) for made_by in prints.values())
    usual = dict(zip(names, counted.most_common(1)[0][0], strict=True))
    alike = {}
    for key, made_by in prints.items():
        other = [words for name, words in names.items() if made_by.get(name) != usual[name]]
        if other:
            found.runs[key] = ArmRun(*key, "damaged", f"made by {' and '.join(other)}")
        else:
            alike[key] = made_by
    return usual, alike


def _told(found: Found) -> list[str]:
    """Return one line a reason: which rows failed, were left out, were not run."""
    by_reason: dict[str, list[Key]] = {}
    for key, run in found.runs.items():
        reason = without_folders(run.reason)
        if run.status == "failed":
            by_reason.setdefault(f"failed: {{}}: {reason or 'no reason was recorded'}", []).append(key)
        elif run.status == "damaged":
            by_reason.setdefault(f"left out: {{}}: {reason}", []).append(key)
    lines = [line.replace("{}", listed(keys), 1) for line, keys in by_reason.items()]
    missing = [key for key, run in found.runs.items() if run.status in ("missing", "running")]
    return lines + ([f"not run: {listed(missing)}"] if missing else [])


def _on_teacher(kept: Kept, record: Mapping[str, Any] | None) -> list[str]:
    """Say where the rows' teacher is not the one that the page describes."""
    if record is None or kept.found is None or kept.planned.teacher is None or not kept.made_by:
        return []
    if kept.made_by["teacher"] != record.get("weights"):
        return ["its rows were taught by another teacher than the one described above"]
    ours, recorded = kept.found.teacher_miou, record["rows"][0]["miou"]
    if ours is not None and abs(ours - recorded) > ALIKE:
        return [f"comparison.json has another score of the teacher ({100 * ours:.2f}) than its record: no gap is right"]
    return []
