"""One unit of the study in a process of its own: a teacher, or some arms of a comparison with one seed.

python benchmarks/equal/work.py STUDY teacher NAME
python benchmarks/equal/work.py STUDY arms COMPARISON SEED ARM...
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from fingerprint import differences, weights_hash
from plan import Comparison, Study, read_study
from rows import beside, read_json, unit_name

from segtailor import train
from segtailor.engine.runs import RunStopped, write_json
from segtailor.errors import SegtailorError
from segtailor.jobs.compare import train_seeds


def main() -> None:
    try:
        path, kind, name, *rest = sys.argv[1:]
        study = read_study(Path(path))
        if kind == "teacher":
            with no_other(study.teacher_run(name)):
                train_teacher(study, name)
        else:
            train_arms(study, study.comparisons[name], int(rest[0]), rest[1:])
    except RunStopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(stopped.code) from None
    except SegtailorError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def train_teacher(study: Study, name: str) -> None:
    """Train a teacher, and record what it was made by, its scores on the way and the hash of its weights."""
    run, made_by = study.teacher_run(name), study.teacher_expected(name)
    _open(study, run, made_by)
    train(study.teachers[name])
    record_teacher(study, name)


def record_teacher(study: Study, name: str) -> None:
    """Write the record of a trained teacher into the study's results."""
    run = study.teacher_run(name)
    results = read_json(run / "results.json")
    if results is None:
        raise SegtailorError(f"{run / 'results.json'} cannot be read; remove {run} and run the study again")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    record = {
        "rows": results["rows"],
        "environment": results["environment"],
        "recipe": study.teachers[name].model_dump(mode="json"),
        "fingerprint": read_json(beside(run)),
        "weights": weights_hash(run / "model.safetensors"),
        "curve": [{"step": line["step"], "miou": line["miou"]} for line in lines if line["kind"] == "evaluate"],
    }
    write_json(study.results / f"teacher-{name}.json", record)


def train_arms(study: Study, comparison: Comparison, seed: int, arms: list[str]) -> None:
    """Train ``arms`` with ``seed`` in lockstep, in a folder that is found again as long as nothing changes."""
    made_by = {arm: study.expected(comparison, arm, seed) for arm in arms}
    name = unit_name(study, comparison, seed, arms)
    run = comparison.recipe.run.model_copy(update={"name": name})
    with no_other(study.runs / name):
        write_json(beside(study.runs / name), made_by)
        train_seeds(comparison.recipe.model_copy(update={"run": run}), [seed], arms=arms)


@contextmanager
def no_other(run: Path) -> Iterator[None]:
    """Wait for a process that still works on ``run``: one that outlived the study that started it."""
    run.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.with_name(f"{run.name}.lock"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        print(f"another process works on {run}; waiting for it", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _open(study: Study, run: Path, made_by: dict[str, str]) -> None:
    """Put a run away that something else has made, and note what this one is made by."""
    found = read_json(beside(run))
    if run.exists() and (found is None or differences(found, made_by)):
        target = study.runs / "set-aside" / f"{run.name}-{time.strftime('%Y%m%d-%H%M%S')}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(run, target)
        print(f"{run} was begun by something else; it lies in {target} now", file=sys.stderr)
    write_json(beside(run), made_by)


if __name__ == "__main__":
    main()
