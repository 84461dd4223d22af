"""Receptive tokens (MasKD): masks over the teacher's maps, how the tokens are trained, and their file."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segtailor.errors import SegtailorError, reason
from segtailor.files import write_atomically
from segtailor.losses import Step, cross_entropy, full_precision, valid_counts
from segtailor.methods.base import PretrainObjective
from segtailor.models.network import SegOutput

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
    (B,h,w) replaces T masked errors, so that nothing of size B*T*C*h*w is ever made.

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


class TokenWeighting(nn.Module):
    """Shares of the tokens: softmax of a 1x1 convolution of the image's mean of a 3x3 convolution, nothing between."""

    def __init__(self, channels: int, tokens: int) -> None:
        super().__init__()
        self.local = nn.Conv2d(channels, channels, 3, padding=1)
        self.shares = nn.Conv2d(channels, tokens, 1)

    def forward(self, values: Tensor, multiplicity: Tensor | None = None) -> Tensor:
        """Return (B,T), rows that sum to 1, for ``values`` (B,C,h,w).

        ``multiplicity`` (B,h*w) says how often each position counts in the mean; where it is 0 the position is zeroed
        before the convolution reads it.
        """
        values = full_precision(values)
        if multiplicity is None:
            mean = self.local(values).mean((2, 3), keepdim=True)
        else:
            counts = multiplicity.to(values.dtype).view(len(values), 1, *values.shape[2:])
            total = (self.local(values * (counts > 0)) * counts).sum((2, 3), keepdim=True)
            mean = total / counts.sum((2, 3), keepdim=True).clamp(min=1)
        result: Tensor = self.shares(mean).flatten(1).softmax(1)
        return result


FORMAT = "segtailor tokens"
VERSION = 1
WEIGHTING = "weighting."


@dataclass(frozen=True)
class TokenLayout:
    """What tokens must be to fit a method: ``tokens`` vectors over the ``channels`` of ``tap``, for ``classes``."""

    tokens: int
    channels: int
    classes: int
    tap: str
    weighting: bool

    def shapes(self) -> dict[str, torch.Size]:
        """Return the shape of every tensor of the file."""
        shapes = {"tokens": torch.Size((self.tokens, self.channels))}
        if self.weighting:
            with torch.device("meta"):
                state = TokenWeighting(self.channels, self.tokens).state_dict()
            shapes |= {f"{WEIGHTING}{name}": tensor.shape for name, tensor in state.items()}
        return shapes


def write_tokens(
    path: Path, layout: TokenLayout, tokens: Tensor, weighting: Mapping[str, Tensor] | None, card: Mapping[str, Any]
) -> None:
    """Write ``tokens`` (T,C) and the state of their weighting, atomically; ``card`` adds `teacher` and settings."""
    named = {"tokens": tokens, **{f"{WEIGHTING}{name}": tensor for name, tensor in (weighting or {}).items()}}
    tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in named.items()}
    content = {"format": FORMAT, "version": VERSION, "method": "maskd", "layout": asdict(layout), **card}
    data = safetensors.torch.save(tensors, metadata={"card": json.dumps(content)})
    write_atomically(path, lambda file: file.write(data))


def read_tokens(path: Path, layout: TokenLayout, fingerprint: str | None) -> tuple[Tensor, dict[str, Tensor] | None]:
    """Return tokens (T,C) and the state of their weighting, if ``layout`` asks for one.

    Raises :class:`SegtailorError` for a file that cannot be read, is none of tokens, does not fit ``layout``, or was
    learned from a teacher other than the one of this ``fingerprint`` (None: not checked).
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise SegtailorError(
            f"cannot read tokens from {path}: {reason(error)}; give another tokens_file, or none to learn them"
        ) from error
    try:
        card = json.loads(metadata.get("card", "null"))
    except ValueError:
        card = None
    if not isinstance(card, dict) or card.get("format") != FORMAT or card.get("version") != VERSION:
        raise SegtailorError(f"{path} is not a file of tokens that this version of segtailor wrote; train new ones")
    found = card.get("layout")
    wanted = asdict(layout)
    if not isinstance(found, dict) or any(found.get(key) != value for key, value in wanted.items()):
        raise SegtailorError(
            f"{path} holds tokens of another layout ({_differences(found, wanted)}); "
            "change the method's options, or train new tokens"
        )
    if {name: tensor.shape for name, tensor in tensors.items()} != layout.shapes():
        raise SegtailorError(f"{path} is damaged: its tensors are not what its card says; train new ones")
    if fingerprint is not None and card.get("teacher") != fingerprint:
        other = str(card.get("teacher"))[:12]
        raise SegtailorError(
            f"{path} holds tokens of another teacher ({other}, not {fingerprint[:12]}); "
            "leave tokens_file out to learn them from this one, or give the teacher they belong to"
        )
    tokens = tensors.pop("tokens")
    weighting = {name.removeprefix(WEIGHTING): tensor for name, tensor in tensors.items()}
    return tokens, weighting or None


def _differences(found: Any, wanted: Mapping[str, Any]) -> str:
    if not isinstance(found, dict):
        return "its card has none"
    return ", ".join(f"{key} {found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value)


class TokenObjective(PretrainObjective):
    """Tokens, and their weighting if wished, learned on a teacher that stays as it is.

    Terms: ``task``, the cross-entropy of the teacher's logits under the summed masks, and ``dice``, the masks' overlap.
    The published code adds the cross-entropy of the teacher's auxiliary logits, which is a constant and left out. A
    tapped feature goes through a frozen copy of the teacher's own ``classifier``. Only the rule ``upsample`` is kept of
    the teacher.
    """

    weight: Tensor | None
    bias: Tensor | None

    def __init__(
        self,
        layout: TokenLayout,
        upsample: Callable[[Tensor, tuple[int, int]], Tensor],
        classifier: nn.Conv2d | None,
        overlap: float,
        masked: bool,
    ) -> None:
        super().__init__()
        self.tokens = nn.Parameter(0.01 * torch.randn(layout.tokens, layout.channels))
        self.weighting = TokenWeighting(layout.channels, layout.tokens) if layout.weighting else None
        self.upsample = upsample
        self.overlap = overlap
        self.masked = masked
        self.register_buffer("weight", None if classifier is None else classifier.weight.detach().float().clone())
        bias = None if classifier is None else classifier.bias
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    def forward(self, images: Tensor, target: Tensor, teacher: SegOutput | None, step: Step) -> dict[str, Tensor]:
        """Return the terms; the images themselves are not read."""
        assert teacher is not None
        with torch.autocast(target.device.type, enabled=False):
            values = teacher.logits if self.weight is None else teacher.feature
            assert values is not None
            values = full_precision(values.detach())
            counts = valid_counts(target, values.shape[-2:]) if self.masked else None
            masks = receptive_masks(values, self.tokens)
            kept = attended(values, masks, None if self.weighting is None else self.weighting(values, counts))
            logits = kept if self.weight is None else F.conv2d(kept, self.weight, self.bias)
            size = (target.shape[-2], target.shape[-1])
            terms = {"task": cross_entropy(self.upsample(logits, size), target, step)}
            if self.overlap:
                terms["dice"] = self.overlap * dice(masks, counts)
            return terms
