"""Distillation in a LightningModule: the loss is a submodule, so that its projectors are trained, moved and saved.

It needs Lightning: pip install lightning (not 2.6.2 or 2.6.3, which are malicious).
"""

from __future__ import annotations

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import segtailor


class Distillation(lightning.LightningModule):  # type: ignore[misc]
    """Trains ``student`` on batches (images, target) with what ``teacher`` knows."""

    def __init__(self, student: nn.Module, teacher: nn.Module, num_classes: int, total_steps: int) -> None:
        super().__init__()
        self.student = student
        self.distillation = segtailor.create_method(
            "cwd", num_classes, student=student, teacher=teacher, total_steps=total_steps
        )
        self.teacher = [teacher]  # in a list: not saved with every checkpoint

    def on_fit_start(self) -> None:
        """Move the teacher, which is no submodule."""
        self.teacher[0].to(self.device)

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Return the loss of a batch."""
        images, target = batch
        logits = self.student(images)
        terms = self.distillation(images, target, student_output=logits)
        terms["task"] = F.cross_entropy(logits, target, ignore_index=255)
        self.log_dict({name: value.detach() for name, value in terms.items()})
        return torch.stack(list(terms.values())).sum()

    def configure_optimizers(self) -> Any:
        """Return the optimizer of the student and the projectors."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)
