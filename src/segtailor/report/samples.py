"""Pictures of validation images, drawn at a run's end: predictions, wrong pixels, and altered logits."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from segtailor.config import EvaluateConfig
from segtailor.data.base import Sample, SegmentationDataset
from segtailor.data.image_io import resize_image
from segtailor.evaluation.inference import evaluating, predict_logits
from segtailor.evaluation.render import Picture, colorize, wrong_map
from segtailor.files import VOID, Size
from segtailor.models.teacher import Teacher

LOW, MIDDLE, HIGH = (np.array(color, float) for color in ((33, 102, 172), (247, 247, 247), (178, 24, 43)))

Alteration = Callable[[Tensor, Tensor], Tensor]
"""From the teacher's logits (B,K,h,w) and the target (B,H,W) to the logits that the student learns (B,K,H,W)."""


def write_samples(
    folder: Path,
    dataset: SegmentationDataset,
    models: Mapping[str, nn.Module],
    evaluate: EvaluateConfig,
    device: str | torch.device = "cpu",
    window: Size | None = None,
) -> list[dict[str, Any]]:
    """Draw ``evaluate.samples`` images of ``dataset`` under ``folder/samples`` and return their list for results.json.

    The images are spread evenly over the data set, so that none is chosen. ``models`` maps a role (teacher, alone,
    distilled, model) to a network; each gives a colored mask and a map of its wrong pixels at the mask's own size.
    An entry is ``{"name", "pictures": {what: path under folder}, "wrong": {role: share of scored pixels}}``.
    ``window`` is the sliding window where ``evaluate`` has none. Earlier samples are removed.
    """
    shutil.rmtree(folder / "samples", ignore_errors=True)
    entries = []
    for number, index in enumerate(_spread(len(dataset), evaluate.samples)):
        sample = dataset[index]
        target = sample.target.numpy()
        image = _shown(sample)
        pictures: dict[str, Picture] = {"image": image, "target": colorize(target, dataset.palette)}
        wrong = {}
        for role, model in models.items():
            mask = _predict(model, sample.image, sample.target, dataset, evaluate, torch.device(device), window)
            pictures[role] = colorize(mask, dataset.palette)
            pictures[f"{role}-wrong"] = wrong_map(mask, target, image)
            scored = target != VOID
            wrong[role] = float((mask != target)[scored].mean()) if scored.any() else None
        paths = _save(folder, f"samples/{number:02d}", pictures)
        entries.append({"name": sample.name, "pictures": paths, "wrong": wrong})
    return entries


def write_tailored(
    folder: Path, dataset: SegmentationDataset, teacher: Teacher, arms: Sequence[tuple[str, Alteration]], count: int
) -> list[dict[str, Any]]:
    """Draw how the first of ``arms`` alters the teacher's logits on ``count`` images, under ``folder/tailoring``.

    For each image the class whose logits change most; blue is low, red is high, and before and after have one scale.
    Pictures have the size of the labels. Returns their list for ``comparison.json``, empty where there is no arm.
    """
    shutil.rmtree(folder / "tailoring", ignore_errors=True)
    device = teacher.preprocess.mean.device
    entries = []
    for arm, alter in arms[:1]:
        for number, index in enumerate(_spread(len(dataset), count)):
            sample = dataset[index]
            target = sample.target.unsqueeze(0).to(device)
            with torch.no_grad(), evaluating(teacher):
                logits = teacher(sample.image.unsqueeze(0).to(device), target).logits.float()
                before, after, label = _most_changed(logits, alter(logits, target), target)
            difference = after - before
            top = float(np.abs(np.stack((before, after))).max()) or 1.0
            pictures = {
                "image": _shown(sample),
                "before": _diverging(before / top),
                "after": _diverging(after / top),
                "difference": _diverging(difference / (float(np.abs(difference).max()) or 1.0)),
            }
            paths = _save(folder, f"tailoring/{number:02d}", pictures)
            entries.append({"name": sample.name, "arm": arm, "class": dataset.classes[label], "pictures": paths})
    return entries


def _spread(length: int, count: int) -> list[int]:
    """Return ``count`` places (or all) spread evenly over ``length``."""
    return [int(place) for place in np.linspace(0, length - 1, min(count, length)).round()]


def _shown(sample: Sample) -> Picture:
    """Return the image at the size of its mask, so that all pictures of a row cover each other."""
    height, width = sample.target.shape
    picture: Picture = resize_image(sample.image, (height, width)).permute(1, 2, 0).numpy()
    return picture


def _save(folder: Path, start: str, pictures: Mapping[str, Picture]) -> dict[str, str]:
    """Write ``folder/start-WHAT.png`` of each picture and return the paths below ``folder``."""
    (folder / start).parent.mkdir(parents=True, exist_ok=True)
    paths = {what: f"{start}-{what.replace(':', '-')}.png" for what in pictures}
    for what, picture in pictures.items():
        Image.fromarray(picture).save(folder / paths[what])
    return paths


def _predict(
    model: nn.Module,
    image: Tensor,
    target: Tensor,
    dataset: SegmentationDataset,
    evaluate: EvaluateConfig,
    device: torch.device,
    window: Size | None,
) -> NDArray[np.uint8]:
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
            target=target[None].to(device),
        )
        return logits[0].argmax(0).to(torch.uint8).cpu().numpy()


def _most_changed(
    logits: Tensor, altered: Tensor, target: Tensor
) -> tuple[NDArray[np.floating], NDArray[np.floating], int]:
    """Return the logits (H,W) before and after of the class that changes most among those of the target, and it."""
    rows, columns = (
        torch.arange(large, device=logits.device) * small // large
        for small, large in zip(logits.shape[-2:], altered.shape[-2:], strict=True)
    )
    before, after = logits[0][:, rows.unsqueeze(1), columns], altered[0]
    change = (after - before).abs().mean((1, 2))
    present = torch.bincount(target[target < len(change)].long(), minlength=len(change)) > 0
    label = int(torch.where(present, change, -1.0).argmax())
    return before[label].cpu().numpy(), after[label].cpu().numpy(), label


def _diverging(values: NDArray[np.floating]) -> Picture:
    """Return colors (H,W,3) of values in -1..1: blue, white, red."""
    share = np.clip(np.abs(values), 0, 1)[..., None]
    end = np.where(values[..., None] < 0, LOW, HIGH)
    picture: Picture = np.round(MIDDLE * (1 - share) + end * share).astype(np.uint8)
    return picture
