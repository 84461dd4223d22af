"""What each method costs in training: seconds against the networks' own, and memory above the networks' peak.

    python benchmarks/speed/method_cost.py --published     # DeepLabV3 R101 to R18, batch 2, 512 x 1024, 2 threads
    python benchmarks/speed/method_cost.py --only kd cwd   # these again, into the same table
    python benchmarks/speed/method_cost.py --device cuda   # fills the GPU's columns: bfloat16 autocast

Networks and peaks are those of `bench.py`. Method: forward and backward of all terms on stored outputs, with default
options; where a method changes on the way, its dearer phase. The steps of an adversary and of a pre-training are timed
beside it. A method with its own teacher is timed on that one's output, and its peak is of a step without the
recipe's teacher. Rows are written as they come, each with the networks' figures of its own run, so that no ratio mixes
two runs; a run of all methods starts the table afresh. With the default ``--out`` it also writes what `segtailor
methods` shows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import (
    RESULTS,
    ROOT,
    Bench,
    forget_peak,
    leaves,
    networks_seconds,
    peak_bytes,
    peak_in_child,
    seconds_of,
    setting,
    setting_parser,
)
from method_table import derive_costs, table
from segtailor.config import MethodConfig, ModelConfig
from segtailor.files import write_atomically
from segtailor.jobs.build import make_methods
from segtailor.losses import Step
from segtailor.methods import METHODS, create_method
from segtailor.methods._kt_terms import Components
from segtailor.models import SegOutput

OUT = RESULTS / "method_cost.json"
COSTS = ROOT / "src" / "segtailor" / "methods" / "costs.json"
PHASES = (0.1, 0.9)
"""Progress at which a method that changes on the way is measured; any other at the last."""
TEACHER = "benchmark"
"""The name of the teacher in the file of a pre-training."""
MANY = {"classes": 150, "channels": 256}
"""Where the size of a method's buffers is stated, too."""


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(peak_of(arguments, *arguments.peak))
        return
    document, section = open_section(arguments)
    bench = Bench(arguments, arguments.device)
    run: dict[str, Any] = {"torch": torch.__version__, "start": networks_seconds(bench, arguments.repeats)}
    run["peak"] = peak(arguments, "networks", "", "")
    section["runs"].append(run)
    for name, variant in chosen(arguments):
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
    parser = setting_parser(__doc__.splitlines()[0] if __doc__ else None, repeats=2, out="method_cost.json")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--published", action="store_true", help="the published variants, too")
    names = [name for name in METHODS if name != "none"]
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help="measure these, keep the other rows")
    parser.add_argument("--peak", nargs=3, metavar=("NAME", "VARIANT", "WHAT"), help=argparse.SUPPRESS)
    return parser.parse_args()


def open_section(arguments: argparse.Namespace) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return all results, and those of this device: what is there if rows are to be added to it, else none."""
    facts = setting(arguments)
    if arguments.device == "cuda":
        facts["gpu"] = torch.cuda.get_device_name()
    document: dict[str, Any] = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    section = document.get(arguments.device)
    if section is None or not arguments.only:
        section = {"setting": facts, "runs": [], "methods": {}}
    elif section["setting"] | {"torch": ""} != facts | {"torch": ""}:  # each run states its own
        raise SystemExit(f"{arguments.out} was measured with {section['setting']}, not {facts}; give another --out")
    document[arguments.device] = section
    return document, section


def chosen(arguments: argparse.Namespace) -> list[tuple[str, str]]:
    """Return the methods and variants to be measured."""
    names = [name for name in METHODS if name != "none" and (not arguments.only or name in arguments.only)]
    both = [name for name in names if arguments.published and options_of(name, "published")]
    return [(name, variant) for name in names for variant in ("clean", "published")[: 1 + (name in both)]]


def measure(
    arguments: argparse.Namespace, bench: Bench, run: dict[str, Any], name: str, variant: str
) -> dict[str, Any]:
    """Return one row; where the method fails, the error, so that the other rows are kept."""
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


def options_of(name: str, variant: str) -> dict[str, str]:
    return {"variant": variant} if "variant" in METHODS[name].Options.model_fields else {}


class Subject:
    """A method set up as the jobs do it, with its adversary's optimizer and what its pre-training would have learnt."""

    def __init__(self, bench: Bench, name: str, variant: str) -> None:
        self.bench = bench
        config = MethodConfig.model_validate({"name": name, **options_of(name, variant)})
        built_as = ModelConfig(model=bench.student.name)
        methods = make_methods([config], bench.student, bench.teacher, built_as, seed=0)
        self.method = methods[name].to(bench.device).train()
        for module in self.method.modules():
            if isinstance(module, Components):
                module.seen = module.STEPS + 1  # the rest of the run, not its first steps
        self.teacher = bench.teacher if self.method.own_teacher is None else self.method.own_teacher.to(bench.device)
        self.adversary = self.method.adversary
        if self.adversary is not None:
            self.adversary.to(bench.device).train()
            self.adversary.trained = True
            self.optimizer = self.adversary.build_optimizer(self.adversary.parameters())
        self.pretraining = self.method.pretraining
        self.objective = (
            None if self.pretraining is None else self.pretraining.objective(bench.teacher).to(bench.device).train()
        )
        if self.pretraining is not None and self.objective is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "stage.safetensors"
                self.pretraining.save(self.objective, path, {"teacher": TEACHER})
                self.pretraining.load(path, TEACHER if self.pretraining.uses_teacher else None)

    @property
    def phases(self) -> tuple[float, ...]:
        return PHASES if type(self.method).sparse_gradients or self.method.sparse_gradients else PHASES[1:]

    def teach(self) -> SegOutput:
        """Run the method's teacher, and keep of its output what the method reads."""
        with self.bench.autocast():
            return self.method.select(self.teacher(self.bench.images, self.bench.target))

    def loss(self, student: SegOutput, teacher: SegOutput, progress: float) -> Tensor:
        """Return the sum of all terms; the adversary is frozen until its own step."""
        self.method.zero_grad(set_to_none=True)
        if self.adversary is not None:
            self.adversary.requires_grad_(False)
        with self.bench.autocast():
            return total(self.method(student, teacher, self.bench.target, Step(progress, [self.bench.target])))

    def train_adversary(self, student: SegOutput, teacher: SegOutput) -> None:
        """Take the adversary's step."""
        assert self.adversary is not None
        self.adversary.requires_grad_(True)
        with self.bench.autocast():
            loss = self.adversary(student, teacher, self.bench.target, Step())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def pretrain(self, shared: SegOutput | None) -> None:
        """Run forward and backward of a pre-training step; ``shared`` is the output of the recipe's teacher."""
        assert self.objective is not None
        self.objective.zero_grad(set_to_none=True)
        with self.bench.autocast():
            loss = total(
                self.objective(self.bench.images, self.bench.target, shared, Step(PHASES[0], [self.bench.target]))
            )
        torch.autograd.backward(loss)


