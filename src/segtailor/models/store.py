"""Resolves MODEL of a recipe, command or call, and reads and writes our files: safetensors with a JSON card.

A MODEL is a network, a name, a run folder, a ``.safetensors`` file or a URI. Nothing that is read is ever executed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, overload

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from segtailor.config import ModelConfig, TeacherConfig
from segtailor.errors import SegtailorError
from segtailor.files import Size, write_atomically
from segtailor.models.adapters import TEACHERS_ONLY, Choices, family_of, split_name
from segtailor.models.adapters.hf_files import quiet
from segtailor.models.adapters.python_module import OBJECT, adapt
from segtailor.models.adapters.weights import bare, count_classes, fill, fill_from, layout_hint, read_weights
from segtailor.models.adapters.wrapper import Adapted, make_preprocess
from segtailor.models.network import Network
from segtailor.models.published import load_published
from segtailor.models.segmenter import Segmenter, create_model

CARD_VERSION = 1
RUN_FILES = ("student.safetensors", "model.safetensors")
"""Weights files of a run folder, in order of preference."""
PUBLISHED, HUB = "published:", "hf:"
LOADED_BY_NAME = ("hf", "torchvision", *TEACHERS_ONLY)
"""Families whose URI names weights, not an architecture alone."""
FOREIGN_SUFFIXES = frozenset({".pth", ".pt", ".bin", ".ckpt"})
CONFIG, WEIGHTS = "config.json", "model.safetensors"
OWN = "segtailor"
"""The key of a Hugging Face repository's ``config.json`` that says that `segtailor publish` wrote it."""
CARD_KEYS = {"licences": "licenses", "data_licence": "data_license"}
"""Keys of earlier cards, and what they are called now."""


def save_model(model: Network, path: str | Path, card: dict[str, Any] | None = None) -> None:
    """Write ``model`` and its card to one ``.safetensors`` file, atomically.

    ``card`` adds what the model does not know itself: classes, palette, metrics, licenses, recipe. Raises
    SegtailorError when the file cannot be written; a file that was there stays whole.
    """
    given = _renamed(card or {})
    licenses = {**model.licenses, **given.pop("licenses", {})}
    write_weights(model, path, {"version": CARD_VERSION, "model": model.spec(), "licenses": licenses, **given})


def write_weights(model: nn.Module, path: str | Path, card: dict[str, Any]) -> None:
    """Write the tensors of ``model`` with ``card`` as it is, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    data = safetensors.torch.save(tensors, metadata={"card": json.dumps(card)})
    write_atomically(path, lambda file: file.write(data))


def read_card(path: str | Path) -> dict[str, Any]:
    """Return the card of a ``.safetensors`` file or of a run folder's model."""
    file = find_weights(path)
    try:
        with safetensors.safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise SegtailorError(f"{file} is damaged or no safetensors file ({error})") from error
    try:
        card = json.loads(metadata["card"])
    except (KeyError, ValueError) as error:
        raise SegtailorError(f"{file} has no card; it was not written by segtailor") from error
    return _renamed(dict(card))


def open_card(model: str | Path | nn.Module) -> dict[str, Any]:
    """Return the card of the weights ``model``; empty for a network or for foreign weights, which carry none."""
    if not isinstance(model, str | Path):
        return {}
    text, path = str(model), Path(model)
    found = own_weights(text.removeprefix(HUB)) if text.startswith(HUB) else _in_run(path) or path
    return {} if found is None or found.suffix != ".safetensors" else read_card(found)


@overload
def resolve(model: str | Path, num_classes: int | None = None) -> Network: ...
@overload
def resolve(model: str | Path | nn.Module, num_classes: int | None = None) -> nn.Module: ...
def resolve(model: str | Path | nn.Module, num_classes: int | None = None) -> nn.Module:
    """Return ``model`` itself if it is a network, else load it, or build it by name where ``num_classes`` are given."""
    if not isinstance(model, str | Path):
        if not isinstance(model, nn.Module):
            raise SegtailorError(f"a model is a path, a name or a torch.nn.Module, not {type(model).__name__}")
        return model
    if num_classes is None or is_stored(str(model)):
        return load_model(model)
    return create_model(str(model), num_classes)


def is_stored(model: str) -> bool:
    """Return whether ``model`` means a file or folder, and not a network's name."""
    if family := family_of(model):
        return family in ("hf", *TEACHERS_ONLY) or Path(model.partition(":")[2]).exists()
    return model.startswith(PUBLISHED) or Path(model).exists() or model.endswith(".safetensors") or "/" in model


