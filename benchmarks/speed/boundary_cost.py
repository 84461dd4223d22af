"""What boundary and calibration scores cost: seconds of an evaluation with them against the same one without.

    python benchmarks/speed/boundary_cost.py                 # DeepLabV3-ResNet18, 19 classes, 512 x 1024, 2 threads
    python benchmarks/speed/boundary_cost.py --images 2 --size 128 256 --out /dev/null

Random weights and blocky labels: what is counted does not change what it costs. The evaluations take turns, so that a
busy machine slows all of them alike; the median is reported, and how many per cent more than the plain evaluation.
As that is a small difference of large times, the measures' own time on one batch of predictions is reported too.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
from pathlib import Path
from typing import Any

import torch

from bench import CLASSES, RESULTS, save, scene, seconds_of
from segtailor.data import Sample, SegmentationDataset
from segtailor.evaluation import BoundarySettings, EvaluationResult, Metrics, evaluate_model
from segtailor.models import create_model

TARGET = 20
"""Per cent that boundary scores may add."""
ASKED: dict[str, dict[str, Any]] = {
    "plain": {},
    "boundary": {"boundary": BoundarySettings()},
    "calibration": {"calibration": True},
    "per_image": {"per_image": True},
}


class Scenes(SegmentationDataset):
    """A data set in memory, so that no reading is in the times."""

    classes = tuple(f"class {index}" for index in range(CLASSES))

    def __init__(self, count: int, size: tuple[int, int]) -> None:
        images, targets = scene(count, size)
        pairs = zip(images, targets, strict=True)
        self.items = [Sample(image, target, str(index)) for index, (image, target) in enumerate(pairs)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int, /) -> Sample:
        return self.items[index]


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    model = create_model(arguments.model, CLASSES).to(arguments.device)
    scenes = Scenes(arguments.images, (arguments.size[0], arguments.size[1]))

    def run(**asked: Any) -> EvaluationResult:
        return evaluate_model(model, scenes, device=arguments.device, batch=arguments.batch, **asked)

    run()  # the first pass allocates
    seconds: dict[str, list[float]] = {name: [] for name in ASKED}
    for _ in range(arguments.repeats):
        for name, asked in ASKED.items():
            seconds[name] += seconds_of(lambda asked=asked: run(**asked), 1)  # type: ignore[misc]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    more = {name: round(100 * (medians[name] / medians["plain"] - 1), 1) for name in ASKED if name != "plain"}
    result = {
        "setting": {
            **{key: getattr(arguments, key) for key in ("model", "images", "size", "batch", "threads", "device")},
            "torch": torch.__version__,
            "machine": platform.machine(),
        },
        "seconds": {name: [round(value, 4) for value in values] for name, values in seconds.items()},
        "percent_more_than_plain": more,
        "own_seconds_per_image": {name: own_seconds(name, arguments) for name in ("boundary", "calibration")},
    }
    print(json.dumps(result, indent=1))
    print(f"boundary scores cost {more['boundary']} % more; at most {TARGET} % is the target")
    save(arguments.out, result)


def own_seconds(name: str, arguments: argparse.Namespace) -> list[float]:
    """Time one measure alone, on predictions that are mostly right."""
    _, target = scene(arguments.batch, (arguments.size[0], arguments.size[1]))
    target = target.to(arguments.device)
    logits = torch.randn(arguments.batch, CLASSES, *arguments.size, device=arguments.device)
    logits.scatter_(1, target.roll(3, -1).clamp(max=CLASSES - 1).long().unsqueeze(1), 5.0)
    prediction = logits.argmax(1)
    metrics = Metrics(CLASSES, arguments.device, **ASKED[name])
    with torch.inference_mode():
        times = seconds_of(lambda: metrics.update(logits, prediction, target), arguments.repeats + 1)[1:]
    return [round(value / arguments.batch, 4) for value in times]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="deeplabv3-resnet18")
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--size", type=int, nargs=2, default=[512, 1024], help="of images and masks, height and width")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=5, help="timed repeats; the median is reported")
    parser.add_argument("--out", type=Path, default=RESULTS / "boundary_cost.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
