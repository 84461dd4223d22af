"""The README of a published model."""

from __future__ import annotations

from typing import Any

import yaml

from segtailor.models.inspect import count_parameters
from segtailor.models.licenses import use_of
from segtailor.models.network import Network

IDS = {"apache-2.0": "apache-2.0", "mit": "mit", "bsd-3-clause": "bsd-3-clause", "cc-by-4.0": "cc-by-4.0"}


def model_card_text(
    card: dict[str, Any],
    model: Network,
    results: dict[str, Any],
    license_id: str | None,
    uri: str,
    picture: str | None,
) -> str:
    """Return the Markdown, with the hub's front matter: license, metrics, how it was made and how it is used.

    ``card`` is the weights' own, ``results`` the run's ``results.json`` (empty without one). Without ``license_id`` the
    license follows from the weights' and stays `other` where they restrict use or say nothing.
    """
    recipe = card.get("recipe") or {}
    data = str((recipe.get("data") or {}).get("name", "unknown"))
    parts = [_front_matter(card, data, license_id), f"# {model.name} for {data}", ""]
    parts.append(_summary(card, model, results, data))
    if picture:
        parts += ["", f"![A validation image, segmented]({picture})"]
    parts += ["", "## Use", "", _usage(card, uri), "", "## Results", "", _table(card, results)]
    classes = ", ".join(card.get("classes") or []) or f"{model.num_classes} classes without names"
    parts += ["", "## Classes", "", classes]
    parts += ["", "## Licenses", "", _licenses(card)]
    if recipe:
        parts += ["", "## Recipe", "", "```yaml", yaml.safe_dump(recipe, sort_keys=False).rstrip(), "```"]
    return "\n".join(parts) + "\n"


def license_of(card: dict[str, Any]) -> str:
    """Return the hub's id of the license that follows from the weights' licenses: the one that all share, or other.

    >>> license_of({"licenses": {"backbone": "Apache-2.0 (PyPI package)"}})
    'apache-2.0'
    >>> license_of({"licenses": {"teacher's backbone": "cc-by-nc-4.0"}})
    'other'
    """
    found = [str(text) for text in (card.get("licenses") or {}).values()]
    if not found or any(use_of(text) != "permissive" for text in found):
        return "other"
    ids = {next((own for known, own in IDS.items() if text.lower().startswith(known)), "other") for text in found}
    return ids.pop() if len(ids) == 1 else "other"


def _front_matter(card: dict[str, Any], data: str, license_id: str | None) -> str:
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
    return "---\n" + yaml.safe_dump(matter, sort_keys=False) + "---\n"


def _summary(card: dict[str, Any], model: Network, results: dict[str, Any], data: str) -> str:
    text = f"A semantic-segmentation network with {count_parameters(model) / 1e6:.2f} M parameters, trained on {data}"
    method = results.get("method")
    teacher = next((row for row in results.get("rows", []) if row.get("role") == "teacher"), None)
    if method and method != "none" and teacher:
        text += f"; distilled from {teacher['model']} ({teacher['parameters'] / 1e6:.1f} M parameters) with {method}"
    return f"{text}. It takes raw RGB pixels: its preprocessing is part of it."


def _usage(card: dict[str, Any], uri: str) -> str:
    """Return how to use the model; the snippet scores what the card states, on images of any size."""
    recipe = card.get("recipe") or {}
    data, evaluate = recipe.get("data") or {}, recipe.get("evaluate") or {}
    size = data.get("size")
    images = f"resize(image, {list(size)})" if size else "image"
    settings = ""
    if evaluate.get("mode") == "slide":
        window = evaluate.get("window") or data.get("crop") or size
        settings = f', mode="slide", window={window}' + (
            f", stride={evaluate['stride']}" * bool(evaluate.get("stride"))
        )
    lines = ["import segtailor", "import torch", "from segtailor.evaluation import predict_logits"]
    lines += ["from torchvision.io import decode_image"]
    lines += ["from torchvision.transforms.v2.functional import resize"] if size else []
    lines += [
        "",
        f'model = segtailor.load_model("{uri}")  # in evaluation mode; raw RGB in, 0..255',
        'image = decode_image("photo.jpg", mode="RGB")[None]  # uint8, (1,3,H,W)',
        "with torch.inference_mode():",
        f"    logits = predict_logits(model, {images}, image.shape[-2:]{settings})  # (1,K,H,W)",
        "labels = logits.argmax(1)",
    ]
    note = f" Images are resized to {size[0]} x {size[1]}, as in training and scoring." if size else ""
    return "\n".join(["```python", *lines, "```", "", f"or `segtailor predict {uri} PHOTOS --out OUT`.{note}"])


def _table(card: dict[str, Any], results: dict[str, Any]) -> str:
    rows = results.get("rows") or []
    if not rows:
        metrics = card.get("metrics") or {}
        return f"mIoU {100 * float(metrics['miou']):.2f}" if "miou" in metrics else "Not recorded."
    lines = ["| model | parameters, M | mIoU | pixel accuracy |", "|---|---:|---:|---:|"]
    for row in rows:
        scores = f"{100 * row['miou']:.2f} | {100 * row['pixel_accuracy']:.2f}"
        lines.append(f"| {row['label']} ({row['model']}) | {row['parameters'] / 1e6:.2f} | {scores} |")
    seed = ((card.get("recipe") or {}).get("train") or {}).get("seed")
    lines += ["", f"Last checkpoint, validation split, one run{'' if seed is None else f' (seed {seed})'}."]
    return "\n".join(lines)


def _licenses(card: dict[str, Any]) -> str:
    licenses = dict(card.get("licenses") or {})
    lines = [f"- {part} weights: {text}" for part, text in licenses.items()]
    lines.append(f"- data: {card.get('data_license') or 'unknown'}")
    if any(use_of(str(text)) == "restricted" for text in licenses.values()):
        lines.append("- Some of these weights restrict their use; so may what was trained from them.")
    return "\n".join(lines)