def load_model(
    uri: str | Path, num_classes: int | None = None, *, module: nn.Module | None = None, **choices: Any
) -> Network:
    """Load a model, in evaluation mode, from a run folder, a ``.safetensors`` file, ``published:FILE.pth`` or another
    library's URI. To train it further call ``.train()``.

    Those are ``hf:ID-or-folder``, ``smp:ID-or-folder``, ``torchvision:NAME`` and ``onnx:FILE`` (or the bare path of
    an ``.onnx`` file). ``choices`` may hold ``taps`` and ``preprocess``, and for other libraries' networks
    ``classifier`` (see `create_model`). With ``num_classes`` the class count must agree. Weights that were trained from
    a Python object are filled into ``module``, an object of the same architecture. Raises SegtailorError for files that
    are missing, damaged or of another network.
    """
    text, given = str(uri), Choices(**choices)
    own = own_weights(text.removeprefix(HUB)) if text.startswith(HUB) else None
    if own is not None:
        model = _load_own(own, given, module)
    elif module is not None and (family_of(text) or text.startswith(PUBLISHED)):
        raise SegtailorError(f"{uri} needs no module; leave it out")
    elif family_of(text):
        library, rest = split_name(text)
        loaded: Network = library.load(rest, given)
        model = loaded
    elif text.startswith(PUBLISHED):
        model = load_published(Path(text.removeprefix(PUBLISHED)))
        if given.classifier is not None:
            raise SegtailorError(f"{uri} has no option classifier; leave it out")
        assert isinstance(model, Segmenter)
        model.name_taps(given.taps or {})
        model.preprocess = make_preprocess(model.name, {**model.preprocess.spec(), **given.preprocess})
    else:
        model = _load_own(find_weights(uri), given, module)
    _check_classes(uri, model.num_classes, num_classes)
    return model.eval()


def _check_classes(source: str | Path, found: int, wanted: int | None) -> None:
    if wanted not in (None, found):
        raise SegtailorError(
            f"{source} has {found} classes where {wanted} are asked for; give weights trained on these classes, or "
            "for a teacher a class_map"
        )


def build_network(config: ModelConfig, num_classes: int) -> Network:
    """Return a network to be trained: fresh, or with ``config.weights``; it has ``num_classes``.

    Raises SegtailorError for weights of other classes or of another network, and for one that cannot be trained.
    """
    named = config.weights or config.model
    if family_of(named) not in TEACHERS_ONLY:
        if config.weights is not None:
            network = _with_weights(config, num_classes)
        else:
            network = create_model(named, num_classes, pretrained=config.pretrained, **config.options())
        if network.trainable:
            return network
        named = network.name
    raise SegtailorError(f"{named} cannot be trained: it can be a teacher only; choose another student")


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
    a_file = path.suffix in {*FOREIGN_SUFFIXES, ".safetensors"} and not family_of(config.weights)
    if a_file and family_of(config.model) and not is_own(path):
        return _filled(config, path, num_classes)
    network = load_model(config.weights, num_classes, **_choices(config))
    if config.model and config.model != network.name:
        raise SegtailorError(
            f"{config.weights} holds {network.name}, not {config.model} as the recipe says; set model to {network.name}"
        )
    return network


def _filled(config: ModelConfig, path: Path, num_classes: int | None) -> Network:
    """Return the network of another library that ``config`` names, filled from a foreign file."""
    tensors = read_weights(path)
    network, fitting = _built(config, num_classes or 2, tensors)
    found = count_classes(fitting, network)
    if found not in (None, network.num_classes):
        _check_classes(path, found, num_classes)
        network, fitting = _built(config, found, tensors)
    fill_from(network, fitting, str(path))
    return network


def _built(config: ModelConfig, num_classes: int, tensors: dict[str, Tensor]) -> tuple[Adapted, dict[str, Tensor]]:
    """Return the fresh network, and ``tensors`` under its names."""
    network = create_model(config.model, num_classes, **config.options())
    if not isinstance(network, Adapted):
        raise SegtailorError(f"{config.model} takes no weights file; leave teacher.weights out")
    return network, bare(tensors, network)


def _choices(config: ModelConfig) -> dict[str, Any]:
    options = config.options()
    return {key: options[key] for key in ("classifier", "taps", "preprocess") if key in options}


