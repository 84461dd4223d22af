"""What each method costs in training: seconds against the networks' own, and memory above the networks' peak.

    python benchmarks/speed/method_cost.py --published        # DeepLabV3 R101 to R18, batch 2, 512 x 1024, 2 threads
    python benchmarks/speed/method_cost.py --only kd cwd      # these again, into the same table
    python benchmarks/speed/method_cost.py --device cuda      # fills the GPU's columns: bfloat16 autocast

Networks and peaks are those of `bench.py`. Method: forward and backward of all terms on stored outputs, with default
options; where a method changes on the way, its dearer phase. The steps of an opponent and of a stage are timed beside
it. A method with a teacher of its own is timed on that one's output, and its peak is of a step without the recipe's
teacher. Rows are written as they come, each with the networks' figures of its own run, so that no ratio mixes two runs.
A run of all methods starts the table anew, unless ``--resume`` keeps what is there. With the default ``--out`` it also
writes what `segtailor methods` shows.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench import RESULTS, ROOT, Bench, networks_seconds, peak_in_child, setting, setting_parser
from method_step import measure_seconds, options_of, peak_of
from method_table import derive_costs, table
from segtailor.files import write_atomically
from segtailor.methods import METHODS

OUT = RESULTS / "method_cost.json"
COSTS = ROOT / "src" / "segtailor" / "methods" / "costs.json"


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(peak_of(arguments, *arguments.peak))
        return
    document, section = open_section(arguments)
    wanted = list(chosen(arguments, section))
    bench = Bench(arguments, arguments.device)
    run: dict[str, Any] = {"start": networks_seconds(bench, arguments.repeats)}
    run["peak"] = peak(arguments, "networks", "", "")
    section["runs"].append(run)
    for name, variant in wanted:
        section["methods"].setdefault(name, {})[variant] = row = measure(arguments, bench, run, name, variant)
        print(f"{name}, {variant}: {row.get('error', 'measured')}", file=sys.stderr, flush=True)
        store(arguments.out, document)
    if not arguments.only:
        run["end"] = networks_seconds(bench, arguments.repeats)
    store(arguments.out, document)
    print(table(document))
    if any("error" in row for variants in section["methods"].values() for row in variants.values()):
        raise SystemExit("not all methods could be measured")


def parse() -> argparse.Namespace:
    parser = setting_parser(__doc__.splitlines()[0] if __doc__ else None, repeats=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--published", action="store_true", help="the published variants, too")
    names = [name for name in METHODS if name != "none"]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="measure these, keep the other rows")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there, measure the others")
    parser.add_argument("--out", type=Path, default=OUT, help="JSON; a Markdown table is written beside it")
    parser.add_argument("--peak", nargs=3, metavar=("NAME", "VARIANT", "WHAT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def open_section(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all results, and those of this device: what is there if rows are to be added to it, else none."""
    facts = setting(arguments)
    if arguments.device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    document: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    section = document.get(arguments.device)
    if section is None or not (arguments.only or arguments.resume):
        section = {"setting": facts, "runs": [], "methods": {}}
    elif section["setting"] != facts:
        raise SystemExit(f"{arguments.out} was measured with {section['setting']}, not {facts}; give another --out")
    document[arguments.device] = section
    return document, section


def chosen(arguments: argparse.Namespace, section: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the methods and variants to be measured."""
    for name in METHODS:
        if name == "none" or (arguments.only and name not in arguments.only):
            continue
        both = arguments.published and options_of(name, "published")
        for variant in ("clean", "published") if both else ("clean",):
            row = section["methods"].get(name, {}).get(variant)
            if not (arguments.resume and row is not None and "error" not in row):
                yield name, variant


def measure(
    arguments: argparse.Namespace, bench: Bench, run: dict[str, Any], name: str, variant: str
) -> dict[str, Any]:
    """Return one row; where the method fails, what it said, so that the others' hours are not lost."""
    try:
        row = measure_seconds(bench, name, variant, run["start"], arguments.repeats)
        parts = [(row, str(row["progress"])), *([(row["stage"], "stage")] if "stage" in row else [])]
        for part, what in parts:
            part["peak"] = peak(arguments, name, variant, what)
            part["memory"] = None if part["peak"] is None else part["peak"] - run["peak"]
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {**row, "networks": {**run["start"], "peak": run["peak"]}}


def peak(arguments: argparse.Namespace, name: str, variant: str, what: str) -> int | None:
    if arguments.no_memory:
        return None
    return peak_in_child(__file__, arguments, ["--device", arguments.device, "--peak", name, variant, what])


def store(path: Path, document: dict[str, Any]) -> None:
    """Write all results, their table, and, from the default place, the package's own file."""

    def write(target: Path, text: str) -> None:
        write_atomically(target, lambda file: file.write(text.encode()))

    write(path, json.dumps(document, indent=1) + "\n")
    write(path.with_suffix(".md"), table(document))
    costs = derive_costs(document)
    if path.resolve() == OUT and costs is not None:
        write(COSTS, json.dumps(costs, indent=1) + "\n")


if __name__ == "__main__":
    main()
