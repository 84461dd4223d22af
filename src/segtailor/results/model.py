"""The files of a run and of a comparison, written and read by the same classes.

``results.json`` of a run is a :class:`RunResults`, ``outcome.json`` of an arm an :class:`Outcome` (a :class:`State`
until it has finished), ``comparison.json`` a :class:`Plan`. A comparison is read tolerantly: a run counts when its
outcome is finished and its figures are sound. Without a sound ``confusions.npz`` it still counts, but there is no
interval over images. A run whose two files contradict each other, or that scored other images than most runs, is left
out, as either may be wrong.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segtailor.errors import SegtailorError, reason
from segtailor.files import Color, Size, write_text
from segtailor.results.formatting import numbered
from segtailor.results.statistics import Counts, ImageCounts

VERSION = 1

Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
"""A share, from 0 to 1."""
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False, strict=True)]
Whole = Annotated[int, Field(ge=0)]
Status = Literal["finished", "failed", "running", "missing", "damaged"]


class Record(BaseModel):
    """A file's content, or a part of it; keys of later versions are ignored. ``record["key"]`` is ``record.key``."""

    model_config = ConfigDict(extra="ignore", arbitrary_types_allowed=True, protected_namespaces=())

    def __getitem__(self, key: str) -> Any:
        """Return the field ``key``; raises KeyError when there is none."""
        if key not in type(self).model_fields:
            raise KeyError(key)
        return getattr(self, key)

    def get(self, key: str, default: Any = None) -> Any:
        """Return the field ``key``, or ``default`` where there is no such field or it is None."""
        value = getattr(self, key) if key in type(self).model_fields else None
        return default if value is None else value

    def write(self, path: Path) -> None:
        """Write the record as JSON to ``path``, atomically."""
        write_text(path, self.model_dump_json(indent=1, by_alias=True) + "\n")


class Row(Record):
    """One model of a run: its costs, its scores after the last step, and what its training took.

    ``role`` is ``teacher``, ``assisted`` (a label-assisted teacher), ``alone``, ``distilled`` or ``model``. None is
    "not measured".
    """

    role: str = ""
    label: str = ""
    model: str = ""
    parameters: Whole | None = None
    multiply_adds: Whole | None = None
    miou: Score
    miou_all: Score | None = None
    pixel_accuracy: Score | None = None
    mean_accuracy: Score | None = None
    mean_dice: Score | None = None
    iou: list[Score | None] = []
    best_miou: Score | None = None
    best_step: Whole | None = None
    steps: Whole | None = None
    seconds: Seconds | None = None
    boundary: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None


class Drawing(Record):
    """One image's pictures: what each shows -> its path below the folder, and the share of wrong pixels by role.

    Pictures of altered logits name the ``arm`` and the class (``label``).
    """

    name: str = ""
    pictures: dict[str, str] = {}
    wrong: dict[str, float | None] = {}
    arm: str = ""
    label: str = Field("", alias="class")


class RunResults(Record):
    """The content of a finished run's ``results.json``."""

    version: Literal[1] = 1
    name: str = ""
    kind: Literal["train", "distill"] = "train"
    method: str | None = None
    variant: str | None = None
    data: str = ""
    classes: tuple[str, ...] = ()
    palette: tuple[Color, ...] = ()
    size: Size | None = None
    gap_closed: float | None = None
    rows: list[Row] = []
    class_map: list[dict[str, Any]] = []
    alignment: list[str] = []
    stages: list[dict[str, Any]] = []
    unlabelled: dict[str, Any] | None = None
    curves: dict[str, str] = {}
    samples: list[Drawing] = []
    environment: dict[str, str] = {}

    def row(self, role: str) -> Row:
        """Return the row of this role; raises KeyError when there is none."""
        for row in self.rows:
            if row.role == role:
                return row
        raise KeyError(role)


class State(Record):
    """``outcome.json`` of one arm with one seed, in any state; ``reason`` says why it failed."""

    version: Literal[1] = 1
    arm: str
    seed: int
    status: Literal["finished", "failed", "running"]
    reason: str | None = None


