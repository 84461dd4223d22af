"""Two processes train what one process trains, across Knowledge Tailoring's switch; so do two micro-batches."""

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import segtailor
from processes import command_under_torchrun, under_torchrun
from segtailor.config import DataConfig, EvaluateConfig, OptimizerConfig, ScheduleConfig, TrainConfig
from segtailor.data import create_dataset
from segtailor.data.loader import Batch
from segtailor.engine.launch import launch
from segtailor.engine.logging import read_metrics
from segtailor.engine.loop import ArmTrainer, RunSpec, Trained, fit
from segtailor.engine.module import Distiller
from segtailor.engine.runs import RunStopped, StopRequest, load_checkpoint
from segtailor.evaluation import evaluate_model
from segtailor.losses import Step
from segtailor.methods import create_method
from segtailor.models import create_model, save_model
from segtailor.models.network import SegOutput
from tiny import TINY_DATA, TINY_MODEL, tiny_distill

STEPS, BATCH, CLASSES = 4, 4, 3


class Plain(nn.Module):
    """A network without batch norm, whose batches therefore split exactly."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.classifier = nn.Conv2d(width, CLASSES, 1)
        self.aux = nn.Conv2d(width, CLASSES, 1)

    def forward(self, images: Tensor, target: Tensor | None = None) -> SegOutput:
        feature = torch.relu(self.stem(images.float() / 255))
        return SegOutput(self.classifier(feature), self.aux(feature), feature, feature, (feature,))

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        return nn.functional.interpolate(logits, size, mode="bilinear")


def batch(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (BATCH, 3, 16, 24), generator=generator, dtype=torch.uint8)
    target = torch.randint(0, CLASSES, (BATCH, 16, 24), generator=generator, dtype=torch.uint8)
    # Void is spread unevenly, so that a mean of means would differ from the mean.
    target[0, :12] = 255
    target[3] = 255
    return Batch(images, target, [str(index) for index in range(BATCH)])


def trained(world: int, rank: int, micro: int, variant: str, folder: Path) -> dict[str, Tensor]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    student, teacher = Plain(4), Plain(6).eval().requires_grad_(False)
    method = create_method("kt", CLASSES, {"feature": 4}, {"feature": 6}, variant=variant, tuning_point=0.6)
    distiller: Any = Distiller(student, {"kt": method})  # type: ignore[arg-type]
    optimizer = OptimizerConfig(name="sgd", lr=0.05, weight_decay=0.0)
    schedule = ScheduleConfig(power=0.0)
    config = TrainConfig(accelerator="cpu", steps=STEPS, batch=BATCH, optimizer=optimizer, schedule=schedule)
    fabric = launch(config, find_unused_parameters=True)
    data: Any = None  # the arm is given its batches here, and is not scored
    arm = ArmTrainer(
        fabric, distiller, RunSpec("kt", folder, data, data, DataConfig(), config, EvaluateConfig()), quiet=True
    )
    for step in range(1, STEPS + 1):
        whole = batch(step)
        local = BATCH // world
        parts = [slice(rank * local + i, rank * local + i + micro) for i in range(0, local, micro)]
        batches = [Batch(whole.images[p], whole.target[p], whole.names[p]) for p in parts]
        arm.begin(step)
        now = Step(step / STEPS, [part.target for part in batches])
        for index, part in enumerate(batches):
            arm.accumulate(part, [teacher(part.images)], now, index, len(batches), None)
        arm.finish(step)
    arm.recorder.close()
    return {name: value.clone() for name, value in distiller.state_dict().items()}


def worker(rank: int, variant: str, folder: str) -> None:
    torch.save(trained(2, rank, 2, variant, Path(folder) / f"run{rank}"), Path(folder) / f"{rank}.pt")


@pytest.mark.parametrize("variant", ["published", "clean"])
def test_two_processes_equal_one(tmp_path: Path, variant: str) -> None:
    under_torchrun(worker, variant, str(tmp_path))
    one = trained(1, 0, BATCH, variant, tmp_path / "one")
    for rank in range(2):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in one.items():
            torch.testing.assert_close(both[name], value, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("variant", ["published", "clean"])
def test_two_micro_batches_equal_one(tmp_path: Path, variant: str) -> None:
    one, two = (trained(1, 0, micro, variant, tmp_path / str(micro)) for micro in (BATCH, 2))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-6)
    untrained = Plain(4).state_dict()
    assert any(not torch.equal(one[f"student.{name}"], value) for name, value in untrained.items())


@pytest.mark.parametrize("torchrun", [True, False])
def test_the_command_runs_on_two_processes(tmp_path: Path, teacher_run: Path, torchrun: bool) -> None:
    recipe = tmp_path / "two.yaml"
    made = {**tiny_distill(tmp_path, teacher_run, "two", steps=3), "baseline": "train" if torchrun else "none"}
    recipe.write_text(yaml.safe_dump({**made, "evaluate": {"every": 3, "batch": 32, "samples": 1}}))
    words = ["distill", str(recipe)]
    if torchrun:
        command_under_torchrun(words, tmp_path / "output.txt")
    else:
        words = [sys.executable, "-m", "segtailor.cli", *words, "--train.devices", "2"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "two" / "results.json").read_text())
    assert results["environment"]["processes"] == "2"
    roles = ["teacher", "alone", "distilled"] if torchrun else ["teacher", "distilled"]
    assert [row["role"] for row in results["rows"]] == roles
    steps = [line["step"] for line in read_metrics(tmp_path / "two" / "metrics.jsonl") if line["kind"] == "train"]
    assert steps == [1, 2, 3]


def whole_and_in_parts(rank: int, folder: str) -> None:
    """Train twice, the second time with a stop after the first step; batch norm sees each process's images alone."""
    data = DataConfig(**TINY_DATA)
    train, val = (create_dataset(data, split, training=split == "train") for split in ("train", "val"))
    config = TrainConfig(steps=10, batch=4, threads=1, ema=0.5, optimizer=OptimizerConfig(lr=0.005))

    def fitted(name: str) -> Trained:
        torch.manual_seed(0)
        learner = Distiller(create_model(TINY_MODEL, 9), {})
        return fit(launch(config), learner, None, RunSpec("x", Path(folder) / name, train, val, data, config, every))

    every = EvaluateConfig(every=10, batch=8)
    whole = fitted("whole")
    if rank == 0:
        save_model(whole.student, Path(folder) / "student.safetensors")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(StopRequest, "requested", True)
        with pytest.raises(RunStopped):
            fitted("parts")
    fitted("parts")


