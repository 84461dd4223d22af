"""Time of a training step in two versions of the package, alternating on one machine.

    python benchmarks/speed/step_speed.py OLD_SRC NEW_SRC            # folders that hold the package `segtailor`
    python benchmarks/speed/step_speed.py OLD_SRC NEW_SRC --blocks 3 --out /dev/null

Each version has a process that waits for its turn. A block is a short training by the package's own loop on the same
random images; a step lasts from one batch to the next, so the teacher, the loop and its records are in it, and scoring
and saving are not. The versions take turns, block by block, in the order A B B A. Wall-clock and processor time are
both kept; a version's figure is the least of its blocks' medians: what the machine does beside it only ever adds, and
adds little to processor time. `ratio` is new over old.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

METHODS: dict[str, dict[str, Any]] = {"cwd": {}, "kt": {"variant": "published"}}
TEACHER, STUDENT, CLASSES = "deeplabv3plus-tf_efficientnet_lite0", "deeplabv3plus-lcnet_050", 11
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
Times = dict[str, list[float]]
RESULT = Path(__file__).parent / "results" / "step_speed.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--size", type=int, nargs=2, default=[96, 128], help="crop, height and width")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a block")
    parser.add_argument("--blocks", type=int, default=10, help="blocks of each version and method")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    setting = {key: getattr(arguments, key) for key in ("size", "batch", "threads", "steps", "blocks")}
    versions = {"old": start(arguments.old, setting), "new": start(arguments.new, setting)}
    blocks: dict[str, dict[str, list[Times]]] = {name: {"old": [], "new": []} for name in METHODS}
    for name in METHODS:  # warm-up, not kept
        for process in versions.values():
            ask(process, name)
    for number in range(arguments.blocks):
        for name in METHODS:
            for version in ("old", "new") if number % 2 == 0 else ("new", "old"):
                blocks[name][version].append(ask(versions[version], name))
    result: dict[str, Any] = {
        "setting": {**setting, "teacher": TEACHER, "student": STUDENT, "methods": METHODS},
        "torch": json.loads(tell(versions["new"], "torch")),
        "machine": platform.machine(),
        "methods": {},
    }
    for name, found in blocks.items():
        result["methods"][name] = {"blocks": found, **{clock: compared(found, clock) for clock in CLOCKS}}
        for clock in CLOCKS:
            old, new, ratio = (result["methods"][name][clock][key] for key in ("old", "new", "ratio"))
            print(
                f"{name}, {clock}: old {1000 * old:.1f} ms, new {1000 * new:.1f} ms a step: {100 * (ratio - 1):+.1f} %"
            )
    for process in versions.values():
        tell(process, "end")
    if str(arguments.out) != "/dev/null":
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def compared(blocks: dict[str, list[Times]], clock: str) -> dict[str, float]:
    """Return both versions' figures, their ratio, and the median ratio of blocks that ran one after the other."""
    old, new = ([statistics.median(block[clock]) for block in blocks[version]] for version in ("old", "new"))
    ratios = [after / before for before, after in zip(old, new, strict=True)]
    return {
        "old": min(old), "new": min(new), "ratio": min(new) / min(old), "median_of_ratios": statistics.median(ratios)
    }  # fmt: skip


def start(source: Path, setting: dict[str, Any]) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(source.resolve()), "OMP_NUM_THREADS": str(setting["threads"])}
    words = [sys.executable, str(Path(__file__).resolve()), "--worker", json.dumps(setting)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)


def tell(process: subprocess.Popen[str], word: str) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    print(word, file=process.stdin, flush=True)
    return process.stdout.readline()


def ask(process: subprocess.Popen[str], name: str) -> Times:
    answer: Times = json.loads(tell(process, name))
    return answer


def work(setting: dict[str, Any]) -> None:
    """Answer each name of a method with the times of a block's steps."""
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the package prints is no answer
    torch.set_num_threads(setting["threads"])
    for line in sys.stdin:
        word = line.strip()
        answer: Any = None
        if word == "torch":
            answer = torch.__version__
        elif word != "end":
            answer = block(word, METHODS[word], setting)
        print(json.dumps(answer), file=answers, flush=True)
        if word == "end":
            return


def block(name: str, options: dict[str, Any], setting: dict[str, Any]) -> Times:
    """Train a student for a few steps by the package's loop; returns the times from batch to batch, by clock."""
    import torch

    from segtailor.config import DataConfig, EvaluateConfig, TrainConfig
    from segtailor.data.base import Sample
    from segtailor.data.loader import Batch
    from segtailor.engine.launch import launch
    from segtailor.methods import create_method
    from segtailor.models import create_model
    from segtailor.models.teacher import Teacher

    loop: Any = importlib.import_module("segtailor.engine.loop")
    if hasattr(loop, "RunSpec"):
        spec_type, distiller = loop.RunSpec, importlib.import_module("segtailor.engine.module").Distiller
    else:  # the names of 0.1
        spec_type, distiller = loop.Task, importlib.import_module("segtailor.engine.distiller").Distiller
    size, steps = tuple(setting["size"]), setting["steps"] + 2
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (setting["batch"], 3, *size), generator=draw, dtype=torch.uint8)
    target = torch.randint(0, CLASSES, (setting["batch"], *size), generator=draw, dtype=torch.uint8)
    times: Times = {clock: [] for clock in CLOCKS}

    def batches(*_: Any, **__: Any) -> Iterator[Batch]:
        while True:
            for clock, read in CLOCKS.items():
                times[clock].append(read())
            yield Batch(images, target, [str(index) for index in range(len(images))])

    class One:
        name, split, license, palette = "random", "val", "none", ((0, 0, 0),) * CLASSES
        classes, mean_color, num_classes = tuple(str(index) for index in range(CLASSES)), (0, 0, 0), CLASSES

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Sample:
            return Sample(images[0], target[0], str(index))

    data: Any = One()
    train = TrainConfig(steps=steps, batch=setting["batch"], accelerator="cpu", threads=setting["threads"])
    torch.manual_seed(0)
    student, teacher = create_model(STUDENT, CLASSES), Teacher(create_model(TEACHER, CLASSES))
    method = create_method(name, CLASSES, student.tap_channels, teacher.tap_channels, **options)
    loop.train_batches = batches
    with tempfile.TemporaryDirectory() as folder:
        spec = spec_type(name, Path(folder), data, data, DataConfig(), train, EvaluateConfig(every=steps))
        loop.fit(launch(train), distiller(student, {name: method}), teacher, spec)
    return {clock: [after - before for before, after in pairwise(read[1:])] for clock, read in times.items()}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(json.loads(sys.argv[2]))
    else:
        main()
