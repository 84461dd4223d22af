"""What `train` and `distill` share: data, networks, methods, rows of the results."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from segtailor._version import __version__
from segtailor.config import DataConfig, MethodConfig, ModelConfig, TeacherConfig, TrainConfig
from segtailor.data import create_dataset
from segtailor.data.base import SegmentationDataset
from segtailor.data.check import check_files
from segtailor.errors import SegtailorError
from segtailor.evaluation import EvaluationResult, evaluate_model
from segtailor.jobs.networks import build_network, load_teacher
from segtailor.methods import METHODS, check_options, create_method
from segtailor.methods.base import Method, MissingTapError
from segtailor.models.class_map import read_class_map
from segtailor.models.inspect import count_multiply_adds, count_parameters
from segtailor.models.licenses import Policy, check_licences
from segtailor.models.network import Network
from segtailor.models.teacher import Teacher

T = TypeVar("T")
SCORED_BEFORE_START = 16


def on_first_process(fabric: Any, action: Callable[[], T]) -> T:
    """Run ``action`` on the first process and hand its result, or its error, to all."""
    outcome: tuple[Any, str | None] = (None, None)
    if fabric.is_global_zero:
        try:
            outcome = (action(), None)
        except SegtailorError as error:
            outcome = (None, str(error))
    value, problem = fabric.broadcast(outcome) if fabric.world_size > 1 else outcome
    if problem is not None:
        raise SegtailorError(problem)
    return value  # type: ignore[no-any-return]


def open_data(config: DataConfig, fabric: Any) -> tuple[SegmentationDataset, SegmentationDataset]:
    """Return the training and the validation data; every file is opened once first, so that a run fails early."""
    train = create_dataset(config, config.train_split, training=True)
    val = create_dataset(config, config.val_split, training=False)
    if config.check:
        for dataset in (train, val):
            on_first_process(fabric, partial(check_files, dataset))
    return train, val


def make_student(config: ModelConfig, num_classes: int, seed: int) -> Network:
    """Build the network to be trained; its initial weights are a function of ``seed``."""
    torch.manual_seed(seed)
    return build_network(config, num_classes)


def make_teacher(config: TeacherConfig | None, data: SegmentationDataset) -> Teacher | None:
    """Load the teacher, if the recipe has one; raises ``SegtailorError`` when its classes differ from the data's.

    A teacher of other classes needs a class map, which is checked against both.
    """
    if config is None:
        return None
    network = load_teacher(config, data.num_classes)
    if config.class_map is None:
        return Teacher(network)
    return Teacher(network, read_class_map(config.class_map, network, data.classes))


def class_map_rows(teacher: Teacher | None) -> list[dict[str, Any]]:
    """Return what ``results.json`` says of the teacher's class map; nothing without one."""
    return teacher.class_map.rows() if teacher is not None and teacher.class_map is not None else []


def score_teacher(teacher: Teacher, data: SegmentationDataset, device: torch.device) -> float:
    """Score the teacher on a few images; raises ``SegtailorError`` when it is near chance."""
    result = evaluate_model(teacher, data, device=device, limit=SCORED_BEFORE_START)
    chance = 1.05 / data.num_classes
    if result.miou < chance:
        raise SegtailorError(
            f"the teacher is near chance: mIoU {100 * result.miou:.1f} on {result.images} validation images "
            f"(guessing one class gives at most {100 / data.num_classes:.1f}); check teacher.weights, or set "
            "teacher.check false"
        )
    return result.miou


