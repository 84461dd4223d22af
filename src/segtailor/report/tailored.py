"""What a method makes of the teacher's logits, in pictures: before, after, and where they differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from segtailor.models.teacher import Teacher

LOW, MIDDLE, HIGH = (np.array(color, float) for color in ((33, 102, 172), (247, 247, 247), (178, 24, 43)))

Altered = Callable[[Tensor, Tensor], Tensor | None]
"""From the teacher's logits (B,K,h,w) and the target (B,H,W) to altered logits (B,K,H,W), or None: not altered."""


def write_tailored(
    folder: Path, dataset: LabelledImages, teacher: Teacher, arms: Sequence[tuple[str, Altered]], count: int
) -> list[dict[str, Any]]:
    """Draw ``count`` images under ``folder/tailoring``; returns their list for ``comparison.json``.

    Drawn is the first of ``arms`` that alters the teacher's logits; the list is empty where none does. For each image
    the class whose logits change most; blue is low, red is high, and before and after have one scale. Pictures have
    the size of the labels.
    """
    entries = []
    where = folder / "tailoring"
    device = teacher.preprocess.mean.device
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()
    for number, index in enumerate(indices):
        sample = dataset[index]
        target = sample.target.unsqueeze(0).to(device)
        with torch.no_grad(), evaluating(teacher):
            logits = teacher(sample.image.unsqueeze(0).to(device), target).logits.float()
            found = ((arm, alter(logits, target)) for arm, alter in arms)
            arm, altered = next(((arm, after) for arm, after in found if after is not None), ("", None))
        if altered is None:
            return []
        height, width = target.shape[1:]
        before, after, label = _most_changed(logits, altered, target)
        difference = after - before
        top = float(np.abs(np.stack((before, after))).max()) or 1.0
        pictures = {
            "image": resize_image(sample.image, (height, width)).permute(1, 2, 0).numpy(),
            "before": _diverging(before / top),
            "after": _diverging(after / top),
            "difference": _diverging(difference / (float(np.abs(difference).max()) or 1.0)),
        }
        paths = {}
        where.mkdir(parents=True, exist_ok=True)
        for what, picture in pictures.items():
            paths[what] = f"tailoring/{number:02d}-{what}.png"
            Image.fromarray(picture).save(folder / paths[what])
        entries.append({"name": sample.name, "arm": arm, "class": dataset.classes[label], "pictures": paths})
    return entries


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
