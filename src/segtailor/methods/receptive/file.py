"""Receptive tokens on disk: safetensors with a JSON card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from segtailor.errors import SegtailorError, reason
from segtailor.files import write_atomically
from segtailor.methods.receptive.weighting import TokenWeighting

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

    def card(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

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
    content = {"format": FORMAT, "version": VERSION, "method": "maskd", "layout": layout.card(), **card}
    data = safetensors.torch.save(tensors, metadata={"card": json.dumps(content)})
    write_atomically(path, lambda file: file.write(data))


def read_tokens(path: Path, layout: TokenLayout, fingerprint: str | None) -> tuple[Tensor, dict[str, Tensor] | None]:
    """Return tokens (T,C) and the state of their weighting, if ``layout`` asks for one.

    Raises :class:`SegtailorError` for a file that cannot be read, is none of tokens, does not fit ``layout``, or was
    learnt from a teacher other than the one of this ``fingerprint`` (None: not checked).
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, OSError) as error:
        raise SegtailorError(
            f"cannot read tokens from {path}: {reason(error)}; give another tokens_file, or none to learn them"
        ) from error
    card = _card(path, metadata)
    found = card.get("layout")
    wanted = layout.card()
    if not isinstance(found, dict) or any(found.get(key) != value for key, value in wanted.items()):
        raise SegtailorError(
            f"{path} holds tokens of another layout ({_differences(found, wanted)}); "
            "change the method's options, or learn the tokens anew"
        )
    if {name: tensor.shape for name, tensor in tensors.items()} != layout.shapes():
        raise SegtailorError(f"{path} is damaged: its tensors are not what its card says; learn the tokens anew")
    if fingerprint is not None and card.get("teacher") != fingerprint:
        learnt = str(card.get("teacher"))[:12]
        raise SegtailorError(
            f"{path} holds tokens of another teacher ({learnt}, not {fingerprint[:12]}); "
            "leave tokens_file out to learn them from this one, or give the teacher they belong to"
        )
    tokens = tensors.pop("tokens")
    weighting = {name.removeprefix(WEIGHTING): tensor for name, tensor in tensors.items()}
    return tokens, weighting or None


def _card(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        card = json.loads(metadata.get("card", "null"))
    except ValueError:
        card = None
    if not isinstance(card, dict) or card.get("format") != FORMAT or card.get("version") != VERSION:
        raise SegtailorError(f"{path} is not a file of tokens that this version of segtailor wrote; learn them anew")
    return card


def _differences(found: Any, wanted: Mapping[str, Any]) -> str:
    if not isinstance(found, dict):
        return "its card has none"
    return ", ".join(f"{key} {found.get(key)}, not {value}" for key, value in wanted.items() if found.get(key) != value)