def test_scores_of_two_processes_are_those_of_the_saved_student(tmp_path: Path) -> None:
    under_torchrun(whole_and_in_parts, str(tmp_path))
    whole, parts = (
        [line for line in read_metrics(tmp_path / name / "metrics.jsonl") if line["kind"] == "evaluate"]
        for name in ("whole", "parts")
    )
    ends = [load_checkpoint(tmp_path / name / "checkpoints" / "last.ckpt") for name in ("whole", "parts")]
    val = create_dataset(DataConfig(**TINY_DATA), "val", training=False)
    averaged = segtailor.load_model(tmp_path / "student.safetensors")
    student = copy.deepcopy(averaged)
    state = ends[0]["distiller"]
    student.load_state_dict({name[8:]: value for name, value in state.items() if name.startswith("student.")})
    saved = {"ema": evaluate_model(averaged, val, batch=8), "student": evaluate_model(student, val, batch=8)}
    assert saved["ema"].iou != saved["student"].iou
    for lines in (whole, parts):  # neither is changed by a stop on the way
        assert [line["weights"] for line in lines] == list(saved)
        for line, score in zip(lines, saved.values(), strict=True):
            assert (line["miou"], line["iou"], line["pixel_accuracy"]) == (score.miou, score.iou, score.pixel_accuracy)
    for part in ("distiller", "average"):
        torch.testing.assert_close(ends[0][part], ends[1][part], rtol=0, atol=0)
