"""`segtailor publish`: a run's student as a Hugging Face repository."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from segtailor._version import __version__
from segtailor.errors import SegtailorError, reason
from segtailor.jobs.model_card import model_card_text
from segtailor.models import load_model, read_card, save_model
from segtailor.models.network import Network
from segtailor.models.store import CONFIG, OWN, WEIGHTS, find_weights

PREFIX = "hf:"
PICTURE = "sample.png"


def publish(run: str | Path, to: str, private: bool = False, license_id: str | None = None) -> str:
    """Write the model of ``run`` (a run folder or ``.safetensors`` file) as a Hugging Face repository.

    ``to`` is ``hf:FOLDER`` (a path: with ``./``, ``/`` or ``..`` in front, or an existing folder) or ``hf:USER/NAME``,
    which is uploaded with huggingface_hub. ``license_id`` is the license that the repository states. Returns where it
    lies; ``load_model`` reads it back from there. Raises SegtailorError for a run without a model, a folder that holds
    other files, and an upload that fails.
    """
    if not to.startswith(PREFIX) or len(to) == len(PREFIX):
        raise SegtailorError(f"--to is hf:USER/NAME or hf:./FOLDER, not '{to}'")
    target = to.removeprefix(PREFIX)
    weights = find_weights(run)
    card, model = read_card(weights), load_model(weights)
    if is_folder(target):
        folder = Path(target)
        _check_free(folder)
        _write(folder, Path(run), card, model, license_id, f"{PREFIX}{target}")
        return str(folder)
    with tempfile.TemporaryDirectory() as name:
        _write(Path(name), Path(run), card, model, license_id, f"{PREFIX}{target}")
        return _upload(Path(name), target, private)


def is_folder(target: str) -> bool:
    """Return whether ``target`` means a folder here and not a repository on the hub."""
    return target.startswith((".", "/", "~")) or Path(target).is_dir() or target.count("/") != 1


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SegtailorError(f"{folder} is a file; give a folder")
    if not folder.is_dir():
        return
    others = [item.name for item in folder.iterdir() if not item.name.startswith(".git")]
    if not others:
        return
    try:
        own = OWN in json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        own = False
    if not own:
        named = ", ".join(sorted(others)[:3])
        raise SegtailorError(f"{folder} holds other files ({named}); give an empty or new folder")


def _write(folder: Path, run: Path, card: dict[str, Any], model: Network, license_id: str | None, uri: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    results = _results(run)
    sample = _sample(run)
    card = portable(card)
    save_model(model, folder / WEIGHTS, {key: value for key, value in card.items() if key not in ("version", "model")})
    (folder / CONFIG).write_text(json.dumps(_config(card, model), indent=1) + "\n", encoding="utf-8")
    (folder / "preprocessor_config.json").write_text(json.dumps(_processor(model), indent=1) + "\n", encoding="utf-8")
    if card.get("recipe"):
        (folder / "recipe.yaml").write_text(yaml.safe_dump(card["recipe"], sort_keys=False), encoding="utf-8")
    if results:
        (folder / "results.json").write_text(json.dumps(portable(results), indent=1) + "\n", encoding="utf-8")
    if sample is not None:
        shutil.copyfile(sample, folder / PICTURE)
    text = model_card_text(card, model, results, license_id, uri, PICTURE if sample is not None else None)
    (folder / "README.md").write_text(text, encoding="utf-8")


def portable(value: Any) -> Any:
    """Return nested plain values without this machine's absolute paths: of each, the last part is kept.

    >>> portable({"root": "/home/me/data/camvid", "size": [180, 240]})
    {'root': 'camvid', 'size': [180, 240]}
    """
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    if isinstance(value, str) and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return PureWindowsPath(value).name
    return value


def _config(card: dict[str, Any], model: Network) -> dict[str, Any]:
    classes = card.get("classes") or [str(index) for index in range(model.num_classes)]
    return {
        OWN: {"version": __version__, "model": card["model"], "weights": WEIGHTS},
        "model_type": OWN,
        "architectures": [model.name],
        "num_labels": model.num_classes,
        "id2label": {str(index): name for index, name in enumerate(classes)},
        "label2id": {name: index for index, name in enumerate(classes)},
        "semantic_loss_ignore_index": 255,
    }


def _processor(model: Network) -> dict[str, Any]:
    """Return what a caller must know who prepares images alone; our own loading does it inside the model."""
    spec = model.preprocess.spec()
    return {
        "do_rescale": True,
        "rescale_factor": spec["scale"],
        "do_normalize": True,
        "image_mean": spec["mean"],
        "image_std": spec["std"],
        "do_flip_channel_order": spec["channel_order"] == "bgr",
        "size_divisor": spec["size_multiple"],
    }


def _results(run: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((run / "results.json").read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _sample(run: Path) -> Path | None:
    found = sorted((run / "samples").glob("*-distilled.png")) if run.is_dir() else []
    return found[0] if found else None


def _upload(folder: Path, name: str, private: bool) -> str:
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError:
        raise SegtailorError('publishing on the hub needs the extra hf: pip install "segtailor[hf]"') from None
    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=name, commit_message=f"segtailor {__version__}")
    except Exception as error:  # token, network and names fail in many ways
        raise SegtailorError(
            f"cannot upload to {name} ({reason(error)[:160]}); log in with `hf auth login`, or publish to a folder: "
            "--to hf:./FOLDER"
        ) from error
    return f"https://huggingface.co/{name}"
