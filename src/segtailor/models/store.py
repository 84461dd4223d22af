"""Models on disk: safetensors with a JSON card; nothing that is read is ever executed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch

from segtailor.errors import SegtailorError
from segtailor.files import write_atomically
from segtailor.models.adapters import Choices, family_of, load_adapted
from segtailor.models.adapters.weights import check_state_dict
from segtailor.models.network import Network, Preprocess
from segtailor.models.segmenter import create_model

CONFIG, WEIGHTS = "config.json", "model.safetensors"
OWN = "segtailor"
"""The key of ``config.json`` that says that segtailor wrote the repository."""


def own_weights(name: str) -> Path | None:
    """Return the weights file of the repository or folder ``name`` if `segtailor publish` wrote it, else None.

    A repository on the hub is looked up with huggingface_hub, where that is installed. Raises SegtailorError for a
    repository of ours whose weights are missing.
    """
    folder = Path(name)
    if folder.is_dir():
        return _checked(folder) if _is_own(folder / CONFIG) else None
    if folder.exists() or name.count("/") != 1 or name.startswith((".", "/")):
        return None
    try:
        from huggingface_hub import hf_hub_download
    except ModuleNotFoundError:
        return None  # the reader of transformers' repositories names the missing extra
    from segtailor.models.adapters.hf_files import quiet

    try:
        with quiet():
            config = Path(hf_hub_download(name, CONFIG))
            if not _is_own(config):
                return None
            return Path(hf_hub_download(name, WEIGHTS))
    except Exception:  # not there, private, or no connection: told by the reader that comes next
        return None


def _checked(folder: Path) -> Path:
    path = folder / WEIGHTS
    if not path.is_file():
        raise SegtailorError(f"{folder} is a repository of segtailor's without {WEIGHTS}; fetch it whole")
    return path


def _is_own(config: Path) -> bool:
    try:
        content: Any = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and OWN in content


CARD_VERSION = 1
RUN_FILES = ("student.safetensors", "model.safetensors")
"""What a run folder may hold, in order of preference."""
PUBLISHED = "published:"
HUB = "hf:"


def save_model(model: Network, path: str | Path, card: dict[str, Any] | None = None) -> None:
    """Write ``model`` and its card to one ``.safetensors`` file, atomically.

    ``card`` adds what the model does not know itself: classes, palette, metrics, licences, recipe. Raises
    SegtailorError when the file cannot be written; a file that was there stays whole.
    """
    given = dict(card or {})
    licences = {**model.licences, **given.pop("licences", {})}
    content = {"version": CARD_VERSION, "model": model.spec(), "licences": licences, **given}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    data = safetensors.torch.save(tensors, metadata={"card": json.dumps(content)})
    write_atomically(path, lambda file: file.write(data))


def read_card(path: str | Path) -> dict[str, Any]:
    """Return the card of a ``.safetensors`` file or of a run folder's model."""
    return _read_card(find_weights(path))


def load_model(uri: str | Path, num_classes: int | None = None, **choices: Any) -> Network:
    """Load a model, in evaluation mode, from a run folder, a ``.safetensors`` file, ``published:FILE.pth`` or another
    library's URI. To train it further call ``.train()``.

    Those are ``hf:ID-or-folder``, ``smp:ID-or-folder``, ``torchvision:NAME`` and ``onnx:FILE`` (or the bare path of
    an ``.onnx`` file). ``choices`` may hold ``taps`` and ``preprocess``, and for other
    libraries' networks ``classifier`` (see `create_model`). With ``num_classes`` the class count must agree. Raises
    SegtailorError for files that are missing, damaged or of another network.
    """
    text, given = str(uri), Choices(**choices)
    own = own_weights(text.removeprefix(HUB)) if text.startswith(HUB) else None
    if own is not None:
        model = _load_own(own, given)
    elif family_of(text):
        model = load_adapted(text, given)
    elif text.startswith(PUBLISHED):
        from segtailor.models.published import load_published

        model = load_published(Path(text.removeprefix(PUBLISHED)))
        if given.classifier is not None:
            raise SegtailorError(f"{uri} has no option classifier; leave it out")
        model.name_taps(given.taps or {})
        model.preprocess = Preprocess(**{**model.preprocess.spec(), **given.preprocess})
    else:
        model = _load_own(find_weights(uri), given)
    if num_classes is not None and model.num_classes != num_classes:
        raise SegtailorError(
            f"{uri} has {model.num_classes} classes where {num_classes} are asked for; "
            "give weights trained on these classes, or for a teacher a class_map"
        )
    return model.eval()


def is_own(path: Path) -> bool:
    """Return whether ``path`` is a ``.safetensors`` file with a card of ours."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        return "model" in _read_card(path)
    except SegtailorError:
        return False


def find_weights(uri: str | Path) -> Path:
    """Return the ``.safetensors`` file that ``uri``, a file or a run folder, stands for."""
    path = Path(uri)
    if path.is_dir():
        for name in RUN_FILES:
            if (path / name).is_file():
                return path / name
        raise SegtailorError(f"{path} holds no {' or '.join(RUN_FILES)}; is it a finished run?")
    if not path.exists():
        raise SegtailorError(
            f"no such file or folder: {uri}; give a run folder, a .safetensors file or {PUBLISHED}FILE"
        )
    if path.suffix in {".pth", ".pt", ".bin", ".ckpt"}:
        raise SegtailorError(f"{path} is not a .safetensors file; for a published checkpoint write {PUBLISHED}{path}")
    return path


def _load_own(path: Path, given: Choices) -> Network:
    card = _read_card(path)
    spec = card.get("model")
    if "label_assisted" in card:
        raise SegtailorError(f"{path} holds a label-assisted teacher, which needs labels; method lad reads it")
    if not isinstance(spec, dict) or not {"name", "num_classes"} <= spec.keys():
        raise SegtailorError(f"{path} has no model in its card; it was not written by segtailor")
    own: dict[str, Any] = {"taps": given.taps or {}, "preprocess": given.preprocess}
    chosen: dict[str, Any] = {name: {**(spec.get(name) or {}), **value} for name, value in own.items() if value}
    if given.classifier is not None:
        chosen["classifier"] = given.classifier
    try:
        model = create_model(**{**spec, **chosen})
    except TypeError as error:
        raise SegtailorError(f"{path}: its card does not describe a model of this version ({error})") from error
    model.licences = dict(card.get("licences", {}))
    model.classes = tuple(card.get("classes") or ())
    tensors = safetensors.torch.load_file(path)
    check_state_dict(model.state_dict(), tensors, str(path), model.name)
    model.load_state_dict(tensors)
    return model


def _read_card(path: Path) -> dict[str, Any]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise SegtailorError(f"{path} is damaged or no safetensors file ({error})") from error
    try:
        card = json.loads(metadata["card"])
    except (KeyError, ValueError) as error:
        raise SegtailorError(f"{path} has no card; it was not written by segtailor") from error
    return dict(card)
