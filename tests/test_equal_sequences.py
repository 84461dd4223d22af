"""benchmarks/equal/sequences.py: scores of the study's rows by the drive that the frames are from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "equal"


def sequences(*options: str, camvid: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "equal" / "sequences.py"), *options]
    env = {**os.environ, "SEGTAILOR_CAMVID": camvid}
    return subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, check=False)


@pytest.mark.skipif("SEGTAILOR_CAMVID" not in os.environ, reason="needs SEGTAILOR_CAMVID")
def test_over_all_drives_the_scores_are_the_recorded_ones(tmp_path: Path) -> None:
    out = tmp_path / "sequences.md"
    done = sequences("kt-4", "--out", str(out), camvid=os.environ["SEGTAILOR_CAMVID"])
    assert done.returncode == 0, done.stderr
    assert out.read_text() == done.stdout
    assert (
        "0001TP (12 frames) | 0006R0 (20 frames) | 0016E5 (40 frames) | apart from `val` (32) | all (72)" in done.stdout
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("| `all-stages` |"))
    rows = [RESULTS / "kt-4" / "arms" / "all-stages" / f"seed{seed}" / "outcome.json" for seed in (0, 1)]
    mean = sum(json.loads(path.read_text())["miou"] for path in rows) / 2
    assert float(line.split("|")[-2]) == pytest.approx(100 * mean, abs=0.006)


@pytest.mark.parametrize(("name", "message"), [("kt-4", "no such folder"), ("kt-x", "no comparison 'kt-x'")])
def test_mistakes_are_one_line_and_nothing_is_written(tmp_path: Path, name: str, message: str) -> None:
    done = sequences(name, "--out", str(tmp_path / "out.md"), camvid=str(tmp_path / "nowhere"))
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out.md").exists()
