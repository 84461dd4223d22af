"""One method's training step, taken apart: its terms, its opponent's step, its stage's step, and the peak of all."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import Bench, forget_peak, leaves, peak_bytes, seconds_of
from segtailor.config import MethodConfig, ModelConfig
from segtailor.jobs.build import make_methods
from segtailor.losses import Step
from segtailor.methods import METHODS, create_method
from segtailor.models import SegOutput

PHASES = (0.1, 0.9)
"""Progress at which a method that changes on the way is measured; any other at the last."""
LEARNT = "benchmark"
"""Stands for the teacher's fingerprint in a stage's file."""
MANY = {"classes": 150, "channels": 256}
"""Where the size of a method's buffers is stated, too."""


def options_of(name: str, variant: str) -> dict[str, str]:
    return {"variant": variant} if "variant" in METHODS[name].Options.model_fields else {}


class Subject:
    """A method set up as the jobs do it, with its opponent's optimizer and what its stage would have learnt."""

    def __init__(self, bench: Bench, name: str, variant: str) -> None:
        self.bench = bench
        config = MethodConfig.model_validate({"name": name, **options_of(name, variant)})
        built_as = ModelConfig(model=bench.student.name)
        methods = make_methods([config], bench.student, bench.teacher, built_as, seed=0)
        self.method = methods[name].to(bench.device).train()
        self.teacher = bench.teacher if self.method.own_teacher is None else self.method.own_teacher.to(bench.device)
        self.opponent = self.method.adversary
        if self.opponent is not None:
            self.opponent.to(bench.device).train()
            self.opponent.trained = True
            self.optimizer = self.opponent.build_optimizer(self.opponent.parameters())
        self.stage = self.method.pretraining
        self.lesson = None if self.stage is None else self.stage.objective(bench.teacher).to(bench.device).train()
        if self.stage is not None and self.lesson is not None:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "stage.safetensors"
                self.stage.save(self.lesson, path, {"teacher": LEARNT})
                self.stage.load(path, LEARNT if self.stage.uses_teacher else None)

    @property
    def phases(self) -> tuple[float, ...]:
        return PHASES if type(self.method).sparse_gradients or self.method.sparse_gradients else PHASES[1:]

    def teach(self) -> SegOutput:
        """Run the method's teacher, and keep of its output what the method reads."""
        with self.bench.autocast():
            return self.method.select(self.teacher(self.bench.images, self.bench.target))

    def loss(self, student: SegOutput, teacher: SegOutput, progress: float) -> Tensor:
        """Return the sum of all terms; the opponent is frozen until its own step."""
        self.method.zero_grad(set_to_none=True)
        if self.opponent is not None:
            self.opponent.requires_grad_(False)
        with self.bench.autocast():
            return total(self.method(student, teacher, self.bench.target, Step(progress, [self.bench.target])))

    def oppose(self, student: SegOutput, teacher: SegOutput) -> None:
        """Do the opponent's step."""
        assert self.opponent is not None
        self.opponent.requires_grad_(True)
        with self.bench.autocast():
            loss = self.opponent(student, teacher, self.bench.target, Step())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def study(self, shared: SegOutput | None) -> None:
        """Do forward and backward of the stage's step, given the output of the recipe's teacher where it wants that."""
        assert self.lesson is not None
        self.lesson.zero_grad(set_to_none=True)
        with self.bench.autocast():
            loss = total(
                self.lesson(self.bench.images, self.bench.target, shared, Step(PHASES[0], [self.bench.target]))
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
    if subject.opponent is not None:
        row["discriminator"] = timed(partial(subject.oppose, subject.method.select(student).detach(), taught))
    if subject.method.own_teacher is not None:
        row["own_teacher"] = {**timed(subject.teach), "instead_of": teacher_seconds / step_seconds}
    if subject.stage is not None:
        shared = bench.teach() if subject.stage.uses_teacher else None
        row["stage"] = {
            "about": subject.stage.about,
            "steps": subject.stage.steps,
            "runs_the_teacher": subject.stage.uses_teacher,
            **timed(partial(subject.study, shared), teacher_seconds if subject.stage.uses_teacher else 0.0),
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
    """Return the peak of one step: of the ``networks`` alone, with a method at progress ``what``, or of its stage."""
    bench = Bench(arguments, arguments.device)

    def networks() -> None:
        bench.teach()
        bench.backward(bench.learn())

    if name == "networks":
        return peak_while(networks, bench)
    subject = Subject(bench, name, variant)
    if subject.method.teacher != "recipe":
        del bench.teacher

    def study() -> None:
        assert subject.stage is not None
        subject.study(bench.teach() if subject.stage.uses_teacher else None)

    def step() -> None:
        taught, output = subject.teach(), bench.learn()
        bench.backward(output, subject.loss(output, taught, float(what)))
        if subject.opponent is not None:
            subject.oppose(subject.method.select(output).detach(), taught)

    if what == "stage":
        return peak_while(study, bench)
    subject.lesson = None
    return peak_while(step, bench)


def peak_while(step: Callable[[], None], bench: Bench) -> int:
    torch.manual_seed(0)
    if bench.device != "cpu":  # a first step chooses kernels, with memory of their own
        step()
        bench.student.zero_grad(set_to_none=True)
    forget_peak(bench.device)
    step()
    return peak_bytes(bench.device)