class Outcome(State):
    """A finished run of one arm with one seed. Scores are from 0 to 1, times in seconds; None is "not measured".

    ``miou`` and ``iou`` are of the last checkpoint. ``seconds`` is the student's own training, ``stage_seconds`` the
    method's own pre-training; ``teacher_seconds`` is this arm's share of the teacher's passes, which the arms have in
    common, and ``teacher_seconds_alone`` the whole. ``images`` and ``confusion`` (int64 (K,K), rows target) come from
    ``confusions.npz``.
    """

    status: Literal["finished"] = "finished"
    miou: Score
    miou_all: Score
    best_miou: Score
    best_step: Whole | None = None
    iou: list[Score | None]
    steps: Whole | None = None
    seconds: Seconds | None = None
    teacher_seconds: Seconds | None = None
    teacher_seconds_alone: Seconds | None = None
    stage_seconds: Seconds | None = None
    peak_bytes: Whole | None = None
    parameters: Whole | None = None
    multiply_adds: Whole | None = None
    model: str = ""
    method: str = ""
    boundary: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None
    agreement: dict[str, Any] | None = None
    alignment: list[str] = []
    unlabelled: dict[str, Any] | None = None
    confusion: Any = Field(None, exclude=True)
    images: ImageCounts | None = Field(None, exclude=True)

    @property
    def seconds_shared(self) -> float | None:
        """Training, own pre-training and the arm's share of the teacher; None when one of them was not measured."""
        return _sum(self.seconds, self.stage_seconds, self.teacher_seconds)

    @property
    def seconds_alone(self) -> float | None:
        """What the arm alone would take: training, own pre-training and the whole of the teacher's passes."""
        return _sum(self.seconds, self.stage_seconds, self.teacher_seconds_alone)

    def add_images(self, images: ImageCounts, source: str) -> None:
        """Keep each image's counts; raises ValueError when they, read from ``source``, give another mIoU."""
        if abs(images.miou - self.miou) > 1e-5:
            raise ValueError(f"the outcome says mIoU {self.miou:.6f}, {source} gives {images.miou:.6f}")
        self.images = images


class Plan(Record):
    """The content of ``comparison.json``: what is compared, and the teacher's score.

    ``baseline`` names the arm that is the student alone; ``samples`` and ``tailoring`` are pictures for the report.
    """

    version: Literal[1] = 1
    name: str = ""
    arms: Annotated[tuple[str, ...], Field(min_length=1)]
    baseline: str | None = None
    seeds: Annotated[tuple[int, ...], Field(min_length=1)]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    palette: tuple[Color, ...] = ()
    data: str = ""
    size: Size | None = None
    teacher: Row | None = None
    recipe: dict[str, Any] = {}
    class_map: list[dict[str, Any]] = []
    environment: dict[str, str] = {}
    samples: list[Drawing] = []
    tailoring: list[Drawing] = []


@dataclass(frozen=True)
class ArmRun:
    """One arm with one seed. ``outcome`` is set when it has finished; ``reason`` explains a failure or damage."""

    arm: str
    seed: int
    status: Status
    reason: str = ""
    outcome: Outcome | None = None


class Comparison(Plan):
    """A comparison as read; ``problems`` names in one line each what is missing or damaged and was left out.

    ``runs`` holds every pair of arm and seed that was planned. ``baseline`` is None when no arm has that name.
    """

    folder: Path = Field(exclude=True)
    runs: dict[tuple[str, int], ArmRun] = Field({}, exclude=True)
    problems: list[str] = Field([], exclude=True)

    @property
    def teacher_miou(self) -> float | None:
        """The teacher's mIoU on the reported images."""
        return self.teacher.miou if self.teacher else None

    def finished(self, arm: str) -> dict[int, Outcome]:
        """Return the arm's finished runs by seed, in the comparison's order of seeds."""
        found = {seed: self.runs[arm, seed].outcome for seed in self.seeds}
        return {seed: outcome for seed, outcome in found.items() if outcome is not None}

    def with_status(self, arm: str, *statuses: Status) -> list[ArmRun]:
        """Return the arm's runs that have one of these statuses."""
        return [run for seed in self.seeds if (run := self.runs[arm, seed]).status in statuses]


R = TypeVar("R", bound=Record)


def arm_folder(folder: Path, arm: str, seed: int) -> Path:
    """Return where the files of one arm and seed are in a comparison's folder."""
    return folder / "arms" / arm / f"seed{seed}"


