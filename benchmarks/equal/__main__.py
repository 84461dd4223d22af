"""Run the study of equal recipes, or say how far it is. It can be stopped anywhere, and goes on where it stopped.

    python benchmarks/equal                      run what is missing, tier by tier
    python benchmarks/equal --list               say what is there, and run nothing
    python benchmarks/equal --only tier-a        run these comparisons alone
    python benchmarks/equal --teachers           train the teachers that are not there, and nothing else
    python benchmarks/equal --anew               set rows aside that something else made or that failed, and run them
    python benchmarks/equal --confirm ROW...     run rows of other code again; where the figures are the same they count

Rows lie in ``benchmarks/results/equal/COMPARISON/arms/ARM/seedN``, each with the fingerprint of the code, recipe,
teacher and PyTorch that made it; `segtailor repro ROW` runs one again. A row that another comparison has already is
copied from there. Runs lie in ``runs/equal``; a teacher that is not there is trained when a row needs it.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from confirm import confirm
from plan import STUDY, Comparison, Study, read_study
from rows import WORDS, Row, check_rows, collect
from units import Unit, lacking_rows, teacher_unit, units_for, write_comparison

from segtailor.engine.runs import RunStopped
from segtailor.errors import SegtailorError

STOPPED = 130


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=STUDY)
    parser.add_argument("--only", nargs="+", help="comparisons to run; default: all, in the study's order")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side, each with one thread")
    parser.add_argument("--list", action="store_true", help="say what is there, and run nothing")
    parser.add_argument("--teachers", action="store_true", help="train the teachers that are not there, nothing else")
    parser.add_argument(
        "--anew", action="store_true", help="set aside what something else made or what failed, and run it again"
    )
    parser.add_argument(
        "--confirm", nargs="+", metavar="ROW", help="rows that other code made, one an arm: COMPARISON/arms/ARM/seedN"
    )
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        # Set by hand, since a shell's background jobs ignore Ctrl-C.
        signal.signal(number, signal.default_int_handler)
    try:
        study = read_study(options.study)
        if options.confirm:
            raise SystemExit(1 if confirm(study, options.confirm) else 0)
        chosen = _chosen(study, options.only)
        if options.list:
            if hasattr(signal, "SIGPIPE"):
                signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as other programs do whose output goes to `head`
            for comparison in chosen:
                print(_summary(comparison, check_rows(study, comparison)))
            return
        if options.teachers:
            raise SystemExit(run(study, [], options.jobs, options.anew, [it.teacher for it in chosen if it.teacher]))
        raise SystemExit(run(study, chosen, options.jobs, options.anew))
    except SegtailorError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except RunStopped as stopped:
        print(stopped, file=sys.stderr)
        raise SystemExit(stopped.code) from None
    except KeyboardInterrupt:
        print("stopped; run it again to go on", file=sys.stderr)
        raise SystemExit(STOPPED) from None


def run(study: Study, comparisons: list[Comparison], jobs: int, anew: bool, teachers: Iterable[str] = ()) -> int:
    """Run what is missing, ``teachers`` among it, and return the exit code."""
    lacking = [(comparison, lacking_rows(study, comparison, anew)) for comparison in comparisons]
    needed = dict.fromkeys([*teachers, *(it.teacher for it, rows in lacking if rows and it.teacher)])
    waiting = [unit for name in needed if (unit := teacher_unit(study, name, anew)) is not None]
    trained = {unit.teacher for unit in waiting}
    for name in dict.fromkeys(name for name in teachers if name not in trained):
        print(f"teacher {name}: there")
    for comparison, rows in lacking:
        # Whether its rows are of this teacher is known once that is trained.
        later = Unit(comparison.name, [], comparison.teacher, comparison)
        waiting += [later] if rows and comparison.teacher in trained else units_for(study, comparison, rows)
    running: dict[subprocess.Popen[bytes], Unit] = {}
    failed = 0
    try:
        while waiting or running:
            _start(study, waiting, running, jobs, anew)
            time.sleep(0.5)
            for process in [process for process in running if process.poll() is not None]:
                failed += _end(study, running.pop(process), process.returncode, waiting)
    except (KeyboardInterrupt, SegtailorError):
        for process in running:
            process.send_signal(signal.SIGINT)
        for process in running:
            process.wait()
        raise
    for comparison in comparisons:
        rows = check_rows(study, comparison)
        failed += sum(row.state == "failed" for row in rows)
        print(_summary(comparison, rows))
    return 1 if failed else 0


def _chosen(study: Study, names: list[str] | None) -> list[Comparison]:
    for name in names or []:
        if name not in study.comparisons:
            raise SegtailorError(
                f"no comparison '{name}' in {study.path.name}; there are {', '.join(study.comparisons)}"
            )
    return [study.comparisons[name] for name in names or study.comparisons]


def _start(
    study: Study, waiting: list[Unit], running: dict[subprocess.Popen[bytes], Unit], jobs: int, anew: bool
) -> None:
    """Start the first units that wait for nothing, as many as there are free processes."""
    for unit in list(waiting):
        busy = {other.teacher for other in [*running.values(), *waiting] if other.teacher}
        if len(running) >= jobs:
            return
        if unit.needs in busy:
            continue
        if not unit.words and unit.comparison is not None:
            place = waiting.index(unit)
            waiting[place : place + 1] = units_for(study, unit.comparison, lacking_rows(study, unit.comparison, anew))
            return
        waiting.remove(unit)
        log = study.runs / "logs" / f"{unit.label.split(':')[0].replace(', ', '-').replace(' ', '-')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(Path(__file__).with_name("work.py")), str(study.path), *unit.words]
        with log.open("ab") as file:
            # A group of its own: Ctrl-C reaches it through us, once.
            process = subprocess.Popen(command, stdout=file, stderr=file, start_new_session=True)
        unit.began = time.monotonic()
        running[process] = unit
        print(f"{unit.label}: started, log in {log}", flush=True)


def _end(study: Study, unit: Unit, code: int, waiting: list[Unit]) -> int:
    """Take over what the unit made; returns 1 where it failed."""
    minutes = (time.monotonic() - unit.began) / 60
    print(
        f"{unit.label}: {'done' if code == 0 else f'failed with exit code {code}'} after {minutes:.0f} min", flush=True
    )
    if unit.comparison is not None:
        collect(study, unit.comparison)
        write_comparison(study, unit.comparison)
    if code and unit.teacher:
        for other in [other for other in waiting if other.needs == unit.teacher]:
            waiting.remove(other)
            print(f"{other.label}: not run, its teacher is missing", file=sys.stderr)
    return 1 if code else 0


def _summary(comparison: Comparison, rows: list[Row]) -> str:
    counts = Counter(row.state for row in rows)
    line = ", ".join(f"{counts[state]} {word}" for state, word in WORDS.items() if counts[state])
    noted = [f"  {row.place}: {row.note}" for row in rows if row.state in ("failed", "damaged", "other")]
    made = f" (made at {comparison.settled})" if comparison.settled else ""
    return "\n".join([f"{comparison.name}: {line}{made}", *noted])


if __name__ == "__main__":
    main()
