"""What the KT terms cost: seconds against the networks' own, and memory above the networks' peak.

    python benchmarks/speed/loss_cost.py                      # DeepLabV3 R101 to R18, batch 2, 512 x 1024, 2 threads
    python benchmarks/speed/loss_cost.py --size 128 256 --out /dev/null

Networks, batch and peaks are those of `bench.py`. Terms: forward and backward of all KT terms on the networks' outputs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench import (
    CLASSES,
    RESULTS,
    ROOT,
    Bench,
    leaves,
    networks_seconds,
    peak_bytes,
    peak_in_child,
    seconds_of,
    setting,
    setting_parser,
)
from published_kt import published_terms
from segtailor.methods import Method, create_method
from segtailor.methods._kt_terms import FeatureTailoring
from segtailor.models import SegOutput

PROGRESS = {"early": 0.1, "late": 0.9}
FORMS = [(form, phase) for form in ("published", "reference") for phase in PROGRESS] + [("clean", "early")]
"""Our published variant and the published formulation with loops, in both phases; clean's defaults have one."""


def main() -> None:
    arguments = parse()
    torch.set_num_threads(arguments.threads)
    if arguments.peak:
        print(json.dumps(peak_of_step(arguments, *arguments.peak)))
        return
    result: dict[str, Any] = {
        "setting": setting(arguments),
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
    parser = setting_parser(__doc__.splitlines()[0] if __doc__ else None, repeats=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "loss_cost.json")
    parser.add_argument("--peak", nargs=2, metavar=("FORM", "PHASE"), help=argparse.SUPPRESS)
    return parser.parse_args()


class TailoringBench(Bench):
    """The networks, and KT for their widths."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        widths = self.student.tap_channels, self.teacher.tap_channels
        self.methods: dict[str, Method] = {
            variant: create_method("kt", CLASSES, *widths, variant=variant) for variant in ("published", "clean")
        }

    def guide(self, form: str) -> SegOutput:
        """Run the teacher, and keep of its output what that form of KT reads."""
        return self.methods["clean" if form == "clean" else "published"].select(self.teach())

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


def measure_seconds(arguments: argparse.Namespace) -> dict[str, list[float]]:
    bench = TailoringBench(arguments)
    seconds = networks_seconds(bench, arguments.repeats)
    teacher, student = bench.teach(), leaves(bench.learn())
    for form, phase in FORMS:

        def run_terms(form: str = form, phase: str = phase) -> None:
            torch.autograd.backward(bench.terms(form, phase, student, teacher))

        if form != "reference":
            run_terms()
        seconds[f"{form}.{phase}"] = seconds_of(run_terms, arguments.repeats)
    return seconds


def measure_peaks(arguments: argparse.Namespace) -> dict[str, int]:
    modes = [("networks", "early"), *FORMS]
    peaks = {}
    for form, phase in modes:
        name = "networks" if form == "networks" else f"{form}.{phase}"
        peaks[name] = peak_in_child(__file__, arguments, ["--peak", form, phase])
    return peaks


def peak_of_step(arguments: argparse.Namespace, form: str, phase: str) -> int:
    """Do one step and return the largest resident set on the way, in bytes."""
    bench = TailoringBench(arguments)
    if form == "networks":
        bench.teach()
        output = bench.learn()
        bench.backward(output)
    else:
        guide = bench.guide(form)
        output = bench.learn()
        bench.backward(output, bench.terms(form, phase, output, guide))
    return peak_bytes()


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
    for form, phase in FORMS:
        name = f"{form}.{phase}"
        line = f"{name:17} {seconds[name]:7.2f} s  {100 * seconds[name] / networks:6.1f} % of the networks"
        if name in peaks:
            line += f"  {(peaks[name] - peaks['networks']) / 1e6:+7.0f} MB"
        print(line)


if __name__ == "__main__":
    main()