def read_results(folder: str | Path) -> RunResults:
    """Read ``results.json`` of a finished run; raises SegtailorError when it is missing, damaged or of another version.

    Runs of segtailor 0.1 are read as well: they have the same version.
    """
    path, again = Path(folder) / "results.json", "run the recipe again to write it"
    return _checked(RunResults, _of_our_version(read_json(path, again), str(path), again), str(path), again)


def read_comparison(folder: str | Path) -> Comparison:
    """Read a comparison's folder, finished or still running.

    Raises SegtailorError when ``comparison.json`` is missing, damaged or of another version; anything wrong with a
    single run is named in ``problems`` instead.
    """
    path = Path(folder) / "comparison.json"
    if not path.exists():
        raise SegtailorError(f"no comparison in {folder}: it holds no comparison.json; give the folder of a compare")
    comparison = plan_of(read_json(path, _AGAIN), str(path), Path(folder))
    for arm in comparison.arms:
        for seed in comparison.seeds:
            run, trouble = _read_run(comparison, arm, seed)
            comparison.runs[arm, seed] = run
            comparison.problems += [f"{_place(arm, seed)}: {line}" for line in trouble]
        unread = [run.seed for run in comparison.with_status(arm, "missing")]
        comparison.problems += [f"arms/{arm}: no outcome.json for {numbered('seed', unread)}"] if unread else []
    _leave_out_other_images(comparison)
    planned = {_place(arm, seed) for arm, seed in comparison.runs}
    for path in sorted(comparison.folder.glob("arms/*/seed*")):
        place = path.relative_to(comparison.folder).as_posix()
        if path.is_dir() and place not in planned:
            comparison.problems.append(f"{place}: not in comparison.json; left out")
    return comparison


def arm_status(folder: Path, arm: str, seed: int) -> str:
    """Return the status in an arm's ``outcome.json``; `missing` where there is none that can be read."""
    try:
        return State.model_validate_json((arm_folder(folder, arm, seed) / "outcome.json").read_bytes()).status
    except (OSError, ValueError):
        return "missing"


def read_images(path: Path, num_classes: int) -> tuple[Counts, ImageCounts]:
    """Read the images' confusion matrices, int (N,K,K), and return their sum and each image's counts.

    Raises ValueError when the file is missing or damaged.
    """
    if not path.exists():
        raise ValueError(f"no {path.name}")
    (confusions,) = read_arrays(path, "confusions")
    shape = confusions.shape
    if len(shape) != 3 or shape[0] == 0 or shape[1:] != (num_classes, num_classes):
        raise ValueError(f"{path.name} has shape {shape}, not (images, {num_classes}, {num_classes})")
    if not np.issubdtype(confusions.dtype, np.integer) or confusions.min() < 0:
        raise ValueError(f"{path.name} holds values that are no pixel counts")
    return confusions.sum(0, dtype=np.int64), ImageCounts.from_confusions(confusions)


def read_arrays(path: Path, *names: str) -> list[NDArray[Any]]:
    """Return the named arrays of an ``.npz`` file; raises ValueError when it is damaged."""
    try:
        with path.open("rb") as file, np.lib.npyio.NpzFile(file, allow_pickle=False) as archive:
            return [archive[name] for name in names]
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path.name} is damaged ({reason(error)})") from error


