"""The networks that a recipe names: built fresh, or with weights of ours or of another project."""

from __future__ import annotations

from pathlib import Path

from segtailor.config import ModelConfig, TeacherConfig
from segtailor.errors import SegtailorError
from segtailor.models import create_model, load_model
from segtailor.models.adapters import TEACHERS_ONLY, family_of
from segtailor.models.adapters.weights import bare, count_classes, fill, read_weights
from segtailor.models.adapters.wrapper import Adapted
from segtailor.models.network import Network
from segtailor.models.store import is_own

LOADED_BY_NAME = ("hf", "torchvision", *TEACHERS_ONLY)
"""Families whose URI stands for weights, not for an architecture alone."""
STRANGE_SUFFIXES = frozenset({".pth", ".pt", ".bin", ".ckpt", ".safetensors"})


def build_network(config: ModelConfig, num_classes: int) -> Network:
    """Return a network to be trained: fresh, or with ``config.weights``; it has ``num_classes``.

    Raises SegtailorError for weights of other classes or of another network, and for one that cannot be trained.
    """
    named = config.weights or config.model
    if family_of(named) in TEACHERS_ONLY:
        raise SegtailorError(f"{named} cannot be trained: it can be a teacher only; choose another student")
    if config.weights is not None:
        network = _with_weights(config, num_classes)
    else:
        network = create_model(config.model, num_classes, pretrained=config.pretrained, **config.options())
    if not network.trainable:
        raise SegtailorError(f"{network.name} cannot be trained: it can be a teacher only; choose another student")
    return network


def load_teacher(config: TeacherConfig, num_classes: int) -> Network:
    """Return the network that ``config`` names, with weights, and with its own classes where there is a class map.

    Raises SegtailorError for weights of other classes without a class map, or of another network.
    """
    wanted = num_classes if config.class_map is None else None
    if config.weights is not None:
        return _with_weights(config, wanted)
    if (family_of(config.model) or "") in LOADED_BY_NAME:
        return load_model(config.model, wanted, **_choices(config))
    if config.model:
        return create_model(config.model, num_classes, pretrained=config.pretrained, **config.options())
    raise SegtailorError("the recipe's teacher has neither weights nor a model; set teacher.weights")


def _with_weights(config: ModelConfig, num_classes: int | None) -> Network:
    assert config.weights is not None
    path = Path(config.weights)
    foreign = family_of(config.model) and not family_of(config.weights) and path.suffix in STRANGE_SUFFIXES
    if foreign and not is_own(path):
        return _filled(config, path, num_classes)
    return check_name(load_model(config.weights, num_classes, **_choices(config)), config)


def _filled(config: ModelConfig, path: Path, num_classes: int | None) -> Network:
    """Return the network of another library that ``config`` names, filled from a foreign file."""
    tensors = read_weights(path)
    network = create_model(config.model, num_classes or 2, **config.options())
    if not isinstance(network, Adapted):
        raise SegtailorError(f"{config.model} takes no weights file; leave teacher.weights out")
    found = count_classes(bare(tensors, network), network)
    if num_classes is None and found is not None and found != network.num_classes:
        network = create_model(config.model, found, **config.options())
    elif num_classes is not None and found not in (None, num_classes):
        raise SegtailorError(
            f"{path} has {found} classes where {num_classes} are asked for; give weights trained on these classes, or "
            "for a teacher a class_map"
        )
    assert isinstance(network, Adapted)
    fill(network, path)
    return network


def check_name(network: Network, config: ModelConfig) -> Network:
    """Return ``network`` if it is what the recipe calls it."""
    if config.model and config.model != network.name:
        raise SegtailorError(f"{config.weights} holds {network.name}, not {config.model} as the recipe says")
    return network


def _choices(config: ModelConfig) -> dict[str, object]:
    options = config.options()
    return {key: options[key] for key in ("classifier", "taps", "preprocess") if key in options}
