"""Weights of transformers' repositories, read with every tensor accounted for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from segtailor.errors import SegtailorError
from segtailor.models.adapters.hf_files import fetch
from segtailor.models.adapters.weights import layout_hint
from segtailor.models.fit import count_names

IDLE = re.compile(
    r"relative_position_index$|num_batches_tracked$|(^|\.)pooler\.|^criterion\.|^model\.text_mapper\."
    r"|^neck\.fusion_stage\.layers\.0\.residual_layer1\."
)
"""Tensors that play no part in the logits: tables that are computed anew, poolers, losses, OneFormer's text branch,
and the part of DPT's first fusion that its published weights lack."""


def read_weights(rest: str, net_class: Any, config: Any, trained_classes: int) -> nn.Module:
    """Return the network with the repository's weights; the classifier is fresh where ``config`` has other classes
    than the ``trained_classes``.

    Raises SegtailorError with counts and first names for tensors that are missing, unexpected or of another shape.
    """
    net, found = _read(rest, net_class, config)
    fresh = config.num_labels != trained_classes
    shapes = [
        name
        for name, theirs, ours in found["mismatched_keys"]
        if not (fresh and _is_classifier(theirs, ours, trained_classes, config.num_labels))
    ]
    _check(rest, net_class, found["missing_keys"], found["unexpected_keys"], shapes)
    return net


def read_encoder(rest: str, net_class: Any, config: Any, trained_classes: int) -> nn.Module:
    """Return the network with the weights of a repository of another task: its encoder, and a fresh head.

    Raises SegtailorError where not the whole encoder is there.
    """
    net, found = _read(rest, net_class, config)
    base = f"{net_class.base_model_prefix}."
    missing, shapes = found["missing_keys"], [name for name, *_ in found["mismatched_keys"]]
    encoder = [name for name in net.state_dict() if name.startswith(base)]
    lacking = [name for name in missing if name.startswith(base)]
    if not encoder or len(lacking) == len(encoder):
        raise SegtailorError(f"hf:{rest} holds no encoder of a {net_class.__name__}; leave pretrained out")
    _check(rest, net_class, lacking, (), [name for name in shapes if name.startswith(base)])
    return net


def _read(rest: str, net_class: Any, config: Any) -> tuple[nn.Module, dict[str, Any]]:
    net, found = fetch(
        rest,
        lambda: net_class.from_pretrained(
            rest,
            config=config,
            dtype=torch.float32,  # the network's precision is the run's to choose
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
            weights_only=True,
        ),
    )
    if found["error_msgs"]:
        raise SegtailorError(f"hf:{rest} does not fit {net_class.__name__}: {str(found['error_msgs'][0])[:160]}")
    return net, found


def _is_classifier(theirs: Iterable[int], ours: Iterable[int], before: int, now: int) -> bool:
    """Return whether two shapes differ in the class count alone (masks have one class more, the null class)."""
    (given, *rest), (wanted, *others) = theirs, ours
    return rest == others and (given, wanted) in ((before, now), (before + 1, now + 1))


def _check(rest: str, net_class: Any, missing: Iterable[str], unexpected: Iterable[str], shapes: Iterable[str]) -> None:
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    problems = [
        count_names(kind, sorted(name for name in names if not IDLE.search(name))) for kind, names in kinds.items()
    ]
    if any(problems):
        raise SegtailorError(
            f"hf:{rest} does not fit {net_class.__name__}: {'; '.join(filter(None, problems))}"
            f"{_layout(list(unexpected))}"
        )


def _layout(names: list[str]) -> str:
    return layout_hint(dict.fromkeys(names, torch.empty(0)))