def total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def measure_seconds(bench: Bench, name: str, variant: str, networks: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Return the seconds of each part of one method's step, and ``time``, relative to the ``networks``'."""
    subject = Subject(bench, name, variant)
    teacher_seconds = statistics.median(networks["teacher"])
    step_seconds = teacher_seconds + statistics.median(networks["student"])

    def timed(action: Callable[[], object], more: float = 0.0) -> dict[str, Any]:
        """Leave the first call out: it allocates and chooses kernels."""
        times = seconds_of(action, repeats + 1)[1:]
        return {"seconds": times, "time": (statistics.median(times) + more) / step_seconds}

    torch.manual_seed(0)
    student, taught = leaves(bench.learn()), subject.teach()

    def run_terms(progress: float) -> None:
        forget(student)
        torch.autograd.backward(subject.loss(student, taught, progress))

    phases = {progress: timed(partial(run_terms, progress)) for progress in subject.phases}
    dearest = max(phases, key=lambda progress: float(phases[progress]["time"]))
    row: dict[str, Any] = {**phases[dearest], "progress": dearest}
    if len(phases) > 1:
        row["phases"] = {str(progress): phase for progress, phase in phases.items()}
    if subject.adversary is not None:
        row["discriminator"] = timed(partial(subject.train_adversary, subject.method.select(student).detach(), taught))
    if subject.method.own_teacher is not None:
        row["own_teacher"] = {**timed(subject.teach), "instead_of": teacher_seconds / step_seconds}
    if subject.pretraining is not None:
        shared = bench.teach() if subject.pretraining.uses_teacher else None
        row["stage"] = {
            "about": subject.pretraining.about,
            "steps": subject.pretraining.steps,
            "runs_the_teacher": subject.pretraining.uses_teacher,
            **timed(partial(subject.pretrain, shared), teacher_seconds if subject.pretraining.uses_teacher else 0.0),
        }
    remembered = buffer_bytes(bench, name, variant)
    if remembered:
        row["buffers"] = {**MANY, "bytes": remembered}
    return row


def forget(output: SegOutput) -> None:
    """Drop the gradients of the tensors of ``output``."""
    named = [getattr(output, field.name) for field in fields(output) if field.name not in ("stages", "taps")]
    for tensor in (*named, *output.stages, *output.taps.values()):
        if tensor is not None:
            tensor.grad = None


def buffer_bytes(bench: Bench, name: str, variant: str) -> int:
    """Return the size of the method's buffers, CIRKD's queues above all, at ``MANY`` classes and channels."""
    teacher = {**bench.teacher.tap_channels, "feature": MANY["channels"], "classifier_input": MANY["channels"]}
    with torch.device("meta"):
        method = create_method(name, MANY["classes"], bench.student.tap_channels, teacher, **options_of(name, variant))
    return sum(buffer.nbytes for buffer in method.buffers())


def peak_of(arguments: argparse.Namespace, name: str, variant: str, what: str) -> int:
    """Return the peak of one step: the ``networks`` alone, a method at progress ``what``, or its pre-training."""
    bench = Bench(arguments, arguments.device)

    def networks() -> None:
        bench.teach()
        bench.backward(bench.learn())

    if name == "networks":
        return peak_while(networks, bench)
    subject = Subject(bench, name, variant)
    if subject.method.teacher != "recipe":
        del bench.teacher

    def pretrain() -> None:
        assert subject.pretraining is not None
        subject.pretrain(bench.teach() if subject.pretraining.uses_teacher else None)

    def step() -> None:
        taught, output = subject.teach(), bench.learn()
        loss = subject.loss(output, taught, float(what))
        kept = taught.detach() if subject.adversary is not None else None
        del taught  # as the training loop lets go of it
        bench.backward(output, loss)
        if kept is not None:
            subject.train_adversary(subject.method.select(output).detach(), kept)

    if what == "stage":
        return peak_while(pretrain, bench)
    subject.objective = None
    return peak_while(step, bench)


def peak_while(step: Callable[[], None], bench: Bench) -> int:
    torch.manual_seed(0)
    if bench.device != "cpu":  # a first step chooses kernels, with memory of their own
        step()
        bench.student.zero_grad(set_to_none=True)
    forget_peak(bench.device)
    step()
    return peak_bytes(bench.device)


if __name__ == "__main__":
    main()
