"""Validation images for the report: what each model says, and where it is wrong."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import nn

from segtailor.config import EvaluateConfig
from segtailor.data.image_io import resize_image
from segtailor.evaluation.evaluate import LabelledImages
from segtailor.evaluation.inference import evaluating, predict_logits
from segtailor.evaluation.render import Palette, Picture, colorize, wrong_map
from segtailor.files import VOID, Size


class ColoredImages(LabelledImages, Protocol):
    """A data set whose classes have colours."""

    @property
    def palette(self) -> Palette: ...  # noqa: D102


def write_samples(
    folder: Path,
    dataset: ColoredImages,
    models: Mapping[str, nn.Module],
    evaluate: EvaluateConfig,
    device: str | torch.device = "cpu",
    window: Size | None = None,
) -> list[dict[str, Any]]:
    """Draw ``evaluate.samples`` images of ``dataset`` under ``folder/samples`` and return their list for results.json.

    The images lie evenly through the data set, so that none is chosen. ``models`` maps a role (teacher, alone,
    distilled, model) to a network; each gives a coloured mask and a map of its wrong pixels at the mask's own size.
    An entry is ``{"name", "pictures": {what: path under folder}, "wrong": {role: share of scored pixels}}``.
    ``window`` is the sliding window where ``evaluate`` has none. Earlier samples are removed.
    """
    target_folder = folder / "samples"
    shutil.rmtree(target_folder, ignore_errors=True)
    count = min(evaluate.samples, len(dataset))
    if count == 0:
        return []
    target_folder.mkdir(parents=True)
    entries = []
    for number, index in enumerate(np.linspace(0, len(dataset) - 1, count).round().astype(int).tolist()):
        sample = dataset[index]
        target = sample.target.numpy()
        # the image is shown at the mask's size, so that all pictures of a row lie on each other
        height, width = target.shape
        image = resize_image(sample.image, (height, width)).permute(1, 2, 0).numpy()
        pictures: dict[str, Picture] = {"image": image, "target": colorize(target, dataset.palette)}
        wrong = {}
        for role, model in models.items():
            mask = _predict(model, sample.image, sample.target, dataset, evaluate, torch.device(device), window)
            pictures[role] = colorize(mask, dataset.palette)
            pictures[f"{role}-wrong"] = wrong_map(mask, target, image)
            scored = target != VOID
            wrong[role] = float((mask != target)[scored].mean()) if scored.any() else None
        paths = {}
        for what, picture in pictures.items():
            paths[what] = f"samples/{number:02d}-{what.replace(':', '-')}.png"
            Image.fromarray(picture).save(folder / paths[what])
        entries.append({"name": sample.name, "pictures": paths, "wrong": wrong})
    return entries


def _predict(
    model: nn.Module,
    image: torch.Tensor,
    target: torch.Tensor,
    dataset: ColoredImages,
    evaluate: EvaluateConfig,
    device: torch.device,
    window: Size | None,
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    window = evaluate.window or window or (image.shape[-2], image.shape[-1])
    model.to(device)
    with evaluating(model):
        logits = predict_logits(
            model,
            image[None].to(device),
            (target.shape[-2], target.shape[-1]),
            mode=evaluate.mode,
            window=window,
            stride=evaluate.stride,
            fill=dataset.mean_color,
            target=target[None].to(device) if getattr(model, "sees_target", False) else None,
        )
        return logits[0].argmax(0).to(torch.uint8).cpu().numpy()
