"""Mask classification (MaskFormer, Mask2Former, OneFormer) as per-pixel logits: its semantic map's scores."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from segtailor.models.adapters.adapted import Adapted
from segtailor.models.adapters.result import Ran
from segtailor.models.heads.blocks import resize

FEATURE = "model.pixel_level_module.decoder.mask_projection"
"""The pixel decoder's last layer, whose product with a query is that query's mask."""
LEAST = 1e-8
"""Scores below are raised to it before the logarithm."""
SEMANTIC_TASK = (49406, 518, 10549, 533, 29119, 1550, 49407)
"""CLIP's tokens of "the task is semantic", with start and end; OneFormer takes them as numbers, zeros behind."""
NOTE = "its logits are the log of its semantic map's normalised scores; mask classification is a teacher only"


def semantic_logits(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Return per-pixel logits (B,K,h,w): the log of each class's share in the queries' masks.

    ``class_logits`` (B,Q,K+1), the null class last; ``mask_logits`` (B,Q,h,w). A class's score is the sum over queries
    of its probability times the mask's (Cheng et al. 2021, arXiv:2107.06278, semantic inference).

    >>> semantic_logits(torch.zeros(1, 1, 3), torch.zeros(1, 1, 1, 1)).exp().flatten().tolist()
    [0.5, 0.5]
    """
    classes = class_logits.float().softmax(dim=-1)[..., :-1]
    scores = torch.einsum("bqk,bqhw->bkhw", classes, mask_logits.float().sigmoid())
    return (scores / scores.sum(dim=1, keepdim=True).clamp_min(LEAST)).clamp_min(LEAST).log()


def semantic_task(length: int) -> Tensor:
    """Return OneFormer's input for the semantic task, (1,length)."""
    kept = SEMANTIC_TASK if length >= len(SEMANTIC_TASK) else (*SEMANTIC_TASK[: length - 1], SEMANTIC_TASK[-1])
    return torch.tensor([[*kept, *[0] * (length - len(kept))]])


class MaskClassifier(Adapted):
    """A network that classifies masks, seen through its semantic map; ``feature`` is its pixel decoder's map.

    It cannot be trained here: its own training matches queries to segments, of which a semantic map knows nothing.
    """

    trainable = False
    note = NOTE

    def __init__(self, name: str, num_classes: int, net: nn.Module, *args: Any, **kwargs: Any) -> None:
        config: Any = net.config
        if config.model_type == "oneformer":
            net.register_buffer("semantic_task", semantic_task(config.task_seq_len), persistent=False)
        own = kwargs.pop("taps", None) or {}
        super().__init__(name, num_classes, net, *args, taps={"feature": FEATURE, **own}, **kwargs)
        self.options.pop("taps")
        self.options |= {"taps": dict(own)} if own else {}
        self.requires_grad_(False)

    def run(self, inputs: Tensor) -> Ran:
        """Return the semantic map's logits for normalised ``inputs`` (B,3,H,W)."""
        task = getattr(self.net, "semantic_task", None)
        further = {} if task is None else {"task_inputs": task.expand(len(inputs), -1)}
        result = self.net(pixel_values=inputs, **further)
        return Ran(semantic_logits(result.class_queries_logits, result.masks_queries_logits))

    def upsample(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``logits`` (B,K,h,w) at ``size``; the scores are enlarged, not their logarithms."""
        if tuple(logits.shape[-2:]) == tuple(size):
            return logits
        return resize(logits.exp(), size, self.align_corners).clamp_min(LEAST).log()
