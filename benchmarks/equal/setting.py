"""What all comparisons of the study share: networks, recipe, the teachers' and the student's scores, software."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from kept import Kept
from plan import Study
from rows import read_json
from tables import markdown

from segtailor.config import ModelConfig, TrainConfig
from segtailor.errors import SegtailorError
from segtailor.jobs.build import all_arms, baseline_of
from segtailor.report.curves import Point
from segtailor.results.formatting import MISSING, percent
from segtailor.results.model import Outcome

NOT_RUN = "not run"
LAST = 4
"""Evaluations shown of a teacher's curve."""
SOFTWARE = {"segtailor": "segtailor {}", "torch": "PyTorch {}", "python": "Python {}", "system": "{}", "device": "{}"}
Records = Mapping[str, dict[str, Any]]


def teacher_records(study: Study) -> dict[str, dict[str, Any]]:
    """Return the records of the teachers that are trained; raises SegtailorError where one is damaged."""
    records = {}
    for name in study.teachers:
        path = study.results / f"teacher-{name}.json"
        if not path.exists():
            continue
        record = read_json(path)
        try:
            assert record is not None
            teacher_curves({name: record})
            float(record["rows"][0]["miou"])
            records[name] = {"environment": {}, **record}
        except (AssertionError, LookupError, TypeError, ValueError) as error:
            raise SegtailorError(f"{path} is damaged; restore it from git, or run the study again") from error
    return records


def teacher_curves(records: Records) -> dict[str, list[Point]]:
    """Return each teacher's mIoU in percent by step."""
    return {
        name: [(float(point["step"]), 100 * float(point["miou"])) for point in record["curve"]]
        for name, record in records.items()
    }


def setting(study: Study, comparisons: Sequence[Kept], records: Records) -> str:
    """Return the networks and their recipes, the scores on each split, and the software."""
    parts = [_networks(study, comparisons, records), _scores(study, comparisons, records)]
    made_with = _software(comparisons, records)
    return "\n\n".join([*parts, *([f"Made with {made_with}."] if made_with else [])])


def _networks(study: Study, comparisons: Sequence[Kept], records: Records) -> str:
    alone = [outcome for kept in _common(study, comparisons) for outcome in _alone(kept).values()]
    recipe = next(kept.planned.recipe for kept in _common(study, comparisons) or comparisons)
    teacher = next(iter(study.teachers.values()))
    row: dict[str, Any] = next((record["rows"][0] for record in records.values()), {})
    costs = {"parameters": alone[0].parameters, "multiply_adds": alone[0].multiply_adds} if alone else {}
    size = " x ".join(map(str, recipe.data.size or ()))
    rows = [
        ["", "teacher", "student"],
        ["network", f"`{teacher.model.model}`", f"`{recipe.student.model}`"],
        ["starts from", _start(teacher.model), _start(recipe.student)],
        ["parameters", _millions(row.get("parameters")), _millions(costs.get("parameters"))],
        [f"multiply-adds{', ' + size if size else ''}", *(_millions(it.get("multiply_adds")) for it in (row, costs))],
        ["training", _training(teacher.train), _training(recipe.train)],
        ["learning rate", _learning_rate(teacher.train), _learning_rate(recipe.train)],
        ["precision, threads", _computing(teacher.train), _computing(recipe.train)],
    ]
    return markdown(rows, left=3)


def _scores(study: Study, comparisons: Sequence[Kept], records: Records) -> str:
    heads = ["", *(f"`{teacher.data.val_split}`" for teacher in study.teachers.values())]
    rows = [heads, ["trained on", *(f"`{teacher.data.train_split}`" for teacher in study.teachers.values())]]
    columns = [_split(name, study, comparisons, records.get(name)) for name in study.teachers]
    names = ["teacher, mIoU", "its last evaluations", "their span, points", "student alone, mIoU", "gap, points"]
    rows += [[name, *(column[place] for column in columns)] for place, name in enumerate(names)]
    return markdown(rows)


def _split(name: str, study: Study, comparisons: Sequence[Kept], record: dict[str, Any] | None) -> list[str]:
    """Return one split's scores: the teacher, its last evaluations and their span, the student alone, the gap."""
    teacher = float(record["rows"][0]["miou"]) if record else None
    last = [(int(point["step"]), float(point["miou"])) for point in record["curve"]][-LAST:] if record else []
    evaluations = ", ".join(f"{percent(miou)} at {step}" for step, miou in last) or MISSING
    values = [miou for _, miou in last]
    flat = f"{100 * (max(values) - min(values)):.2f}" if len(values) > 1 else MISSING
    candidates = [kept for kept in _common(study, comparisons) if kept.planned.splits == name and _alone(kept)]
    found = max(candidates, key=lambda kept: len(_alone(kept)), default=None)
    if found is None or found.alone is None or found.alone.last is None:
        return [percent(teacher) if record else NOT_RUN, evaluations, flat, NOT_RUN, MISSING]
    mean, std = found.alone.last.mean, found.alone.last.std
    count = len(_alone(found))
    text = percent(mean) + (f" ± {percent(std)}" if std is not None else "")
    text += f" ({count} seed{'s' if count > 1 else ''}, `{found.planned.name}`)"
    gap = f"{100 * (teacher - mean):.2f}" if teacher is not None else MISSING
    return [percent(teacher) if record else NOT_RUN, evaluations, flat, text, gap]


def _common(study: Study, comparisons: Sequence[Kept]) -> list[Kept]:
    """Return the comparisons whose recipe, and whose student alone, is the study's own, unchanged."""
    given = yaml.safe_load(study.path.read_text(encoding="utf-8"))["comparisons"]
    unchanged = []
    for kept in comparisons:
        recipe = kept.planned.recipe
        arm = all_arms(recipe)[baseline_of(recipe)]
        own = (arm.student, arm.optimizer, arm.schedule, arm.aux_weight, arm.clip)
        if not given[kept.planned.name].get("recipe") and all(value is None for value in own):
            unchanged.append(kept)
    return unchanged


def _alone(kept: Kept) -> dict[int, Outcome]:
    return kept.found.finished(kept.found.baseline) if kept.found and kept.found.baseline else {}


def _software(comparisons: Sequence[Kept], records: Records) -> str:
    """Return program versions and kind of device; where rows differ, all of them."""
    noted = [record["environment"] for record in records.values()]
    noted += [kept.found.environment for kept in comparisons if kept.found is not None]
    parts = []
    for key, text in SOFTWARE.items():
        values = dict.fromkeys(str(environment[key]) for environment in noted if environment.get(key))
        if values:
            parts.append(text.format(" and ".join(values)))
    return ", ".join(parts)


def _start(model: ModelConfig) -> str:
    if model.weights is not None:
        return "given weights"
    return "ImageNet encoder" if model.pretrained else "scratch"


def _training(train: TrainConfig) -> str:
    return f"{train.steps} steps of {train.batch} images"


def _computing(train: TrainConfig) -> str:
    return f"{train.precision}, {train.threads or 'the default'}"


def _learning_rate(train: TrainConfig) -> str:
    """Return the optimizer, its rate and how the rate falls."""
    optimizer, schedule = train.optimizer, train.schedule
    head = f" (head x {optimizer.head_lr_factor:g})" if optimizer.head_lr_factor != 1 else ""
    text = f"{optimizer.name} {optimizer.lr:g}{head}, weight decay {optimizer.weight_decay:g}"
    return f"{text}, poly {schedule.power:g}, warm-up {schedule.warmup}"


def _millions(value: float | None) -> str:
    return NOT_RUN if value is None else f"{value / 1e6:,.2f} M"