def read_json(path: Path, remedy: str) -> Any:
    """Return the content of a JSON file; raises SegtailorError, which ends with the ``remedy``, when it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SegtailorError(f"{path} is damaged ({reason(error)}); {remedy}") from error


def plan_of(values: Mapping[str, Any], where: str, folder: Path) -> Comparison:
    """Return a comparison without its runs from the content of a ``comparison.json``, which errors call ``where``.

    Raises SegtailorError for another version, and for arms, seeds or classes that are wrong; a wrong baseline or
    teacher becomes a problem.
    """
    values = _of_our_version(values, where, _AGAIN)
    problems = []
    for key in ("arms", "seeds"):
        given = values.get(key)
        if isinstance(given, list) and len({str(item) for item in given}) < len(given):
            raise SegtailorError(f"{where} is damaged ('{key}' names one twice); {_AGAIN}")
    if values.get("baseline") not in (values.get("arms") or []):
        problems.append(f"comparison.json: baseline '{values.get('baseline')}' is no arm; no differences to it")
        values["baseline"] = None
    if values.get("teacher") is not None:
        try:
            Row.model_validate(values["teacher"])
        except ValidationError:
            values["teacher"] = None
            problems.append("comparison.json: the teacher has no sound 'miou'; no gap closed")
    name = str(values.get("name") or folder.resolve().name)
    comparison = _checked(Comparison, {**values, "name": name, "folder": folder}, where, _AGAIN)
    comparison.problems += problems
    return comparison


def run_of(values: Any, arm: str, seed: int, classes: int) -> ArmRun:
    """Return the run of ``arm`` and ``seed`` from the content of an ``outcome.json``; raises ValueError for damage."""
    if not isinstance(values, Mapping) or values.get("version") != VERSION:
        raise ValueError(f"no outcome of version {VERSION}")
    if (values.get("arm"), values.get("seed")) != (arm, seed):
        raise ValueError(f"it is of arm {values.get('arm')}, seed {values.get('seed')}")
    if values.get("status") not in ("finished", "failed", "running"):
        raise ValueError(f"status is {values.get('status')!r}")
    if values["status"] != "finished":
        return ArmRun(arm, seed, values["status"], str(values.get("reason") or ""))
    try:
        outcome = Outcome.model_validate(values)
    except ValidationError as error:
        raise ValueError(_first(error)) from None
    if len(outcome.iou) != classes:
        raise ValueError(f"'iou' is no list of {classes} classes")
    return ArmRun(arm, seed, "finished", "", outcome)


_AGAIN = "run the comparison again to write it"


def _of_our_version(values: Any, where: str, again: str) -> dict[str, Any]:
    version = values.get("version") if isinstance(values, Mapping) else None
    if version != VERSION:
        raise SegtailorError(f"{where} has version {version}, this segtailor reads version {VERSION}; {again}")
    return dict(values)


def _checked(kind: type[R], values: Mapping[str, Any], where: str, again: str) -> R:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise SegtailorError(f"{where} is damaged ({_first(error)}); {again}") from None


def _read_run(comparison: Comparison, arm: str, seed: int) -> tuple[ArmRun, list[str]]:
    """Return one run, and what is wrong with it."""
    folder, classes = arm_folder(comparison.folder, arm, seed), len(comparison.classes)
    path = folder / "outcome.json"
    if not path.exists():
        return ArmRun(arm, seed, "missing"), []
    try:
        run = run_of(json.loads(path.read_text(encoding="utf-8")), arm, seed, classes)
    except (OSError, ValueError, OverflowError) as error:
        why = reason(error)
        return ArmRun(arm, seed, "damaged", why), [f"outcome.json is damaged ({why}); left out"]
    if run.outcome is None:
        return run, []
    if comparison.environment.get("device", "").endswith("CPU"):
        run.outcome.peak_bytes = None  # 0.1 took the order of the arms for memory there
    try:
        run.outcome.confusion, images = read_images(folder / "confusions.npz", classes)
    except ValueError as error:
        return run, [f"{reason(error)}; its mIoU counts, but there is no interval over images"]
    try:
        run.outcome.add_images(images, "confusions.npz")
    except ValueError as error:
        return ArmRun(arm, seed, "damaged", reason(error)), [f"{reason(error)}; left out"]
    return run, []


def _leave_out_other_images(comparison: Comparison) -> None:
    """Keep the runs that scored the images most runs did, in the same order; name the others."""
    found = {
        key: run.outcome.images.targets
        for key, run in comparison.runs.items()
        if run.outcome is not None and run.outcome.images is not None
    }
    if len(set(found.values())) < 2:
        return
    usual = Counter(found.values()).most_common(1)[0][0]
    for (arm, seed), targets in found.items():
        if targets != usual:
            why = "scored other images than most runs, or in another order"
            comparison.runs[arm, seed] = ArmRun(arm, seed, "damaged", why)
            comparison.problems.append(f"{_place(arm, seed)}: {why}; left out")


def _first(error: ValidationError) -> str:
    """Return the first field that is wrong, and how."""
    item = error.errors()[0]
    field, *inner = item["loc"]
    message = f"{item['msg'][0].lower()}{item['msg'][1:]}"
    if item["type"] == "missing":
        return f"'{field}' is None, {message}"
    shown = f"{item['input']!r}"[:80]
    return f"'{field}' {'holds a value that is wrong: ' if inner else 'is '}{shown}, {message}"


def _place(arm: str, seed: int) -> str:
    return f"arms/{arm}/seed{seed}"


def _sum(*values: float | None) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