def make_methods(
    configs: list[MethodConfig],
    student: Network,
    teacher: Teacher | None,
    built_as: ModelConfig,
    seed: int,
) -> tuple[dict[str, Method], dict[str, float]]:
    """Build the recipe's methods for a ``student`` that was ``built_as`` its config says.

    Their initial projectors are a function of ``seed``. Raises ``SegtailorError`` for a method listed twice, or without
    the teacher that it needs.
    """
    num_classes = student.num_classes
    names = [config.name for config in configs]
    for name in names:
        if names.count(name) > 1:
            raise SegtailorError(f"the recipe names the method {name} {names.count(name)} times; list it once")
    methods: dict[str, Method] = {}
    for config in configs:
        kind = METHODS[config.name]
        if kind.teacher == "recipe" and teacher is None:
            raise SegtailorError(f"method {config.name} needs a teacher; set teacher.weights (a run folder or a file)")
        own = None
        if kind.teacher == "own":
            own = kind.build_teacher(check_options(config.name, config.options()), built_as, num_classes, seed)
        guide = own or teacher
        torch.manual_seed(seed + 1)
        try:
            method = create_method(
                config.name,
                num_classes=num_classes,
                student_channels=student.tap_channels,
                teacher_channels=guide.tap_channels if guide is not None else student.tap_channels,
                **config.options(),
            )
        except MissingTapError as missing:
            named = guide if missing.role == "teacher" and guide is not None else student
            raise missing.named(config.name, named.name) from None
        if own is not None:
            method.use_teacher(own)
        methods[config.name] = method
    return methods, {config.name: config.weight for config in configs}


def check_methods(configs: list[MethodConfig]) -> None:
    """Raise ``SegtailorError`` for an unknown method or option, before anything is loaded."""
    for config in configs:
        check_options(config.name, config.options())


def result_row(
    role: str,
    label: str,
    model: Network,
    result: EvaluationResult,
    size: tuple[int, int],
    **training: Any,
) -> dict[str, Any]:
    """Return one row of ``results.json``: cost at ``size``, scores, and what the training says of itself."""
    return {
        "role": role,
        "label": label,
        "model": model.name,
        "parameters": count_parameters(model),
        "multiply_adds": count_multiply_adds(model, size) or None,
        "miou": result.miou,
        "miou_all": result.miou_all,
        "pixel_accuracy": result.pixel_accuracy,
        "mean_accuracy": result.mean_accuracy,
        "mean_dice": result.mean_dice,
        "iou": result.iou,
        "best_miou": None,
        "best_step": None,
        "steps": None,
        "seconds": None,
        **training,
    }


def profile_size(config: DataConfig, data: SegmentationDataset) -> tuple[int, int]:
    """Return the (height, width) at which costs are stated: the size that the networks see in evaluation."""
    if config.size is not None:
        return config.size
    image = data[0].image
    return int(image.shape[-2]), int(image.shape[-1])


def environment(config: TrainConfig, fabric: Any) -> dict[str, str]:
    """Return what the report says about software and machine."""
    device = fabric.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine() + " CPU"
    return {
        "segtailor": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.system(),
        "device": name,
        "processes": str(fabric.world_size),
        "threads": str(torch.get_num_threads()),
        "precision": config.precision,
        "seed": str(config.seed),
    }


def check_weights_licences(policy: Policy, networks: Mapping[str, Network | None], first: bool) -> None:
    """Print a note for each network's licence that is not known to be permissive, on the ``first`` process.

    Raises ``SegtailorError`` for a restricted one where ``policy`` is ``permissive``.
    """
    found = {role: network.licences for role, network in networks.items() if network is not None}
    notes = check_licences(policy, found)
    if first and notes:
        print("\n".join(f"note: {note}" for note in notes), file=sys.stderr)


def model_card(data: SegmentationDataset, recipe: dict[str, Any], teacher: Teacher | None = None) -> dict[str, Any]:
    """Return what a weights file says of its data and origin; the licences are those of a ``teacher``'s weights."""
    taught = {} if teacher is None else teacher.model.licences
    return {
        "licences": {f"teacher's {part}": text for part, text in taught.items()},
        "classes": list(data.classes),
        "palette": [list(color) for color in data.palette],
        "mean_color": list(data.mean_color),
        "data_licence": data.license,
        "recipe": recipe,
    }


def card_with_metrics(card: dict[str, Any], result: EvaluationResult, step: int) -> dict[str, Any]:
    """Return ``card`` with the scores of the weights beside it."""
    metrics = {"miou": result.miou, "miou_all": result.miou_all, "pixel_accuracy": result.pixel_accuracy, "step": step}
    return {**card, "metrics": metrics}


def weights_path(folder: Path) -> Path:
    """Return the file that ``segtailor train`` leaves in its run folder."""
    return folder / "model.safetensors"
