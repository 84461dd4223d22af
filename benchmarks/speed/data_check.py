"""How long `segtailor data check` takes on CamVid's 468 pairs on two cores, the start of Python included.

    SEGTAILOR_CAMVID=... python benchmarks/speed/data_check.py

Runs the command three times in a separate process, held to two cores, and writes wall-clock and processor seconds,
what was found, and how busy the machine was, to ``benchmarks/speed/results/data-check.json``. Exits with 1 when
CamVid does not come out without an error.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import RESULTS, save

RUNS, CORES = 3, 2


def main() -> None:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    busy = os.getloadavg()[0]
    runs = [check() for _ in range(RUNS)]
    record = {
        "pairs": runs[0]["samples"],
        "cores": CORES,
        "load_before": round(busy, 2),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "runs": runs,
    }
    save(RESULTS / "data-check.json", record)
    for run in runs:
        print(f"{run['wall_seconds']:.1f} s, {run['cpu_seconds']:.1f} s of processors, {run['errors']} errors")
    raise SystemExit(any(run["errors"] for run in runs))


def check() -> dict[str, Any]:
    """Run the command once; return seconds and what was found."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "segtailor.cli", "data", "check", "--data.name", "camvid", "--out", name]
        before, begin = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
        wall, after = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
        report = json.loads((Path(name) / "report.json").read_text(encoding="utf-8"))
    return {
        "wall_seconds": round(wall, 2),
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 2),
        "checking_seconds": report["seconds"],
        **{key: report[key] for key in ("samples", "errors", "warnings", "notes")},
    }


if __name__ == "__main__":
    main()
