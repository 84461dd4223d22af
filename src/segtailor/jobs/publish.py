"""`segtailor publish`: a run's model as a Hugging Face repository, with its card."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from itertools import zip_longest
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import yaml

from segtailor._version import __version__
from segtailor.errors import SegtailorError, reason
from segtailor.models import load_model, read_card, save_model
from segtailor.models.inspect import count_parameters
from segtailor.models.licenses import use_of
from segtailor.models.network import Network
from segtailor.models.store import CONFIG, OWN, WEIGHTS, find_weights, is_own_config
from segtailor.results.formatting import percent
from segtailor.results.model import RunResults, read_results

PREFIX = "hf:"
PICTURE = "sample.png"
IDS = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0")
"""The hub's ids of licenses; a license text begins with one."""


def publish(run: str | Path, to: str, private: bool = False, license_id: str | None = None) -> str:
    """Write the model of ``run`` (a run folder or ``.safetensors`` file) as a Hugging Face repository.

    ``to`` is ``hf:FOLDER`` (a path: with ``./``, ``/`` or ``..`` in front, or an existing folder) or ``hf:USER/NAME``,
    which is uploaded with huggingface_hub. ``license_id`` is the license that the repository states. Returns where it
    is; ``load_model`` reads it back from there. Raises SegtailorError for a run without a model, a folder that holds
    other files or cannot be written, and an upload that fails.
    """
    target = to.removeprefix(PREFIX)
    if not to.startswith(PREFIX) or not (is_folder(target) or re.fullmatch(r"[^/]+/[^/]+", target)):
        raise SegtailorError(f"--to is hf:USER/NAME or hf:./FOLDER, not '{to}'")
    if license_id is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license_id):
        raise SegtailorError(f"--license is an id of the hub's, such as {IDS[0]} or other, not '{license_id}'")
    weights = find_weights(run)
    card, model = read_card(weights), load_model(weights)
    if is_folder(target):
        folder = Path(target).expanduser()
        try:
            _check_free(folder)
            _write(folder, Path(run), card, model, license_id, to)
        except OSError as error:
            raise SegtailorError(f"cannot write {folder}: {error.strerror or reason(error)}") from error
        return str(folder)
    with tempfile.TemporaryDirectory() as name:
        _write(Path(name), Path(run), card, model, license_id, to)
        return _upload(Path(name), target, private)


def is_folder(target: str) -> bool:
    """Return whether ``target`` means a folder here and not a repository on the hub."""
    return target.startswith((".", "/", "~")) or (target != "" and Path(target).is_dir())


