"""Arms in lockstep: one that fails stops no other, and is trained on alone later."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from segtailor.config import DataConfig, EvaluateConfig, TrainConfig
from segtailor.data import create_dataset
from segtailor.data.loader import Batch
from segtailor.engine import loop
from segtailor.engine.launch import launch
from segtailor.engine.logging import RunState, read_metrics
from segtailor.engine.loop import ArmTrainer, RunSpec, Trained, fit_together
from segtailor.engine.module import Distiller
from segtailor.engine.runs import load_checkpoint, save_checkpoint
from segtailor.errors import SegtailorError
from segtailor.methods import create_method
from segtailor.models import create_model
from segtailor.models.network import SegOutput
from segtailor.models.teacher import Teacher
from tiny import TINY_DATA, TINY_MODEL

TRAIN = TrainConfig(steps=4, batch=4, threads=1, log_every=2, checkpoint_every=1)


def trained(folder: Path, names: Sequence[str], keep_going: bool = True) -> dict[str, Trained]:
    """Train a student alone for each of ``names``, all in lockstep."""
    data = DataConfig(**{**TINY_DATA, "length": 8})
    train, val = (create_dataset(data, split, training=split == "train") for split in ("train", "val"))
    entries = []
    for name in names:
        torch.manual_seed(len(name))
        objective, evaluate = Distiller(create_model(TINY_MODEL, 9), {}), EvaluateConfig(every=4, batch=8)
        entries.append((objective, RunSpec(name, folder / name, train, val, data, TRAIN, evaluate)))
    results = fit_together(launch(TRAIN), entries, None, keep_going)
    return dict(zip(names, results, strict=True))


def short_of_memory(monkeypatch: pytest.MonkeyPatch, name: str, step: int) -> None:
    finish = ArmTrainer.finish

    def finish_or_fail(self: ArmTrainer, now: int) -> None:
        if self.spec.label == name and now == step:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finish(self, now)

    monkeypatch.setattr(ArmTrainer, "finish", finish_or_fail)


def weights(result: Trained) -> dict[str, Tensor]:
    return dict(result.student.state_dict())


def test_an_arm_without_memory_is_dropped_and_trained_on_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained(tmp_path / "whole", ["a", "bb"])
    with monkeypatch.context() as patched:
        short_of_memory(patched, "bb", 3)
        parts = trained(tmp_path / "parts", ["a", "bb"])
    assert parts["bb"].problem == "out of memory"
    assert parts["bb"].score is None
    assert parts["a"].problem is None
    again = trained(tmp_path / "parts", ["bb"])
    assert again["bb"].problem is None
    torch.testing.assert_close(weights(parts["a"]), weights(expected["a"]), rtol=0, atol=0)
    torch.testing.assert_close(weights(again["bb"]), weights(expected["bb"]), rtol=0, atol=0)


def test_an_arm_that_is_dropped_keeps_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[ArmTrainer] = []
    init = ArmTrainer.__init__

    def noted(self: ArmTrainer, *arguments: Any, **named: Any) -> None:
        init(self, *arguments, **named)
        made.append(self)

    monkeypatch.setattr(ArmTrainer, "__init__", noted)
    short_of_memory(monkeypatch, "bb", 2)
    trained(tmp_path, ["a", "bb"])
    assert [bool(arm.optimizer.state) for arm in made] == [True, False]
    assert all(parameter.grad is None for parameter in made[1].objective.parameters())


def test_a_run_by_itself_ends_where_memory_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_of_memory(monkeypatch, "a", 2)
    with pytest.raises(torch.OutOfMemoryError):
        trained(tmp_path, ["a"], keep_going=False)


def test_where_batches_end_early_the_last_whole_step_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = trained(tmp_path / "whole", ["a"])
    batches = loop.train_batches

    def cut_off(*arguments: Any, **named: Any) -> Iterator[Batch]:
        yield from islice(batches(*arguments, **named), 3)
        raise SegtailorError("a data-loading process was killed")

    with monkeypatch.context() as patched:
        patched.setattr(loop, "train_batches", cut_off)
        patched.setattr(TRAIN, "checkpoint_every", 4)
        with pytest.raises(SegtailorError, match="was killed"):
            trained(tmp_path / "parts", ["a"])
    assert load_checkpoint(tmp_path / "parts" / "a" / "checkpoints" / "last.ckpt")["progress"]["step"] == 3
    again = trained(tmp_path / "parts", ["a"])
    torch.testing.assert_close(weights(again["a"]), weights(expected["a"]), rtol=0, atol=0)
    steps = [
        line["step"] for line in read_metrics(tmp_path / "parts" / "a" / "metrics.jsonl") if line["kind"] == "train"
    ]
    assert steps == [2, 3, 4]


def test_a_checkpoint_that_does_not_fit_is_one_line(tmp_path: Path) -> None:
    trained(tmp_path, ["a"])
    path = tmp_path / "a" / "checkpoints" / "last.ckpt"
    state = load_checkpoint(path)
    state["distiller"] = {f"other.{name}": value for name, value in state["distiller"].items()}
    save_checkpoint(path, state)
    with pytest.raises(SegtailorError, match=r"last.ckpt is of another version .*; finish the run with") as caught:
        trained(tmp_path, ["a"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wanted", [True, False])
def test_student_and_adversary_share_their_batch_norms_moments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    """As with two processes on GPUs."""
    network = create_model(TINY_MODEL, 9)
    method = create_method("adversarial", 9, network.tap_channels, network.tap_channels, variant="published", width=8)
    data = DataConfig(**{**TINY_DATA, "length": 4})
    sets = create_dataset(data, "train", training=True), create_dataset(data, "val", training=False)
    train = TRAIN.model_copy(update={"sync_batchnorm": wanted})
    fabric = launch(TRAIN)
    monkeypatch.setattr(loop, "_synchronizes", lambda _, train: train.sync_batchnorm)
    spec = RunSpec("a", tmp_path / "a", *sets, data, train, EvaluateConfig(every=4, batch=4))
    arm = ArmTrainer(fabric, Distiller(network, {"adversarial": method}), spec)
    assert method.adversary is not None
    for module in (arm.objective, method.adversary):
        norms = [part for part in module.modules() if isinstance(part, torch.nn.modules.batchnorm._BatchNorm)]
        assert norms
        assert all(isinstance(part, torch.nn.SyncBatchNorm) == wanted for part in norms)


@pytest.mark.parametrize(
    ("processes", "train", "device", "synchronizes"),
    [
        (2, {}, "cuda", True),
        (1, {}, "cuda", False),
        (2, {"sync_batchnorm": False}, "cuda", False),
        (2, {}, "cpu", False),
    ],
)
def test_batch_norm_is_synchronized_between_processes_on_gpus(
    processes: int, train: dict[str, Any], device: str, synchronizes: bool
) -> None:
    fabric = SimpleNamespace(world_size=processes, device=torch.device(device))
    assert loop._synchronizes(fabric, TrainConfig(steps=4, batch=4, **train)) == synchronizes


def test_memory_is_measured_on_a_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's own counters are read where the step is logged; the bytes that others hold are taken off."""
    assert trained(tmp_path, ["a"])["a"].state.peak_bytes == 0
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1000)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 5000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    fabric, spec = SimpleNamespace(device=torch.device("cuda")), SimpleNamespace(train=TRAIN)
    arm: Any = SimpleNamespace(fabric=fabric, spec=spec, state=RunState(), _held=lambda: 600)
    with ArmTrainer.measured(arm, 1):
        assert arm.state.peak_bytes == 0
    with ArmTrainer.measured(arm, 2):
        pass
    assert arm.state.peak_bytes == 4600


