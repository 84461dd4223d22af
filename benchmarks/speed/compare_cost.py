"""What lockstep saves: ten arms in one comparison against ten separate runs, in one run.

    python benchmarks/speed/compare_cost.py                 # DeepLabV3 R101 to R18, 256 x 512, batch 2, 2 threads
    python benchmarks/speed/compare_cost.py --size 64 128 --teacher deeplabv3-resnet18 --out /dev/null

Both sides do the same training steps by the package's own loop on random images: once all arms together with one pass
of the teacher a step, once each arm by itself. Building, scoring and saving are outside of what is timed.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench import save, scene, setting, setting_parser
from segtailor.config import DataConfig, EvaluateConfig, OptimizerConfig, TrainConfig
from segtailor.data.loader import Batch
from segtailor.engine.launch import launch
from segtailor.engine.loop import ArmTrainer, RunSpec, seed_step
from segtailor.engine.module import Distiller
from segtailor.losses import Step
from segtailor.methods import create_method
from segtailor.models import Teacher, create_model

CLASSES = 19
ARMS = ("none", "kd", "fitnet", "at", "skd", "ifvd", "cwd", "dist", "feature", "kt")


def main() -> None:
    parser = setting_parser(__doc__.splitlines()[0] if __doc__ else None, repeats=2, out="compare_cost.json")
    parser.set_defaults(size=[256, 512])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    config = TrainConfig(
        steps=100, batch=arguments.batch, accelerator="cpu", optimizer=OptimizerConfig(name="sgd", lr=0.01)
    )
    fabric = launch(config)
    images, target = scene(arguments.batch, (arguments.size[0], arguments.size[1]))
    batch = Batch(images, target, [str(index) for index in range(arguments.batch)])
    teacher = Teacher(create_model(arguments.teacher, CLASSES))
    with tempfile.TemporaryDirectory() as folder:
        arms = [build(fabric, name, arguments.student, teacher, config, Path(folder) / name) for name in ARMS]
        for arm in arms:  # warm-up, not timed
            step([arm], teacher, batch, 1)
        together, separate = [], []
        for number in range(arguments.repeats):
            together.append(timed(arms, teacher, batch, 2 + 2 * number))
            separate.append([timed([arm], teacher, batch, 3 + 2 * number) for arm in arms])
        for arm in arms:
            arm.recorder.close()
    one, ten = min(together), sum(min(times) for times in zip(*separate, strict=True))
    result: dict[str, Any] = {
        "setting": {**setting(arguments), "arms": list(ARMS)},
        "seconds_together": together,
        "seconds_separate": separate,
        "ratio": one / ten,
    }
    print(f"{len(ARMS)} arms together {one:.2f} s a step, separately {ten:.2f} s: {100 * one / ten:.0f} %")
    save(arguments.out, result)


def build(fabric: Any, name: str, student: str, teacher: Teacher, config: TrainConfig, folder: Path) -> ArmTrainer:
    torch.manual_seed(0)
    model = create_model(student, CLASSES)
    method = create_method(name, CLASSES, model.tap_channels, teacher.tap_channels)
    data: Any = None  # batches are given, and nothing is scored
    spec = RunSpec(name, folder, data, data, DataConfig(), config, EvaluateConfig())
    return ArmTrainer(fabric, Distiller(model, {name: method}), spec, quiet=True)


def timed(arms: list[ArmTrainer], teacher: Teacher, batch: Batch, number: int) -> float:
    began = time.perf_counter()
    step(arms, teacher, batch, number)
    return time.perf_counter() - began


def step(arms: list[ArmTrainer], teacher: Teacher, batch: Batch, number: int) -> None:
    """One step as the loop does it."""
    for arm in arms:
        arm.begin(number)
    taught = any(arm.objective.uses_teacher for arm in arms)
    shared = teacher(batch.images, batch.target) if taught else None
    for arm in arms:
        seed_step(0, number, 0)
        arm.accumulate(batch, [shared], Step(number / 100, [batch.target]), 0, 1, None)
        arm.finish(number)


if __name__ == "__main__":
    main()
