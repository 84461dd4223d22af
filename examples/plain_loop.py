"""Distillation in a plain PyTorch loop: any two segmentation networks, one loss, your own optimizer.

Random images and weights, so that it runs in seconds; put your data and trained teacher in their place.
"""

from __future__ import annotations

import segmentation_models_pytorch as smp
import torch
from torch import Tensor
from torch.nn import functional as F

import segtailor

CLASSES, STEPS = 5, 4


def batches() -> list[tuple[Tensor, Tensor]]:
    """Return normalized images (B,3,H,W) and class indices (B,H,W), 255 where there is no label."""
    return [(torch.randn(2, 3, 96, 128), torch.randint(0, CLASSES, (2, 96, 128))) for _ in range(STEPS)]


def main(method: str = "cwd") -> list[dict[str, float]]:
    """Train a few steps and return the losses."""
    student = smp.Unet("resnet18", encoder_weights=None, classes=CLASSES)
    teacher = smp.Unet("resnet34", encoder_weights=None, classes=CLASSES)
    loss = segtailor.create_method(method, CLASSES, student=student, teacher=teacher, total_steps=STEPS)
    optimizer = torch.optim.AdamW([*student.parameters(), *loss.parameters()], lr=1e-3)
    history = []
    for images, target in batches():
        terms = loss(images, target)  # runs the teacher and the student
        terms["task"] = F.cross_entropy(loss.student_output, target, ignore_index=255)
        optimizer.zero_grad()
        torch.autograd.backward(list(terms.values()))
        optimizer.step()
        history.append({name: value.item() for name, value in terms.items()})
    return history


if __name__ == "__main__":
    for line in main():
        print(line)
