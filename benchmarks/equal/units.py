"""What there is to run: teachers, and the missing arms of each seed, as units of one process each."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from fingerprint import differences
from plan import Comparison, Study
from rows import WORDS, Row, beside, check_rows, collect, read_json, set_aside, write_plan
from taken import take_over

from segtailor.errors import SegtailorError
from segtailor.results.model import read_comparison
from segtailor.results.tables import write_tables


@dataclass
class Unit:
    """What one process does: a teacher, or the missing arms of one seed. ``needs`` is the teacher it waits for."""

    label: str
    words: list[str]
    needs: str | None = None
    comparison: Comparison | None = None
    teacher: str | None = None
    began: float = field(default_factory=time.monotonic)


def teacher_unit(study: Study, name: str, anew: bool) -> Unit | None:
    """Return what trains the teacher, or None where it is there; refuses one of something else without ``anew``."""
    run_folder = study.teacher_run(name)
    made_by, expected = read_json(beside(run_folder)), study.teacher_expected(name)
    changed = differences(made_by or {}, expected) if run_folder.exists() else []
    if changed and not anew:
        raise SegtailorError(
            f"{run_folder} was made by other {', '.join(changed)}; check out what made it, or give --anew"
        )
    record = read_json(study.results / f"teacher-{name}.json") or {}
    there = study.teacher_weights(name).exists()
    if there and not changed and record.get("weights") and record["weights"] == study.teacher_hash(name):
        return None
    return Unit(f"teacher {name}", ["teacher", name], teacher=name)


def lacking_rows(study: Study, comparison: Comparison, anew: bool) -> list[Row]:
    """Return the rows of ``comparison`` that are to be run, after taking over what is finished elsewhere."""
    for place in collect(study, comparison):
        print(f"{place}: taken over")
    for place, source in take_over(study, comparison):
        print(f"{place}: {source} is the same, taken from there")
    rows = [row for row in check_rows(study, comparison) if row.state != "there"]
    if comparison.settled and rows:
        raise SegtailorError(
            f"{rows[0].place}: {WORDS[rows[0].state]}; the rows of {comparison.name} were made at "
            f"{comparison.settled}: restore it from git, or check that commit out to run it"
        )
    other = [row for row in rows if row.state == "other"]
    if other and not anew:
        raise SegtailorError(
            f"{other[0].place} was made by {other[0].note} than there is now"
            + (f" (and {len(other) - 1} more)" if len(other) > 1 else "")
            + "; check out what made it, try with --confirm whether today's code gives the same figures, or give "
            "--anew to set such rows aside and run them again"
        )
    return [row for row in rows if anew or row.state != "failed"]


def units_for(study: Study, comparison: Comparison, rows: list[Row]) -> list[Unit]:
    """Return what runs ``rows``, one unit a seed; what lies in their places is set aside."""
    for row in rows:
        if row.state != "missing":
            print(f"{row.place}: {row.state}, {row.note}; it lies in {set_aside(study, row)} now, and is run again")
    units = []
    for seed in comparison.recipe.seeds:
        arms = [row.arm for row in rows if row.seed == seed]
        if arms:
            words = ["arms", comparison.name, str(seed), *arms]
            units.append(
                Unit(f"{comparison.name}, seed {seed}: {len(arms)} arms", words, comparison.teacher, comparison)
            )
    if not units:
        write_comparison(study, comparison)
    return units


def write_comparison(study: Study, comparison: Comparison) -> None:
    """Write the comparison's tables from the rows that count; what is settled stays as it was written."""
    if not comparison.settled and any(row.state in ("there", "failed") for row in check_rows(study, comparison)):
        write_plan(study, comparison)
        write_tables(read_comparison(study.results / comparison.name), study.results / comparison.name)
