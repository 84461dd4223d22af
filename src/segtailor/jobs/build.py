"""From a recipe, or from Python objects, to a training: data, networks, methods, and their alignment.

A job opens one :class:`Context` and builds an :class:`Arm` for each student. `train` has one arm, the student alone;
`distill` one, or two with its baseline; `compare` one for every arm and seed. All go through :func:`train_arms`.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from segtailor._version import __version__
from segtailor.config import (
    CompareRecipe,
    DataConfig,
    DistillRecipe,
    EvaluateConfig,
    MethodConfig,
    ModelConfig,
    TeacherConfig,
    TrainConfig,
    TrainRecipe,
)
from segtailor.data import create_dataset
from segtailor.data.base import SegmentationDataset, some
from segtailor.data.check import check_files
from segtailor.data.pseudo import UnlabelledImages, mix_of
from segtailor.engine.launch import on_first_process, prints
from segtailor.engine.loop import RunSpec, Trained, fit_together, split_batch
from segtailor.engine.module import Distiller
from segtailor.engine.pseudo_labels import USES, add_unlabelled, check_rows, confident_share, use_lines
from segtailor.errors import SegtailorError
from segtailor.evaluation import EvaluationResult, check_classes, evaluate_model, inference_settings
from segtailor.files import Size
from segtailor.jobs.alignment import Shapes, align, shapes_of
from segtailor.jobs.objects import Objects
from segtailor.methods import check_options, create_method, find_method
from segtailor.methods.base import Method, MissingTapError
from segtailor.models.adapters.python_module import OBJECT
from segtailor.models.class_map import read_class_map
from segtailor.models.inspect import count_parameters
from segtailor.models.licenses import Policy, check_licenses
from segtailor.models.network import Network, set_dropout
from segtailor.models.store import build_network, load_teacher
from segtailor.models.teacher import Teacher
from segtailor.results.model import Row

SCORED_BEFORE_START = 16


@dataclass
class Context:
    """The parts that all arms of a job share."""

    fabric: Any
    data: DataConfig
    evaluate: EvaluateConfig
    train_data: SegmentationDataset
    val_data: SegmentationDataset
    size: Size
    policy: Policy = "any"
    teacher: Teacher | None = None
    unlabelled: UnlabelledImages | None = None
    objects: Objects = field(default_factory=Objects)
    noted: set[str] = field(default_factory=set)
    shapes: Shapes = field(default_factory=dict)

    @property
    def data_name(self) -> str:
        """The name of the data set."""
        return self.data.name.removeprefix(OBJECT)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return bool(self.fabric.is_global_zero)

    def check_licenses(self, **networks: Network) -> None:
        """Print a note, once, for each network's license that is not known to be permissive.

        Raises ``SegtailorError`` for a restricted one where the recipe's policy is ``permissive``.
        """
        notes = check_licenses(self.policy, {role: network.licenses for role, network in networks.items()})
        self.note(*(f"note: {note}" for note in notes))

    def note(self, *lines: str) -> None:
        """Print ``lines`` on stderr, those that are new, from one process."""
        new = [line for line in lines if line not in self.noted]
        self.noted.update(new)
        if new and prints():
            print("\n".join(new), file=sys.stderr)

    def score(self, model: nn.Module, together: bool = True, **measures: Any) -> EvaluationResult:
        """Score ``model`` on the validation data as the recipe says; ``together``: all processes do, each a share."""
        rank, world = (self.fabric.global_rank, self.fabric.world_size) if together else (0, 1)
        return evaluate_model(
            model, self.val_data, device=self.fabric.device, batch=self.evaluate.batch, workers=self.data.workers,
            rank=rank, world=world, **measures,
            **inference_settings(self.evaluate, self.data),
        )  # fmt: skip

    def costs(self, model: Network) -> dict[str, int | None]:
        """Return parameters and multiply-adds of ``model``; arms of one architecture are counted once."""
        _, multiply_adds = shapes_of(model, model.preprocess.input_size(self.size), self.shapes)
        return {"parameters": count_parameters(model), "multiply_adds": multiply_adds or None}

    def row(self, role: str, label: str, model: Network, scores: EvaluationResult, **facts: Any) -> Row:
        """Return one row of the results: the model's costs, its scores, and further ``facts``."""
        return Row(
            role=role, label=label, model=model.name, **self.costs(model), miou=scores.miou, miou_all=scores.miou_all,
            pixel_accuracy=scores.pixel_accuracy, mean_accuracy=scores.mean_accuracy, mean_dice=scores.mean_dice,
            iou=scores.iou, **facts,
        )  # fmt: skip

    def environment(self, train: TrainConfig) -> dict[str, str]:
        """Return software and machine, for the report."""
        device = self.fabric.device
        return {
            "segtailor": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "system": platform.system(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
            "processes": str(self.fabric.world_size),
            "threads": str(torch.get_num_threads()),
            "precision": train.precision,
            "seed": str(train.seed),
        }


@dataclass
class Arm:
    """One student with its methods, built and ready to train; ``folder`` takes its files."""

    label: str
    train: TrainConfig
    distiller: Distiller
    methods: dict[str, Method]
    card: dict[str, Any]
    alignment: list[str]
    folder: Path = Path()
    stages: list[dict[str, Any]] = field(default_factory=list)


def open_context(fabric: Any, recipe: TrainRecipe | DistillRecipe | CompareRecipe, objects: Objects) -> Context:
    """Open the data and the teacher; every file is opened once first, so that a run fails early.

    Raises ``SegtailorError`` for an object that was not given, a sliding window with gaps, unreadable data, a teacher
    of other classes without a class map, a teacher near chance, and weights whose license the recipe refuses.
    """
    config = recipe.data
    objects.check(recipe)
    inference_settings(recipe.evaluate, config)
    if isinstance(recipe, TrainRecipe) and config.unlabelled is not None:
        raise SegtailorError(
            "data.unlabelled needs a teacher, and `segtailor train` has none; remove it, or use `segtailor distill`"
        )
    splits = []
    for given, split, training in (
        (objects.train_data, config.train_split, True),
        (objects.val_data, config.val_split, False),
    ):
        dataset = create_dataset(config, split, training) if given is None else objects.dataset(given, split, config)
        if config.check:
            on_first_process(fabric, partial(check_files, dataset, config))
        splits.append(dataset)
    data, val = splits
    if tuple(val.classes) != tuple(data.classes):
        raise SegtailorError(
            "training and validation data do not name the same classes in the same order: "
            f"{some(list(data.classes))}; {some(list(val.classes))}"
        )
    more = add_unlabelled(config, recipe.train.batch, data, val, fabric)
    size = config.size or (int(val[0].image.shape[-2]), int(val[0].image.shape[-1]))
    context = Context(
        fabric, config, recipe.evaluate, data, val, size, recipe.run.license_policy, unlabelled=more, objects=objects
    )
    context.note(_data_line(context))
    if not isinstance(recipe, TrainRecipe):
        context.teacher = _open_teacher(context, recipe.teacher)
    return context


def _data_line(context: Context) -> str:
    """Return one line on the training data, and how its images are resized."""
    train, val = context.train_data, context.val_data
    height, width = val[0].target.shape[-2:]  # at the masks' own size
    seen = f"{height} x {width}"
    if (height, width) != context.size:
        new_height, new_width = context.size
        seen += f" resized to {new_height} x {new_width}"
        if not 0.95 < (height * new_width) / (width * new_height) < 1.05:
            seen += ", which changes their proportions (set data.size)"
    return f"data: {context.data_name}, {len(train)} + {len(val)} images, {train.num_classes} classes, {seen}"


def _open_teacher(context: Context, config: TeacherConfig | None) -> Teacher | None:
    if config is None:
        return None
    teacher = make_teacher(config, context.train_data, context.objects)
    context.check_licenses(teacher=teacher.model)
    teacher.to(context.fabric.device)
    context.note(*(teacher.class_map.lines() if teacher.class_map is not None else []))
    if config.check:
        data = context.val_data
        result = evaluate_model(teacher, data, device=context.fabric.device, limit=SCORED_BEFORE_START)
        if result.miou < 1.05 / data.num_classes:
            raise SegtailorError(
                f"the teacher is near chance: mIoU {100 * result.miou:.1f} on {result.images} validation images "
                f"(guessing one class gives at most {100 / data.num_classes:.1f}); check teacher.weights, or set "
                "teacher.check false"
            )
    return teacher


def make_teacher(config: TeacherConfig, data: SegmentationDataset, objects: Objects | None = None) -> Teacher:
    """Load the teacher, or take the given object; raises ``SegtailorError`` when its classes are not the data's.

    A teacher of other classes needs a class map, which is checked against both.
    """
    own = (objects or Objects()).teacher_for(config, None if config.class_map else data.num_classes)
    network = own or load_teacher(config, data.num_classes)
    class_map = None if config.class_map is None else read_class_map(config.class_map, network, data.classes)
    teacher = Teacher(network, class_map)
    check_classes(teacher, data.classes)
    return teacher


def class_map_rows(context: Context) -> list[dict[str, Any]]:
    """Return the teacher's class map for the results; nothing without one."""
    teacher = context.teacher
    return teacher.class_map.rows() if teacher is not None and teacher.class_map is not None else []


def build_arm(context: Context, recipe: TrainRecipe | DistillRecipe, label: str = "", folder: Path = Path()) -> Arm:
    """Build student and methods of ``recipe`` and align them; their initial weights are a function of the seed.

    Of a student that was given as an object a copy is trained. Raises ``SegtailorError`` for a method listed twice or
    without its teacher, for taps that a network does not have, and for networks that cannot be aligned.
    """
    data, seed = context.train_data, recipe.train.seed
    alone = isinstance(recipe, TrainRecipe)
    config, listed = (recipe.model, []) if isinstance(recipe, TrainRecipe) else (recipe.student, recipe.method)
    torch.manual_seed(seed)
    student = context.objects.student_for(config, data.num_classes) or build_network(config, data.num_classes)
    student.classes = tuple(data.classes)  # which it learns, whatever its first weights knew
    if config.dropout is not None and not set_dropout(student, config.dropout):
        raise SegtailorError(f"{student.name} has no dropout; leave the option dropout out")
    context.check_licenses(**{"model" if alone else "student": student})
    methods = make_methods(listed, student, context.teacher, config, seed)
    teacher = None if alone else context.teacher
    window = recipe.data.crop or recipe.data.size or context.size
    alignment = align(student, teacher, methods, window, context.shapes)
    alignment += use_lines(recipe.data, methods)
    licenses = {} if teacher is None else teacher.model.licenses
    card = {
        "licenses": {f"teacher's {part}": text for part, text in licenses.items()},
        "classes": list(data.classes),
        "palette": [list(color) for color in data.palette],
        "mean_color": list(data.mean_color),
        "data_license": data.license,
        "recipe": recipe.model_dump(mode="json"),
    }
    weights = {find_method(method.name).name: method.weight for method in listed}
    distiller = Distiller(student, methods, weights, recipe.train.aux_weight)
    if context.unlabelled is not None and (distiller.own_teachers or not distiller.uses_teacher):
        micro, _ = split_batch(recipe.train.batch, recipe.train.micro_batch, context.fabric.world_size)
        check_rows(recipe.data, recipe.train.batch, micro)
    return Arm(label or "+".join(methods), recipe.train, distiller, methods, card, alignment, folder)


def make_methods(
    configs: Sequence[MethodConfig], student: Network, teacher: Teacher | None, built_as: ModelConfig, seed: int
) -> dict[str, Method]:
    """Build the recipe's methods for a ``student`` that was ``built_as`` its config says.

    Their initial projectors are a function of ``seed``. Raises ``SegtailorError`` for a method listed twice, or without
    the teacher that it needs.
    """
    names = [find_method(config.name).name for config in configs]  # two classes of others may have the same name
    for name in names:
        if names.count(name) > 1:
            raise SegtailorError(f"the recipe names the method {name} {names.count(name)} times; list it once")
    methods: dict[str, Method] = {}
    for config in configs:
        kind = find_method(config.name)
        if kind.teacher == "recipe" and teacher is None:
            raise SegtailorError(f"method {config.name} needs a teacher; set teacher.weights (a run folder or a file)")
        options = check_options(config.name, config.options())
        own = kind.build_teacher(options, built_as, student.num_classes, seed) if kind.teacher == "own" else None
        guide = own or teacher
        torch.manual_seed(seed + 1)
        try:
            method = create_method(
                config.name,
                num_classes=student.num_classes,
                student_channels=student.tap_channels,
                teacher_channels=guide.tap_channels if guide is not None else student.tap_channels,
                **config.options(),
            )
        except MissingTapError as missing:
            named = guide if missing.role == "teacher" and guide is not None else student
            raise missing.named(config.name, named.name) from None
        if own is not None:
            method.use_teacher(own)
        methods[kind.name] = method
    return methods


def check_methods(configs: Sequence[MethodConfig]) -> bool:
    """Raise SegtailorError for an unknown method or option, before anything is loaded.

    Returns whether some parameters of a method have gradients only part of the time.
    """
    for config in configs:
        check_options(config.name, config.options())
    return any(find_method(config.name).sparse_gradients for config in configs)


def train_arms(context: Context, arms: Sequence[Arm], keep_going: bool = False) -> list[Trained]:
    """Train ``arms`` in lockstep, on the same batches and with one pass of the teacher for all.

    Each learns what it would alone, and continues from its folder's checkpoint. With ``keep_going`` one that fails does
    not stop the others. Raises ``SegtailorError`` when a teacher's weights have changed.
    """
    teacher = context.teacher if any(arm.distiller.uses_teacher for arm in arms) else None
    watched = [own for arm in arms for own in arm.distiller.own_teachers.values()]
    watched += [] if teacher is None else [teacher]
    before = [item.fingerprint() for item in watched]
    entries = [
        (
            arm.distiller,
            RunSpec(
                arm.label, arm.folder, context.train_data, context.val_data, context.data, arm.train, context.evaluate,
                arm.card, context.unlabelled,
            ),
        )
        for arm in arms
    ]  # fmt: skip
    trained = fit_together(context.fabric, entries, teacher, keep_going)
    if [item.fingerprint() for item in watched] != before:
        raise SegtailorError("the teacher's weights changed during the run; this is a defect of the method, report it")
    return trained


def unlabelled_of(context: Context, arm: Arm) -> dict[str, Any]:
    """Return the results' section on unlabelled images; nothing without any.

    ``confident`` is the share of pixels of which the teacher was at least ``threshold`` sure, over the run; None where
    no method learns from them.
    """
    images, config = context.unlabelled, context.data.unlabelled
    if images is None or config is None:
        return {}
    mix = mix_of(config, arm.train.batch)
    return {
        "unlabelled": {
            "images": len(images),
            "labelled_images": len(context.train_data),
            "rows": mix.unlabelled,
            "labelled_rows": mix.labelled,
            "threshold": config.threshold,
            "confident": confident_share(arm.folder),
            "methods": {name: USES[kind][0] for name, kind in arm.distiller.target_kinds.items()},
        }
    }


def run_name(*parts: str) -> str:
    """Return the name of a run that its recipe does not name.

    >>> run_name("toy", "smp:Unet/resnet18", "kt")
    'toy-smp-Unet-resnet18-kt'
    """
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", "-".join(part.removeprefix(OBJECT) for part in parts))


def card_with_metrics(card: dict[str, Any], scores: EvaluationResult, step: int) -> dict[str, Any]:
    """Return ``card`` with the scores of the weights beside it."""
    metrics = {"miou": scores.miou, "miou_all": scores.miou_all, "pixel_accuracy": scores.pixel_accuracy, "step": step}
    return {**card, "metrics": metrics}
