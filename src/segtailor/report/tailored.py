"""What logit tailoring does to the teacher's logits, in pictures: before, after, and where they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segtailor.data.image_io import resize_image
from segtailor.evaluation.evaluate import LabelledImages
from segtailor.evaluation.inference import evaluating
from segtailor.evaluation.render import Picture
from segtailor.losses import nearest_labels
from segtailor.methods.tailoring.logits import count_atoms, tailor_clean
from segtailor.models.teacher import Teacher

LOW, MIDDLE, HIGH = (np.array(color, float) for color in ((33, 102, 172), (247, 247, 247), (178, 24, 43)))


def write_tailored(folder: Path, dataset: LabelledImages, teacher: Teacher, count: int) -> list[dict[str, Any]]:
    """Draw ``count`` images under ``folder/tailoring``; returns their list for ``comparison.json``.

    For each the class whose logits tailoring (the `clean` variant of ``kt``) changes most; blue is low, red is high,
    and before and after have one scale. Pictures have the size of the labels.
    """
    entries = []
    where = folder / "tailoring"
    where.mkdir(parents=True, exist_ok=True)
    device = teacher.preprocess.mean.device
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()
    for number, index in enumerate(indices):
        sample = dataset[index]
        target = sample.target.unsqueeze(0).to(device)
        with evaluating(teacher):
            logits = teacher(sample.image.unsqueeze(0).to(device), target).logits.float()
        before, after, label = _most_changed(logits, target)
        difference = after - before
        height, width = target.shape[1:]
        top = float(np.abs(np.stack((before, after))).max()) or 1.0
        pictures = {
            "image": resize_image(sample.image, (height, width)).permute(1, 2, 0).numpy(),
            "before": _diverging(before / top),
            "after": _diverging(after / top),
            "difference": _diverging(difference / (float(np.abs(difference).max()) or 1.0)),
        }
        paths = {}
        for what, picture in pictures.items():
            paths[what] = f"tailoring/{number:02d}-{what}.png"
            Image.fromarray(picture).save(folder / paths[what])
        entries.append({"name": sample.name, "class": dataset.classes[label], "pictures": paths})
    return entries


def _most_changed(logits: Tensor, target: Tensor) -> tuple[NDArray[np.floating], NDArray[np.floating], int]:
    """Return one class's logits before and after at label size (H,W), and the class."""
    classes, size = logits.shape[1], (logits.shape[2], logits.shape[3])
    flat = logits.flatten(2)
    raised, capped = tailor_clean(flat, count_atoms(target, classes, size, with_void=False))
    height, width = target.shape[1:]
    row = torch.arange(height, device=target.device) * size[0] // height
    column = torch.arange(width, device=target.device) * size[1] // width
    cell = row.unsqueeze(1) * size[1] + column
    labels = nearest_labels(target, (height, width))[0]
    present = [label for label in range(classes) if bool((labels == label).any())]
    best, change = (flat[0, 0, cell], flat[0, 0, cell], 0), -1.0
    for label in present:
        before = flat[0, label, cell]
        after = torch.where(labels == label, raised[0, label, cell], capped[0, label, cell])
        after = torch.where(labels < classes, after, before)
        amount = float((after - before).abs().mean())
        if amount > change:
            best, change = (before, after, label), amount
    return best[0].cpu().numpy(), best[1].cpu().numpy(), best[2]


def _diverging(values: NDArray[np.floating]) -> Picture:
    """Return colours (H,W,3) of values in -1..1: blue, white, red."""
    share = np.clip(np.abs(values), 0, 1)[..., None]
    end = np.where(values[..., None] < 0, LOW, HIGH)
    picture: Picture = np.round(MIDDLE * (1 - share) + end * share).astype(np.uint8)
    return picture
