"""Python objects in the place of names: networks and data sets that are in memory already."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import nn

from segtailor.config import CompareRecipe, DataConfig, DistillRecipe, ModelConfig, TrainRecipe
from segtailor.data.base import SegmentationDataset
from segtailor.data.external import Classes, TorchDataset
from segtailor.errors import SegtailorError
from segtailor.models import load_model, read_card
from segtailor.models.adapters.python_module import OBJECT, adapt
from segtailor.models.adapters.weights import fill
from segtailor.models.network import Network
from segtailor.models.store import find_weights


@dataclass(frozen=True)
class Objects:
    """Networks and data sets that a caller of the Python API has at hand, each instead of what a recipe names.

    Networks are any ``nn.Module``, of which copies are used; the ``student`` receives the trained weights at the end.
    Data sets are any ``torch.utils.data.Dataset`` of (image, mask), see `TorchDataset`.
    """

    teacher: nn.Module | None = None
    student: nn.Module | None = None
    train_data: Any = None
    val_data: Any = None
    classes: Classes | None = None

    def __post_init__(self) -> None:
        if (self.train_data is None) != (self.val_data is None):
            missing = "train_data" if self.train_data is None else "val_data"
            raise SegtailorError(f"{missing} is missing; give training and validation data together")
        if self.classes is not None and self.train_data is None:
            raise SegtailorError("classes name those of train_data and val_data, which are missing")
        for role in ("teacher", "student"):
            given = getattr(self, role)
            if given is not None and not isinstance(given, nn.Module):
                raise SegtailorError(
                    f"{role} is a {type(given).__name__}, not a torch.nn.Module; names go in the recipe"
                )

    def overrides(self, given: Mapping[str, Any] | None, student: str = "student") -> dict[str, Any]:
        """Return the settings ``given`` by dotted key, with those that name these objects.

        ``student`` is the section of the student, or of the model of `train`.
        """
        if given is not None and not isinstance(given, Mapping):
            raise SegtailorError(
                f"overrides map dotted keys to values, as in {{'train.steps': 20}}; they are no {type(given).__name__}"
            )
        found: dict[str, Any] = {}
        for section, network in (("teacher", self.teacher), (student, self.student)):
            if network is not None:
                found |= {f"{section}.model": name_of(network), f"{section}.weights": None}
        if self.train_data is not None:
            found["data.name"] = name_of(self.train_data)
        return {**found, **(given or {})}

    def check(self, recipe: TrainRecipe | DistillRecipe | CompareRecipe) -> None:
        """Raise SegtailorError where ``recipe``, as a run has recorded it, names an object that was not given."""
        role, student = ("model", recipe.model) if isinstance(recipe, TrainRecipe) else ("student", recipe.student)
        named = [(role, student.model, self.student), ("train_data and val_data", recipe.data.name, self.train_data)]
        if not isinstance(recipe, TrainRecipe) and recipe.teacher is not None:
            named.append(("teacher", recipe.teacher.model, self.teacher))
        for argument, name, found in named:
            if found is None and name.startswith(OBJECT):
                raise SegtailorError(
                    f"the recipe was made with {name.removeprefix(OBJECT)}, a Python object; call from Python, "
                    f"and give it again as {argument}"
                )

    def student_for(self, config: ModelConfig, num_classes: int) -> Network | None:
        """Return a copy of the student object where the recipe's section means it, else None."""
        if self.student is None or config.model != name_of(self.student):
            return None
        return _adapted(self.student, config, num_classes)

    def teacher_for(self, config: ModelConfig, num_classes: int | None) -> Network | None:
        """Return a copy of the teacher object; ``num_classes`` None takes its own attribute of that name."""
        if self.teacher is None:
            return None
        own = getattr(self.teacher, "num_classes", None) if num_classes is None else num_classes
        if not isinstance(own, int):
            raise SegtailorError(
                f"a class map needs to know how many classes {type(self.teacher).__name__} has; set its attribute "
                "num_classes"
            )
        return _adapted(self.teacher, config, own)

    def load(self, path: Path, num_classes: int) -> Network:
        """Load the student that a run has left at ``path``, a file or a run folder."""
        name = read_card(path)["model"]["name"]
        return load_model(path, num_classes, module=deepcopy(self.student) if name.startswith(OBJECT) else None)

    def receive(self, path: Path) -> None:
        """Load the trained weights at ``path``, a file or a run folder, into the student object.

        Raises SegtailorError where they do not fit, as those of a finished run with another student.
        """
        if self.student is None:
            return
        tensors = safetensors.torch.load_file(find_weights(path))
        if not isinstance(self.student, Network):  # saved was its adapter
            tensors = {name.removeprefix("net."): tensor for name, tensor in tensors.items()}
        fill(self.student, tensors, str(path), f"the given {type(self.student).__name__}")

    def dataset(self, data: Any, split: str, config: DataConfig) -> SegmentationDataset:
        """Return ``data`` as one split; raises SegtailorError for what is no data set, or an empty one."""
        if isinstance(data, SegmentationDataset):
            found = data
        else:
            found = TorchDataset(
                data, self.classes, name=type(data).__name__, split=split, training=split == config.train_split,
                config=config,
            )  # fmt: skip
        if len(found) == 0:
            raise SegtailorError(f"the {split} data ({type(data).__name__}) is empty")
        found[0]  # a sample of another form is an error at once
        return found


def name_of(value: Any) -> str:
    """Return how a recipe names the object ``value``: a network of ours by its name, else by its class."""
    return value.name if isinstance(value, Network) else f"{OBJECT}{type(value).__name__}"


def _adapted(module: nn.Module, config: ModelConfig, num_classes: int) -> Network:
    options = config.options()
    for name in ("output_stride", "head_width"):
        if options.pop(name, None) is not None:
            raise SegtailorError(f"{type(module).__name__} is a Python object and has no option {name}; leave it out")
    return adapt(deepcopy(module), num_classes, **options)
