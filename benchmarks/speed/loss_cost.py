"""What the terms of KT and of `stagewise` cost: seconds against the networks' own, and memory above the networks' peak.

    python benchmarks/speed/loss_cost.py                      # DeepLabV3 R101 to R18, batch 2, 512 x 1024, 2 threads
    python benchmarks/speed/loss_cost.py --size 128 256 --out /dev/null

Networks, batch and peaks are those of `bench.py`. Terms: forward and backward of a
method on stored outputs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from bench import (
    ROOT,
    Bench,
    leaves,
    networks_seconds,
    peak_bytes,
    peak_in_child,
    save,
    seconds_of,
    setting,
    setting_parser,
)
from method_cost import Subject
from published_kt import published_terms
from segtailor.methods._kt_terms import FeatureTailoring
from segtailor.models import SegOutput

PROGRESS = {"early": 0.1, "late": 0.9}
FORMS = [(form, phase) for form in ("published", "reference", "clean") for phase in PROGRESS] + [("stagewise", "early")]
"""KT as published, the published formulation with loops, and KT's clean defaults, in both phases; `stagewise`."""


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
    save(arguments.out, result)


def parse() -> argparse.Namespace:
    parser = setting_parser(__doc__.splitlines()[0] if __doc__ else None, repeats=3, out="loss_cost.json")
    parser.add_argument("--peak", nargs=2, metavar=("FORM", "PHASE"), help=argparse.SUPPRESS)
    return parser.parse_args()


class Forms:
    """KT in all its forms and `stagewise`, for one pair of networks."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.bench = Bench(arguments)
        self.subjects = {variant: Subject(self.bench, "kt", variant) for variant in ("published", "clean")}
        self.subjects["stagewise"] = Subject(self.bench, "stagewise", "clean")

    def teach(self, form: str) -> SegOutput:
        """Run the teacher, and keep of its output what that form reads."""
        return self.subjects["published" if form == "reference" else form].teach()

    def loss(self, form: str, phase: str, student: SegOutput, teacher: SegOutput) -> Tensor:
        """Return the sum of all terms."""
        if form != "reference":
            return self.subjects[form].loss(student, teacher, PROGRESS[phase])
        modules = self.subjects["published"].method.get_submodule("tailoring.decoder")
        assert isinstance(modules, FeatureTailoring)
        terms = published_terms(student, teacher, self.bench.target, modules, phase == "early")
        return torch.stack(list(terms.values())).sum()


def measure_seconds(arguments: argparse.Namespace) -> dict[str, list[float]]:
    forms = Forms(arguments)
    seconds = networks_seconds(forms.bench, arguments.repeats)
    teacher, student = forms.bench.teach(), leaves(forms.bench.learn())
    for form, phase in FORMS:

        def run(form: str = form, phase: str = phase) -> None:
            torch.autograd.backward(forms.loss(form, phase, student, teacher))

        seconds[f"{form}.{phase}"] = seconds_of(run, arguments.repeats + 1)[1:]
    return seconds


def measure_peaks(arguments: argparse.Namespace) -> dict[str, int]:
    peaks = {"networks": peak_in_child(__file__, arguments, ["--peak", "networks", "early"])}
    for form, phase in FORMS:
        peaks[f"{form}.{phase}"] = peak_in_child(__file__, arguments, ["--peak", form, phase])
    return peaks


def peak_of_step(arguments: argparse.Namespace, form: str, phase: str) -> int:
    """Take one step and return the largest resident set on the way, in bytes."""
    forms = Forms(arguments)
    if form == "networks":
        forms.bench.teach()
        forms.bench.backward(forms.bench.learn())
    else:
        guide, output = forms.teach(form), forms.bench.learn()
        loss = forms.loss(form, phase, output, guide)
        del guide  # as the training loop lets go of it
        forms.bench.backward(output, loss)
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
