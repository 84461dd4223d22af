"""Distillation with transformers' Trainer: a SegFormer learns from a bigger one.

Random images and weights, so that it runs in seconds; put `from_pretrained` and your data set in their place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import SegformerConfig, SegformerForSemanticSegmentation, Trainer, TrainingArguments

import segtailor

CLASSES = 5


class DistillationTrainer(Trainer):
    """Adds a method's terms to the model's own loss, and its projectors to the optimizer."""

    def __init__(self, *, model: nn.Module, teacher: nn.Module, method: str, steps: int, **arguments: Any) -> None:
        super().__init__(model=model, **arguments)
        self.distillation = segtailor.create_method(
            method, CLASSES, student=model, teacher=teacher.to(self.args.device), total_steps=steps
        )

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the model's cross-entropy plus the method's terms."""
        outputs = model(**inputs)
        loss = outputs.loss
        if model.training:
            terms = self.distillation(inputs["pixel_values"], inputs["labels"], student_output=outputs)
            loss = loss + torch.stack(list(terms.values())).sum()
        return (loss, outputs) if return_outputs else loss

    def create_optimizer(self, *arguments: Any) -> torch.optim.Optimizer:
        """Return the Trainer's optimizer with one more group."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*arguments)
        projectors = list(self.distillation.parameters())
        if projectors:
            optimizer.add_param_group({"params": projectors})
        return optimizer


def segformer(width: int) -> SegformerForSemanticSegmentation:
    """Return a small SegFormer with random weights."""
    widths = [width, 2 * width, 4 * width, 8 * width]
    config = SegformerConfig(
        hidden_sizes=widths, depths=[1, 1, 1, 1], decoder_hidden_size=4 * width,
        semantic_loss_ignore_index=255,
    )  # fmt: skip
    config.num_labels = CLASSES
    return SegformerForSemanticSegmentation(config)


def main(folder: str = "runs/hf-trainer", method: str = "cwd", steps: int = 2) -> float:
    """Train a few steps and return the mean loss."""
    images, labels = torch.randn(8, 3, 64, 64), torch.randint(0, CLASSES, (8, 64, 64))
    data = [{"pixel_values": image, "labels": label} for image, label in zip(images, labels, strict=True)]
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=4, max_steps=steps, report_to=[], use_cpu=not torch.cuda.is_available(),
        save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = DistillationTrainer(
        model=segformer(8), teacher=segformer(16), method=method, steps=steps, args=arguments, train_dataset=data
    )
    return float(trainer.train().training_loss)


if __name__ == "__main__":
    print(main())