def choose_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` takes a GPU when there is one. Raises SegtailorError for no such."""
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SegtailorError(f"device '{name}' cannot be used here; try auto, cpu or cuda") from error
    return device


def trained_size(card: Mapping[str, Any]) -> Size | None:
    """Return the size to which the recipe on ``card`` resizes images, if it does."""
    size = ((card.get("recipe") or {}).get("data") or {}).get("size")
    return (int(size[0]), int(size[1])) if size else None


def is_own(path: Path) -> bool:
    """Return whether ``path`` is a ``.safetensors`` file that `save_model` wrote."""
    try:
        return path.suffix == ".safetensors" and "model" in read_card(path)
    except SegtailorError:
        return False


def find_weights(uri: str | Path) -> Path:
    """Return the ``.safetensors`` file that ``uri``, a file or a run folder, means."""
    path = Path(uri)
    if found := _in_run(path):
        return found
    if path.is_dir():
        raise SegtailorError(f"{path} holds no {' or '.join(RUN_FILES)}; is it a finished run?")
    if not path.exists():
        raise SegtailorError(
            f"no such file or folder: {uri}; give a run folder, a .safetensors file or {PUBLISHED}FILE"
        )
    if path.suffix in FOREIGN_SUFFIXES:
        try:
            hint = layout_hint(read_weights(path))
        except SegtailorError:
            hint = ""
        advice = (
            hint or f"; for a published checkpoint write {PUBLISHED}{path}, else name the network beside it (model)"
        )
        raise SegtailorError(f"{path} is not a .safetensors file{advice}")
    return path


def _in_run(folder: Path) -> Path | None:
    """Return the weights of the run ``folder``, None where it is none."""
    return next((folder / name for name in RUN_FILES if (folder / name).is_file()), None)


def own_weights(name: str) -> Path | None:
    """Return the weights file of the repository or folder ``name`` if `segtailor publish` wrote it, else None.

    A repository on the hub is looked up with huggingface_hub, where that is installed. Raises SegtailorError for a
    repository of ours whose weights are missing.
    """
    folder = Path(name)
    if folder.exists():
        if not is_own_config(folder / CONFIG):
            return None
        if not (folder / WEIGHTS).is_file():
            raise SegtailorError(f"{folder} is a segtailor repository without {WEIGHTS}; fetch it whole")
        return folder / WEIGHTS
    if name.count("/") != 1 or name.startswith((".", "/")):
        return None
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError:
        return None  # the reader of transformers' repositories names the missing extra
    try:
        with quiet():
            config = Path(hf_hub_download(name, CONFIG))
            if not is_own_config(config):
                return None
            return Path(hf_hub_download(name, WEIGHTS))
    except Exception:  # not there, private, or no connection: the reader that comes next says so
        return None


def is_own_config(config: Path) -> bool:
    """Return whether the file ``config`` is of a repository that `segtailor publish` wrote."""
    try:
        content: Any = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and OWN in content


def _load_own(path: Path, given: Choices, module: nn.Module | None = None) -> Network:
    card = read_card(path)
    spec = card.get("model")
    if "label_assisted" in card:
        raise SegtailorError(f"{path} holds a label-assisted teacher, which needs labels; method lad reads it")
    if not isinstance(spec, dict) or not {"name", "num_classes"} <= spec.keys():
        raise SegtailorError(f"{path} has no model in its card; it was not written by segtailor")
    chosen: dict[str, Any] = {} if given.classifier is None else {"classifier": given.classifier}
    for option, value in (("taps", given.taps), ("preprocess", given.preprocess)):
        if value:
            chosen[option] = {**(spec.get(option) or {}), **value}
    spec = {**spec, **chosen}
    needs_module = spec["name"].startswith(OBJECT)
    if module is not None and not needs_module:
        raise SegtailorError(f"{path} holds {spec['name']}, which needs no module; leave it out")
    if module is None and needs_module:
        raise SegtailorError(
            f"{path} was trained from a Python object ({spec['name'].removeprefix(OBJECT)}); build it and pass it: "
            "load_model(FILE, module=...)"
        )
    try:
        model = create_model(**spec) if module is None else adapt(module, **spec)
    except TypeError as error:
        raise SegtailorError(f"{path}: its card does not describe a model of this version ({error})") from error
    model.licenses = dict(card.get("licenses", {}))
    model.classes = tuple(card.get("classes") or ())
    fill(model, safetensors.torch.load_file(path), str(path), model.name)
    return model


def _renamed(card: dict[str, Any]) -> dict[str, Any]:
    """Return ``card`` with today's keys."""
    return {CARD_KEYS.get(key, key): value for key, value in card.items()}
