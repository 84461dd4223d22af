"""Train the arms of a study with equal recipes over several seeds; resumes, and skips what is finished.

    python benchmarks/study.py benchmarks/studies/toy.yaml [--jobs 2] [--threads 1]

Each run leaves its raw result in ``benchmarks/results/STUDY/ARM-seedN.json``; ``table.md`` beside them is made anew
whenever a run ends. Interrupt it at any time: started runs go on from their checkpoints the next time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

RESULTS = Path(__file__).parent / "results"
RUNS = Path("runs")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="YAML: teacher, student recipe, arms, seeds")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of each run")
    options = parser.parse_args()
    study = yaml.safe_load(options.study.read_text(encoding="utf-8"))
    name = options.study.stem
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    teacher = train_teacher(name, study, folder, options.threads * options.jobs)
    waiting = [(arm, seed) for seed in study["seeds"] for arm in study["arms"] if not raw(folder, arm, seed).exists()]
    running: dict[subprocess.Popen[bytes], tuple[str, int]] = {}
    while waiting or running:
        while waiting and len(running) < options.jobs:
            arm, seed = waiting.pop(0)
            running[start(name, study, arm, seed, teacher, options.threads)] = (arm, seed)
        time.sleep(0.5)
        for process in [process for process in running if process.poll() is not None]:
            arm, seed = running.pop(process)
            if process.returncode:
                print(f"{arm}, seed {seed}: failed with exit code {process.returncode}; run the study again")
                continue
            collect(RUNS / run_name(name, arm, seed), raw(folder, arm, seed))
            write_table(study, folder)
            print(f"{arm}, seed {seed}: done; {len(waiting)} runs wait", flush=True)
    write_table(study, folder)
    print(table(study, folder))


def write_table(study: dict[str, Any], folder: Path) -> None:
    (folder / "table.md").write_text(table(study, folder), encoding="utf-8")


def raw(folder: Path, arm: str, seed: int) -> Path:
    return folder / f"{arm}-seed{seed}.json"


def run_name(study: str, arm: str, seed: int) -> str:
    return f"study-{study}-{arm}-seed{seed}"


def train_teacher(name: str, study: dict[str, Any], folder: Path, threads: int) -> Path:
    run = RUNS / f"study-{study['teacher'].get('study', name)}-teacher"
    settings = {**study.get("shared", {}), **study["teacher"].get("set", {}), "train.threads": threads}
    settings |= {"run.name": run.name, "run.exists": "resume"}
    subprocess.run(command("train", study["teacher"]["recipe"], settings), check=True)
    collect(run, folder / "teacher.json")
    return run


def start(
    name: str, study: dict[str, Any], arm: str, seed: int, teacher: Path, threads: int
) -> subprocess.Popen[bytes]:
    settings = {**study.get("shared", {}), **study.get("set", {}), **study["arms"][arm]}
    settings |= {"train.seed": seed, "train.threads": threads, "teacher.weights": str(teacher), "baseline": "none"}
    settings |= {"run.name": run_name(name, arm, seed), "run.exists": "resume", "evaluate.samples": 0}
    return subprocess.Popen(command("distill", study["recipe"], settings))


def command(verb: str, recipe: str, settings: dict[str, Any]) -> list[str]:
    words = [sys.executable, "-m", "segtailor.cli", verb, recipe]
    for key, value in settings.items():
        words += [f"--{key}", json.dumps(value)]
    return words


def collect(run: Path, target: Path) -> None:
    """Keep what a figure is made of: the resolved recipe, the rows and the score over time."""
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kept = ("name", "method", "variant", "classes", "size", "rows", "unlabelled", "environment")
    record = {key: results[key] for key in kept if key in results}
    record["recipe"] = yaml.safe_load((run / "recipe.yaml").read_text(encoding="utf-8"))
    record["curve"] = [
        {"step": line["step"], "miou": line["miou"]} for line in map(json.loads, lines) if line["kind"] == "evaluate"
    ]
    target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def table(study: dict[str, Any], folder: Path) -> str:
    """Return the Markdown table: mean and deviation over seeds, and each seed's difference to the student alone."""
    teacher = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))["rows"][0]["miou"]
    scores: dict[str, dict[int, tuple[float, float]]] = {}
    for arm in study["arms"]:
        found = {seed: raw(folder, arm, seed) for seed in study["seeds"] if raw(folder, arm, seed).exists()}
        scores[arm] = {seed: student_scores(file) for seed, file in found.items()}
    alone = scores.get("none", {})
    rows = [f"### {study['title']}", "", study["about"], ""]
    rows += [
        "| arm | seeds | mIoU, last | mIoU, best | difference to alone, each seed | gap closed |",
        "|---|---:|---:|---:|---:|---:|",
        f"| teacher | 1 | {100 * teacher:.2f} | | | |",
    ]
    for arm, by_seed in scores.items():
        if not by_seed:
            rows.append(f"| {arm} | 0 | not run | | | |")
            continue
        last = [value[0] for value in by_seed.values()]
        best = [value[1] for value in by_seed.values()]
        paired = {seed: value[0] - alone[seed][0] for seed, value in by_seed.items() if seed in alone}
        gains = ", ".join(f"{100 * gain:+.2f}" for gain in paired.values()) if arm != "none" else ""
        closed = ""
        if arm != "none" and paired:
            gap = statistics.mean(teacher - alone[seed][0] for seed in paired)
            closed = f"{100 * statistics.mean(paired.values()) / gap:.0f} %" if gap > 0 else ""
        rows.append(f"| {arm} | {len(by_seed)} | {spread(last)} | {spread(best)} | {gains} | {closed} |")
    for arm, other in study.get("pairs", {}).items():
        both = [seed for seed in study["seeds"] if seed in scores[arm] and seed in scores[other]]
        over = [scores[arm][seed][0] - scores[other][seed][0] for seed in both]
        if over:
            each = ", ".join(f"{100 * gain:+.2f}" for gain in over)
            rows += ["", f"{arm} over {other}, last score: {spread(over)} (each seed: {each})."]
    rows += ["", f"Made by `python benchmarks/study.py benchmarks/studies/{folder.name}.yaml`; raw results beside it."]
    return "\n".join(rows) + "\n"


def student_scores(file: Path) -> tuple[float, float]:
    row = next(row for row in json.loads(file.read_text(encoding="utf-8"))["rows"] if row["role"] == "distilled")
    return float(row["miou"]), float(row["best_miou"])


def spread(values: list[float]) -> str:
    deviation = f" ± {100 * statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
