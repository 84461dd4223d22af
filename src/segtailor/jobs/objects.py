"""Python objects in the place of names: networks and data sets that are in memory already."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
from torch import nn

from segtailor.config import DataConfig, ModelConfig
from segtailor.data.base import SegmentationDataset
from segtailor.data.external import Classes, TorchDataset
from segtailor.errors import SegtailorError
from segtailor.models.network import Network
from segtailor.models.store import find_weights

OBJECT = "object:"
"""How a recorded recipe names what was a Python object."""


M = TypeVar("M", bound=nn.Module)


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

    def overrides(self, student: str = "student") -> dict[str, str]:
        """Return the settings that name these objects in a recipe, by dotted key; ``student`` is its section."""
        named = {"teacher": self.teacher, student: self.student, "data": self.train_data}
        keys = {"data": "data.name"}
        return {keys.get(key, f"{key}.model"): name_of(value) for key, value in named.items() if value is not None}

    def copy_of(self, config: ModelConfig | str, num_classes: int) -> Network | None:
        """Return a copy of the student object where the recipe's section, or a card's name, means it; else None."""
        name = config if isinstance(config, str) else config.model
        if self.student is None or name != name_of(self.student):
            return None
        return adapt(deepcopy(self.student), num_classes, **({} if isinstance(config, str) else config.options()))

    def receive(self, path: Path) -> None:
        """Load the trained weights at ``path``, a file or a run folder, into the student object."""
        if self.student is not None:
            fill(self.student, path)

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


def fill(network: M, path: Path) -> M:
    """Load the weights that were saved at ``path`` into ``network``, adapted or as it was given."""
    tensors = safetensors.torch.load_file(find_weights(path))
    if not isinstance(network, Network):  # saved was its adapter
        tensors = {name.removeprefix("net."): tensor for name, tensor in tensors.items()}
    network.load_state_dict(tensors)
    return network


def adapt(
    module: nn.Module,
    num_classes: int | None,
    *,
    classifier: str | None = None,
    taps: Mapping[str, str] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    **others: Any,
) -> Network:
    """Return any ``module`` that maps images (B,3,H,W) to class logits as a network of segtailor.

    ``num_classes`` None takes the module's own attribute of this name, which a teacher with a class map needs.
    ``preprocess`` says what the module's input must be (default: ImageNet's mean and deviation), ``classifier`` and
    ``taps`` are module paths. A network of ours passes as it is. Raises SegtailorError for a module that does not run,
    or gives no logits of ``num_classes``.
    """
    if isinstance(module, Network):
        if num_classes not in (None, module.num_classes):
            raise SegtailorError(f"{module.name} has {module.num_classes} classes where {num_classes} are asked for")
        return module
    from segtailor.models.adapters.wrapper import Adapted
    from segtailor.models.network import Preprocess

    if others:
        raise SegtailorError(f"a network given as an object takes no {', '.join(others)}")
    name = name_of(module)
    num_classes = getattr(module, "num_classes", None) if num_classes is None else num_classes
    if not isinstance(num_classes, int):
        raise SegtailorError(f"{name} does not say how many classes it has; set its attribute num_classes")
    try:
        prepared = Preprocess(**(preprocess or {}))
    except (TypeError, ValueError) as error:
        raise SegtailorError(f"{name}: {error}") from error
    return Adapted(name, num_classes, module, prepared, classifier=classifier, taps=dict(taps) if taps else None)