@pytest.mark.parametrize("arms", [1, 2])
def test_the_teachers_maps_are_freed_before_the_last_backward(
    arms: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    teacher, maps, alive = Teacher(create_model(TINY_MODEL, 9)), [], []
    forward = Teacher.forward

    def noted(self: Teacher, *arguments: Any) -> Any:
        output = forward(self, *arguments)
        maps.append(weakref.ref(output.stages[-1]))
        return output

    def watch(student: Any, arguments: Any, output: SegOutput) -> None:
        if output.logits.requires_grad:
            output.stages[0].register_hook(lambda _: alive.append(maps[-1]() is not None))  # late in backward

    monkeypatch.setattr(Teacher, "forward", noted)
    data = DataConfig(**{**TINY_DATA, "length": 8})
    train, val = (create_dataset(data, split, training=split == "train") for split in ("train", "val"))
    entries = []
    for index in range(arms):
        student = create_model(TINY_MODEL, 9)
        student.register_forward_hook(watch)
        method = create_method("stagewise", 9, student.tap_channels, teacher.tap_channels)
        spec = RunSpec(str(index), tmp_path / str(index), train, val, data, TRAIN, EvaluateConfig(every=4, batch=8))
        entries.append((Distiller(student, {"stagewise": method}), spec))
    fit_together(launch(TRAIN), entries, teacher)
    assert alive == [*[True] * (arms - 1), False] * TRAIN.steps
