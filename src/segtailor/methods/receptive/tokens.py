"""What receptive tokens do, as pure functions: masks, how much they overlap, and the loss as one map of weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segtailor.losses import full_precision

EPS = 1e-5


def receptive_masks(values: Tensor, tokens: Tensor) -> Tensor:
    """Return one soft mask for each token, ``sigmoid(sum_c tokens[t,c] values[b,c,x])``: (B,T,h,w).

    ``values`` (B,C,h,w), ``tokens`` (T,C).

    >>> receptive_masks(torch.zeros(1, 2, 1, 1), torch.ones(3, 2)).flatten().tolist()
    [0.5, 0.5, 0.5]
    """
    values = full_precision(values)
    return F.conv2d(values, tokens.to(values.dtype)[:, :, None, None]).sigmoid()


def attended(values: Tensor, masks: Tensor, shares: Tensor | None = None) -> Tensor:
    """Return ``values`` (B,C,h,w) times the sum of ``masks`` (B,T,h,w), each times its ``shares`` (B,T) where given.

    A sum of masks is a positive number for each position, so that the largest logit stays the largest.

    >>> attended(torch.tensor([[[[4.0]]]]), torch.full((1, 3, 1, 1), 0.5)).item()
    6.0
    """
    if shares is not None:
        masks = masks * shares[:, :, None, None]
    return full_precision(values) * masks.sum(1, keepdim=True)


def dice(masks: Tensor, multiplicity: Tensor | None = None) -> Tensor:
    """Return how much the masks overlap: ``2 <m_i, m_j> / (|m_i|^2 + |m_j|^2)``, averaged over images and pairs i != j.

    ``masks`` (B,T,h,w); ``multiplicity`` (B,h*w) says how often each position counts. One token gives 0.

    >>> round(dice(torch.tensor([[[[1.0, 1.0]], [[1.0, 0.0]]]])).item(), 4)
    0.6667
    """
    flat = masks.flatten(2)
    counted = flat if multiplicity is None else flat * multiplicity.to(flat.dtype).unsqueeze(1)
    products = torch.bmm(counted, flat.transpose(1, 2))
    squares = products.diagonal(dim1=1, dim2=2)
    ratios = 2 * products / (squares.unsqueeze(1) + squares.unsqueeze(2) + 2e-12)
    pairs = max(masks.shape[1] * (masks.shape[1] - 1), 1)
    overlap = ratios.sum((1, 2)) - ratios.diagonal(dim1=1, dim2=2).sum(1)
    return overlap.mean() / pairs


def weight_map(
    masks: Tensor, multiplicity: Tensor | None = None, shares: Tensor | None = None, eps: float = EPS
) -> Tensor:
    """Return what each position's squared error weighs: ``sum_i shares_i m_i(x)^2 n(x) / (sum_x' n m_i + eps)``.

    ``masks`` (B,T,h,w); ``multiplicity`` n (B,h*w), 1 everywhere when None; ``shares`` (B,T), 1/T when None. One map
    (B,h,w) stands for T masked errors, so that nothing of size B*T*C*h*w is ever made.

    >>> weight_map(torch.tensor([[[[1.0, 1.0]], [[0.0, 0.5]]]]), eps=0.0).tolist()
    [[[0.25, 0.5]]]
    """
    flat = masks.flatten(2)
    counted = flat if multiplicity is None else flat * multiplicity.to(flat.dtype).unsqueeze(1)
    weights = flat * counted / (counted.sum(2, keepdim=True) + eps)
    if shares is None:
        return weights.mean(1).view(len(masks), *masks.shape[2:])
    return (weights * shares.unsqueeze(2)).sum(1).view(len(masks), *masks.shape[2:])


def masked_error(student: Tensor, teacher: Tensor, weights: Tensor) -> Tensor:
    """Return ``0.5 sum_x weights (student - teacher)^2``, averaged over images and channels.

    ``student`` and ``teacher`` (B,C,h,w), ``weights`` (B,h,w) from :func:`weight_map`.

    >>> masked_error(torch.zeros(1, 1, 1, 2), torch.tensor([[[[2.0, 4.0]]]]), torch.tensor([[[1.0, 0.5]]])).item()
    6.0
    """
    errors = (full_precision(student) - full_precision(teacher)).square().mean(1)
    return 0.5 * (errors * weights).sum((1, 2)).mean()
