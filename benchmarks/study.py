"""Run the comparisons of a study and record them; what is recorded already is not run again.

    python benchmarks/study.py                               # benchmarks/studies/equal.yaml: all that is missing
    python benchmarks/study.py STUDY.yaml --only tier-a      # these comparisons alone
    python benchmarks/study.py --list                        # how many rows are recorded and missing; runs nothing
    python benchmarks/study.py --teachers                    # train the teachers that are missing, nothing else

A study's YAML holds ``teachers``, recipes of `segtailor train`, and ``comparisons``, recipes of `segtailor compare`
with a title (and a record's name, to add rows to that of another comparison). Each seed's missing arms are one
comparison in ``runs/STUDY``, which resumes after an interruption; its rows are then added to the record,
``benchmarks/results/NAME.*``. `python benchmarks/page.py` writes the tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

import segtailor
from segtailor.config import CompareRecipe, TrainRecipe
from segtailor.data import create_dataset
from segtailor.engine.runs import RunStopped
from segtailor.errors import SegtailorError, unknown
from segtailor.jobs.compare import all_arms
from segtailor.recipes import validate
from segtailor.results.record import given, read_rows, write_record

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, nargs="?", default=HERE / "studies" / "equal.yaml")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="comparisons to run; default: all, in their order")
    parser.add_argument("--list", action="store_true", help="count the rows, and run nothing")
    parser.add_argument("--teachers", action="store_true", help="train the teachers that are missing, nothing else")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the records")
    options = parser.parse_args()
    try:
        study = yaml.safe_load(options.study.read_text(encoding="utf-8"))
        recipes = {name: read_recipe(name, study) for name in options.only or study["comparisons"]}
        runs = Path("runs") / options.study.stem
        if options.teachers:
            for name in study["teachers"]:
                train_teacher(name, study, runs)
            return
        for name, recipe in recipes.items():
            record = options.results / study["comparisons"][name].get("record", name)
            wanted = missing(recipe, record)
            planned = len(all_arms(recipe)) * len(recipe.seeds)
            lacking = sum(map(len, wanted.values()))
            print(f"{name}: {planned - lacking} of {planned} rows are recorded", flush=True)
            if lacking and not options.list:
                run(name, recipe, wanted, study, runs, record)
    except RunStopped as stopped:
        print(f"{stopped}; the same command continues", file=sys.stderr)
        raise SystemExit(stopped.code) from None
    except (SegtailorError, OSError, yaml.YAMLError) as error:
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None


def read_recipe(name: str, study: dict[str, Any]) -> CompareRecipe:
    """Return the recipe of one comparison of the study, checked."""
    if name not in study["comparisons"]:
        raise unknown("comparison", name, study["comparisons"])
    plain = {key: value for key, value in study["comparisons"][name].items() if key not in ("title", "record")}
    return validate(CompareRecipe, plain, f"comparison {name}")


def missing(recipe: CompareRecipe, record: Path) -> dict[int, list[str]]:
    """Return for each seed the arms that the record has no finished row of."""
    there = read_rows(record) if Path(f"{record}.json").exists() else {}
    finished = {key for key, row in there.items() if row["status"] == "finished"}
    wanted = {seed: [arm for arm in all_arms(recipe) if (arm, seed) not in finished] for seed in recipe.seeds}
    return {seed: arms for seed, arms in wanted.items() if arms}


def run(
    name: str, recipe: CompareRecipe, wanted: dict[int, list[str]], study: dict[str, Any], runs: Path, record: Path
) -> None:
    """Train the missing arms, seed by seed, and add their rows to the record."""
    about: dict[str, Any] = {"title": study["comparisons"][name].get("title", name), "about": recipe.description}
    weights = recipe.teacher.weights if recipe.teacher else None
    for teacher in study["teachers"]:
        if str(weights) == str(runs / f"teacher-{teacher}"):
            about["teacher_trained"] = train_teacher(teacher, study, runs)
    images = create_dataset(recipe.data, recipe.data.val_split, training=False)
    about["images"] = [Path(images[index].name).stem for index in range(len(images))]
    for seed, arms in wanted.items():
        chosen = {arm: recipe.arms[arm] for arm in arms if arm in recipe.arms} or recipe.arms
        some = "" if len(arms) == len(all_arms(recipe)) else "-" + "+".join(arms)[:80]
        changes = {"arms": chosen, "seeds": [seed]}
        part = recipe.model_copy(update=changes).model_dump(mode="json")
        part["run"] |= {"name": f"{name}-seed{seed}{some}", "folder": str(runs), "exists": "resume"}
        folder = segtailor.compare(part).folder
        for arm, _ in write_record(folder, record, commit(), **about):
            print(f"{name}: {arm}, seed {seed} is recorded", flush=True)


def train_teacher(name: str, study: dict[str, Any], runs: Path) -> dict[str, Any]:
    """Train a teacher where it is not there yet; return its recipe, training time and scores on the way."""
    run = {"name": f"teacher-{name}", "folder": str(runs), "exists": "resume"}
    recipe = validate(TrainRecipe, {**study["teachers"][name], "run": run}, f"teacher {name}")
    folder = segtailor.train(recipe).folder
    row = json.loads((folder / "results.json").read_text(encoding="utf-8"))["rows"][0]
    lines = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    curve = [{key: line[key] for key in ("step", "miou")} for line in lines if line["kind"] == "evaluate"]
    return {"recipe": given(recipe.model_dump(mode="json")), "seconds": row["seconds"], "curve": curve}


def commit() -> str:
    """Return the repository's commit, marked where files have been changed since."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty", "--exclude", "*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


if __name__ == "__main__":
    main()