def _check_free(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise SegtailorError(f"{folder} is a file; give a folder")
    others = sorted(item.name for item in folder.glob("*") if not item.name.startswith(".git"))
    if others and not is_own_config(folder / CONFIG):
        raise SegtailorError(f"{folder} holds other files ({', '.join(others[:3])}); give an empty or new folder")


def _write(folder: Path, run: Path, card: dict[str, Any], model: Network, license_id: str | None, uri: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    try:
        results = read_results(run)
    except SegtailorError:
        results = None
    samples = sorted((run / "samples").glob("*-distilled.png"))
    card = portable(card)
    save_model(model, folder / WEIGHTS, {key: value for key, value in card.items() if key not in ("version", "model")})
    texts = {
        CONFIG: json.dumps(_config(card, model), indent=1) + "\n",
        "preprocessor_config.json": json.dumps(_processor(model), indent=1) + "\n",
        "README.md": model_card_text(card, model, results, license_id, uri, PICTURE if samples else None),
    }
    if card.get("recipe"):
        texts["recipe.yaml"] = yaml.safe_dump(card["recipe"], sort_keys=False)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    if results is not None:
        RunResults.model_validate(portable(results.model_dump(mode="json"))).write(folder / "results.json")
    if samples:
        shutil.copyfile(samples[0], folder / PICTURE)


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
    """Return how images are prepared by callers other than segtailor, which does it inside the model."""
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


def _upload(folder: Path, name: str, private: bool) -> str:
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError:
        raise SegtailorError("publishing on the hub needs huggingface_hub: pip install huggingface_hub") from None
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


def model_card_text(
    card: dict[str, Any],
    model: Network,
    results: RunResults | None,
    license_id: str | None,
    uri: str,
    picture: str | None,
) -> str:
    """Return the Markdown, with the hub's front matter: license, metrics, origin and use.

    ``card`` is the weights' own, ``results`` the run's, if there are any. Without ``license_id`` the license
    follows from the weights' and stays `other` where weights or data restrict use or say nothing.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    recipe = card.get("recipe") or {}
    data, evaluate, train = (recipe.get(section) or {} for section in ("data", "evaluate", "train"))
    size, how = data.get("size"), ""
    if evaluate.get("mode") == "slide":  # the snippet scores what the card states, on images of any size
        how = f', mode="slide", window={tuple(evaluate.get("window") or data.get("crop") or size or ())}'
        how += f", stride={tuple(evaluate['stride'])}" if evaluate.get("stride") else ""
    name = str(data.get("name", "unknown"))
    rows = [] if results is None else results.rows
    distilled = results is not None and results.method not in (None, "none")
    names, licenses = card.get("classes") or [], card.get("licenses") or {}
    colors = [", ".join(map(str, color)) for color in card.get("palette") or []]
    iou = [percent(value) for value in rows[-1].iou] if rows else []
    environment = Environment(
        loader=PackageLoader("segtailor.jobs", "."), undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("model_card.md").render(
        matter=yaml.safe_dump(_front_matter(card, name, license_id), sort_keys=False), model=model, data_name=name,
        parameters=count_parameters(model), method=None if results is None else results.method,
        teacher=next((row for row in rows if row.role == "teacher" and distilled), None), picture=picture, uri=uri,
        how=how, size=size, rows=rows, seed=train.get("seed"), miou=(card.get("metrics") or {}).get("miou"),
        classes=list(zip_longest(names, colors[: len(names)], iou[: len(names)], fillvalue="")), licenses=licenses,
        data_license=card.get("data_license") or "unknown", percent=percent,
        restricted=any(use_of(str(text)) == "restricted" for text in licenses.values()),
        recipe=yaml.safe_dump(recipe, sort_keys=False) if recipe else "",
        millions=lambda count, digits: f"{count / 1e6:.{digits}f}",
    )  # fmt: skip


def license_of(card: dict[str, Any]) -> str:
    """Return the hub's id of the license that all weights share; other where weights or data are not known to be free.

    >>> card = {"licenses": {"backbone": "Apache-2.0 (PyPI package)"}, "data_license": "CC0-1.0"}
    >>> license_of(card), license_of({**card, "data_license": "unknown"})
    ('apache-2.0', 'other')
    >>> license_of({**card, "licenses": {"teacher's backbone": "cc-by-nc-4.0"}})
    'other'
    """
    found = [str(text) for text in (card.get("licenses") or {}).values()]
    if not found or any(use_of(text) != "permissive" for text in (*found, str(card.get("data_license")))):
        return "other"
    ids = {next((known for known in IDS if text.lower().startswith(known)), "other") for text in found}
    return ids.pop() if len(ids) == 1 else "other"


def _front_matter(card: dict[str, Any], data: str, license_id: str | None) -> dict[str, Any]:
    metrics = card.get("metrics") or {}
    matter: dict[str, Any] = {
        "license": license_id or license_of(card),
        "library_name": "segtailor",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "knowledge-distillation", "segtailor"],
    }
    if "miou" in metrics:
        score = {"type": "mean_iou", "name": "mIoU", "value": round(100 * float(metrics["miou"]), 2)}
        task = {"type": "image-segmentation", "name": "Semantic segmentation"}
        dataset = {"type": data, "name": data, "split": "val"}
        name = str((card.get("model") or {}).get("name", "model"))
        matter["model-index"] = [{"name": name, "results": [{"task": task, "dataset": dataset, "metrics": [score]}]}]
    return matter
