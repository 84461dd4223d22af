"""What the KT terms cost: seconds against the networks' own, and memory above the networks' peak.

    python benchmarks/loss_cost.py                      # DeepLabV3 R101 to R18, batch 2, 512 x 1024, 2 threads
    python benchmarks/loss_cost.py --size 128 256 --out /dev/null

Networks: teacher forward, student forward and backward (from given gradients of its logits, without a task loss, so
that nothing but the networks is in the yardstick). Terms: forward and backward of all KT terms on these outputs. Peaks
are of the resident set, each in a process of its own that does one training step.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from published_kt import published_terms
from segtailor.methods import Method, create_method
from segtailor.methods.tailoring.recombination import FeatureTailoring
from segtailor.models import SegOutput, Teacher, create_model

ROOT = Path(__file__).resolve().parents[1]
CLASSES = 19
PROGRESS = {"early": 0.1, "late": 0.9}
FORMS = ("published", "clean", "reference")
"""Our published and clean variants, and the published formulation with loops."""


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(json.dumps(peak_of_step(arguments, *arguments.peak)))
        return
    result: dict[str, Any] = {
        "setting": {
            "teacher": arguments.teacher,
            "student": arguments.student,
            "batch": arguments.batch,
            "size": arguments.size,
            "threads": arguments.threads,
            "torch": torch.__version__,
            "machine": platform.machine(),
        },
        "largest_difference_from_golden": check_reference(),
        "seconds": measure_seconds(arguments),
    }
    if not arguments.no_memory:
        result["peak_bytes"] = measure_peaks(arguments)
    report(result)
    if str(arguments.out) != os.devnull:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(result, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", default="deeplabv3-resnet101")
    parser.add_argument("--student", default="deeplabv3-resnet18")
    parser.add_argument("--size", type=int, nargs=2, default=[512, 1024], help="crop, height and width")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="timed repeats; the median is reported")
    parser.add_argument("--no-memory", action="store_true", help="skip the peaks")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "loss_cost.json")
    parser.add_argument("--peak", nargs=2, metavar=("FORM", "PHASE"), help=argparse.SUPPRESS)
    return parser.parse_args()


def scene(batch: int, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return random images and blocky labels with void, as uint8."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, *size), generator=generator, dtype=torch.uint8)
    blocks = torch.randint(0, CLASSES + 1, (batch, 9, 13), generator=generator)
    blocks[blocks == CLASSES] = 255
    target = torch.nn.functional.interpolate(blocks.unsqueeze(1).float(), size=size, mode="nearest")
    return images, target.squeeze(1).to(torch.uint8)


class Bench:
    """The two networks, one batch, and the methods for their widths."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.teacher = Teacher(create_model(arguments.teacher, CLASSES))
        self.student = create_model(arguments.student, CLASSES).train()
        self.images, self.target = scene(arguments.batch, (arguments.size[0], arguments.size[1]))
        widths = self.student.tap_channels, self.teacher.tap_channels
        self.methods: dict[str, Method] = {
            variant: create_method("kt", CLASSES, *widths, variant=variant) for variant in ("published", "clean")
        }

    def guide(self) -> SegOutput:
        """Run the teacher, and keep of its output what KT reads."""
        return self.methods["published"].select(self.teacher(self.images))

    def backward(self, output: SegOutput, extra: Tensor | None = None) -> None:
        """Run the student's backward from unit-size gradients of its logits, and from ``extra``."""
        heads = [head for head in (output.logits, output.aux_logits) if head is not None]
        gradients: list[Tensor | None] = [torch.full_like(head, 1e-3) for head in heads]
        if extra is not None:
            heads.append(extra)
            gradients.append(None)
        torch.autograd.backward(heads, gradients)

    def terms(self, form: str, phase: str, student: SegOutput, teacher: SegOutput) -> Tensor:
        """Return the sum of all KT terms."""
        if form == "reference":
            values = published_terms(student, teacher, self.target, self.modules(), phase == "early")
        else:
            values = self.methods[form](student, teacher, self.target, PROGRESS[phase])
        return torch.stack(list(values.values())).sum()

    def modules(self) -> FeatureTailoring:
        module = self.methods["published"].get_submodule("tailoring.decoder")
        assert isinstance(module, FeatureTailoring)
        return module


