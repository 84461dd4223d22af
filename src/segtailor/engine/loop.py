"""The training loop: batches in, trained learners out. One pass of the teacher serves every learner of a step."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from segtailor.data.loader import train_batches
from segtailor.data.pseudo import mix_of
from segtailor.engine.arm import Arm, Task
from segtailor.engine.launch import any_process, seed_step, split_batch
from segtailor.engine.learner import Learner
from segtailor.engine.preemption import RunStopped, StopRequest
from segtailor.engine.unlabelled import StepTargets
from segtailor.errors import SegtailorError
from segtailor.evaluation import EvaluationResult
from segtailor.losses import Step
from segtailor.models.teacher import Teacher

__all__ = ["Task", "Trained", "fit", "fit_together"]

FEW_IMAGES = 8


@dataclass
class Trained:
    """The trained subject, its score after the last step (if it is scored), and the best score on the way.

    ``seconds`` is the training time: the learner's own, and its share of reading data and of the common teacher's
    passes. ``teacher_seconds`` is that last share, ``teacher_seconds_alone`` the whole of these passes. ``peak_bytes``
    is the GPU memory that the learner took at most, with what it keeps between steps and without the teacher and other
    learners; None on a CPU. ``problem`` says why the training of a learner among others failed.
    """

    student: Any
    score: EvaluationResult | None
    best_miou: float
    best_step: int
    seconds: float
    teacher_seconds: float = 0.0
    teacher_seconds_alone: float = 0.0
    peak_bytes: int | None = None
    problem: str | None = None

    @property
    def last(self) -> EvaluationResult:
        """The score after the last step."""
        assert self.score is not None
        return self.score


def fit(fabric: Any, learner: Learner, teacher: Teacher | None, task: Task) -> Trained:
    """Train ``learner`` on ``task`` and return its subject; goes on from the folder's checkpoint if there is one.

    Writes ``metrics.jsonl``, TensorBoard events and ``checkpoints/{last.ckpt,best.safetensors}``. Raises ``RunStopped``
    after Ctrl-C or SIGTERM (a checkpoint is written first) and ``SegtailorError`` when a loss is not finite.
    """
    return fit_together(fabric, [(learner, task)], teacher, keep_going=False)[0]


def fit_together(
    fabric: Any, entries: Sequence[tuple[Learner, Task]], teacher: Teacher | None, keep_going: bool = True
) -> list[Trained]:
    """Train several learners in lockstep: on the same batches, with one pass of ``teacher`` for all.

    Data, batch, steps and seed are the first task's; each learner has its own optimizer, draws and files, and learns
    what it would alone. With ``keep_going`` a learner whose loss is not finite, or for which memory is short, is
    dropped with its ``problem``; the others go on. Learners that resume from different steps wait for each other.
    """
    first = entries[0][1]
    train, device, rank, world = first.train, fabric.device, fabric.global_rank, fabric.world_size
    micro, count = split_batch(train.batch, train.micro_batch, world)
    several = len(entries) > 1
    _note_few_images(fabric, entries, micro)
    if teacher is not None:
        teacher.to(device)
    arms = [Arm(fabric, learner, task, quiet=several) for learner, task in entries]
    problems: dict[int, str] = {}
    start = min(arm.state.step for arm in arms)
    batches = train_batches(
        first.train_data, first.data, seed=train.seed, global_batch=train.batch, micro_batch=micro,
        rank=rank, world=world, start_step=start, steps=train.steps, unlabelled=first.unlabelled,
    )  # fmt: skip
    with ExitStack() as stack, StopRequest() as stop:
        for arm in arms:
            stack.callback(arm.close)
        for step in range(start + 1, train.steps + 1):
            began = time.perf_counter()
            step_batches = [next(batches).to(device) for _ in range(count)]
            waited = time.perf_counter() - began
            active = [index for index, arm in enumerate(arms) if index not in problems and arm.state.step < step]
            for index in active:
                arms[index].recorder.wait(waited, 1 / len(active))
                arms[index].begin(step)
            targets = None
            if first.unlabelled is not None and first.data.unlabelled is not None:
                targets = StepTargets(step_batches, first.data.unlabelled.threshold)
            if teacher is not None and targets is not None and count > 1:
                # Means over confident pixels divide by those of the whole step.
                ahead = [arms[index] for index in active if arms[index].learner.reads_confident_pixels]
                if ahead:
                    with _teaching(ahead, device, wait=several):
                        targets.label_ahead(teacher, fabric.autocast)
            now = Step(step / train.steps, [batch.target for batch in step_batches])
            for part, batch in enumerate(step_batches):
                taught = [arms[index] for index in active if arms[index].learner.uses_shared]
                shared = None
                if teacher is not None and taught:
                    with _teaching(taught, device, wait=several):
                        with fabric.autocast():
                            shared = teacher(batch.images, batch.target)
                        if targets is not None:
                            targets.label(part, teacher, shared)
                for index in list(active):
                    seed_step(train.seed, step, rank, part)
                    arm = arms[index]
                    with (
                        _surviving(arm, keep_going, problems, index, active),
                        arm.timed(several),
                        arm.measured(step),
                    ):
                        arm.accumulate(batch, shared, now, part, count, targets)
                        if part + 1 == count:
                            arm.finish(step)
            last, stopping = step == train.steps, any_process(fabric, stop.requested, device)
            for index in list(active):
                with _surviving(arms[index], keep_going, problems, index, active):
                    arms[index].close_step(step, stopping, wait=several)
            if len(problems) == len(arms):
                break
            if stopping and not last:
                raise RunStopped(f"stopped after step {step} of {train.steps}; the checkpoint is written", stop.code)
    return [_trained(arm, problems.get(index)) for index, arm in enumerate(arms)]


@contextmanager
def _teaching(arms: Sequence[Arm], device: torch.device, wait: bool) -> Iterator[None]:
    """Count the time inside as a pass of the common teacher for ``arms``."""
    began = time.perf_counter()
    yield
    if wait and device.type == "cuda":
        torch.cuda.synchronize(device)
    spent = time.perf_counter() - began
    for arm in arms:
        arm.recorder.teach(spent, 1 / len(arms))


@contextmanager
def _surviving(arm: Arm, keep_going: bool, problems: dict[int, str], index: int, active: list[int]) -> Iterator[None]:
    """Note the failure of an arm among others instead of passing it on.

    Memory that is short in one of several processes ends them all: the others would wait for it.
    """
    try:
        yield
        return
    except (SegtailorError, torch.OutOfMemoryError) as error:
        short = isinstance(error, torch.OutOfMemoryError)
        if not keep_going or (short and arm.fabric.world_size > 1):
            raise
        problems[index] = "out of memory" if short else str(error)
    active.remove(index)
    arm.drop()  # what it held is free for the others


def _trained(arm: Arm, problem: str | None) -> Trained:
    score = None if problem is not None else arm.score()
    state, spent = arm.state, arm.recorder
    times = state.seconds, spent.teacher_seconds, spent.teacher_seconds_alone
    return Trained(arm.subject, score, state.best_miou, state.best_step, *times, state.peak_bytes or None, problem)


def _note_few_images(fabric: Any, entries: Sequence[tuple[Learner, Task]], micro: int) -> None:
    """Say it when batch norm sees few images at a time."""
    task = entries[0][1]
    if task.unlabelled is not None and not all(learner.uses_shared for learner, _ in entries):
        micro = mix_of(task.data.unlabelled, task.train.batch).fewest_labelled(micro)  # they pass over the others
    synced = fabric.world_size > 1 and task.train.sync_batchnorm and fabric.device.type == "cuda"
    seen = micro * fabric.world_size if synced else micro
    subjects = [learner.subject for learner, _ in entries if learner.subject is not None]
    normed = any(
        isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for subject in subjects for part in subject.modules()
    )
    if normed and seen < FEW_IMAGES and fabric.is_global_zero:
        print(f"note: batch norm sees {seen} images at a time; scores may suffer below {FEW_IMAGES}", file=sys.stderr)