def leaves(output: SegOutput) -> SegOutput:
    """Return the output cut off from its network, each tensor asking for a gradient."""

    def leaf(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.detach().clone().requires_grad_()

    logits = output.logits.detach().clone().requires_grad_()
    feature = leaf(output.feature)
    return SegOutput(logits, leaf(output.aux_logits), feature, leaf(output.classifier_input))


def seconds_of(action: Callable[[], Any], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return times


def measure_seconds(arguments: argparse.Namespace) -> dict[str, list[float]]:
    bench = Bench(arguments)
    kept: dict[str, SegOutput] = {}

    def run_teacher() -> None:
        kept["teacher"] = bench.guide()

    def run_student() -> None:
        output = bench.student(bench.images)
        kept["student"] = leaves(output)
        bench.backward(output)

    run_teacher()
    run_student()
    seconds = {
        "teacher": seconds_of(run_teacher, arguments.repeats),
        "student": seconds_of(run_student, arguments.repeats),
    }
    for form in FORMS:
        for phase in PROGRESS:

            def run_terms(form: str = form, phase: str = phase) -> None:
                torch.autograd.backward(bench.terms(form, phase, kept["student"], kept["teacher"]))

            if form != "reference":
                run_terms()
            seconds[f"{form}.{phase}"] = seconds_of(run_terms, arguments.repeats)
    return seconds


def measure_peaks(arguments: argparse.Namespace) -> dict[str, int]:
    modes = [("networks", "early"), *((form, phase) for form in FORMS for phase in PROGRESS)]
    # Every tensor gets pages of its own, given back when it is freed: the resident set is then what is alive.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    options = ["--teacher", arguments.teacher, "--student", arguments.student, "--batch", str(arguments.batch)]
    options += ["--size", *map(str, arguments.size), "--threads", str(arguments.threads)]
    peaks = {}
    for form, phase in modes:
        command = [sys.executable, __file__, *options, "--peak", form, phase]
        output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        peaks["networks" if form == "networks" else f"{form}.{phase}"] = int(output.splitlines()[-1])
    return peaks


def peak_of_step(arguments: argparse.Namespace, form: str, phase: str) -> int:
    """Do one step and return the largest resident set on the way, in bytes."""
    bench = Bench(arguments)
    if form == "networks":
        bench.teacher(bench.images)
        output = bench.student(bench.images)
        bench.backward(output)
    else:
        guide = bench.guide()
        output = bench.student(bench.images)
        bench.backward(output, bench.terms(form, phase, output, guide))
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def check_reference() -> float:
    """Compare the reference with the golden figures and return the largest relative difference."""
    # In float64, as the figures were computed: in float32 a sum over label-sized maps is off by up to 1e-4.
    stored = load_file(ROOT / "tests" / "golden" / "case_a.safetensors")
    golden = {key: value.double() if value.is_floating_point() else value for key, value in stored.items()}
    modules = FeatureTailoring(128, 256, trained=False, seed=0).double()
    prefix = "modules.kt."
    modules.load_state_dict({key[len(prefix) :]: value for key, value in golden.items() if key.startswith(prefix)})
    outputs = [
        SegOutput(golden[f"{role}_logits"], golden[f"{role}_aux_logits"], classifier_input=golden[f"{role}_feature"])
        for role in ("student", "teacher")
    ]
    worst = 0.0
    for phase in PROGRESS:
        terms = published_terms(outputs[0], outputs[1], golden["target"], modules, phase == "early")
        names = {"kd": "kd.main", "lt_all": "lt.all", "lt_class": "lt.class", "lt_nonclass": "lt.nonclass"}
        names |= {"ft": f"ft.{phase}", "contrastive": f"contrastive.{phase}"}
        for term, name in names.items():
            expected = golden[f"kt.{name}.value"].item()
            worst = max(worst, abs(terms[term].item() - expected) / expected)
    if worst > 1e-5:
        raise SystemExit(f"the reference differs from the golden figures by {worst:.1e}")
    return worst


def report(result: dict[str, Any]) -> None:
    seconds = {name: statistics.median(times) for name, times in result["seconds"].items()}
    networks = seconds["teacher"] + seconds["student"]
    print(f"reference against the golden figures: relative difference {result['largest_difference_from_golden']:.1e}")
    print(
        f"networks: teacher {seconds['teacher']:.2f} s, student {seconds['student']:.2f} s, together {networks:.2f} s"
    )
    peaks = result.get("peak_bytes", {})
    if peaks:
        print(f"networks: peak {peaks['networks'] / 1e6:.0f} MB")
    for form in FORMS:
        for phase in PROGRESS:
            name = f"{form}.{phase}"
            line = f"{name:17} {seconds[name]:7.2f} s  {100 * seconds[name] / networks:6.1f} % of the networks"
            if name in peaks:
                line += f"  {(peaks[name] - peaks['networks']) / 1e6:+7.0f} MB"
            print(line)


if __name__ == "__main__":
    main()
