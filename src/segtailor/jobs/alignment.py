"""How student and teacher are aligned: the tensors a method compares, their grids and their widths."""

from __future__ import annotations

import json
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch

from segtailor.errors import SegtailorError, reason
from segtailor.files import Size
from segtailor.losses import is_much_finer
from segtailor.methods.base import Method
from segtailor.models.inspect import count_parameters, run_and_count
from segtailor.models.network import Network, SegOutput
from segtailor.models.teacher import Teacher

MOST_SKEW = 1.5
"""How much the two grids' proportions may differ; more means that the tensors do not show the same image."""
Shapes = dict[Any, tuple[SegOutput, int]]
"""The shapes of an architecture's output, and its multiply-adds, by the key of `shapes_of`."""


def align(
    student: Network,
    teacher: Teacher | None,
    methods: Mapping[str, Method],
    size: Size,
    shapes: Shapes | None = None,
) -> list[str]:
    """Return one line for each tensor that a method compares, for training windows of ``size``.

    ``shapes`` keeps what was found of an architecture for the next arm. Raises :class:`SegtailorError` when a method
    needs what a network does not return, or when two grids cannot be aligned.
    """
    shapes = {} if shapes is None else shapes
    try:
        own, _ = shapes_of(student, size, shapes)
    except Exception as error:  # networks of other libraries refuse a size in their own ways
        better = student.preprocess.input_size(size)
        hint = "choose another data.crop" if better == size else f"set data.crop [{better[0]}, {better[1]}]"
        raise SegtailorError(
            f"{student.name} does not run on training windows of {size[0]} x {size[1]} ({reason(error)[:160]}); {hint}"
        ) from error
    lines = []
    for name, method in methods.items():
        guide = method.own_teacher or (teacher if method.teacher == "recipe" else None)
        if guide is None:
            continue
        output, _ = shapes_of(guide.model, guide.preprocess.input_size(size), shapes)
        mapped = guide.class_map
        output = output if mapped is None else deepcopy(mapped).to("meta").map_output(output)
        stretched = student.preprocess.size is not None or guide.preprocess.size is not None
        lines += align_method(name, method, own, output, stretched)
    return lines


def shapes_of(model: Network, size: Size, known: Shapes) -> tuple[SegOutput, int]:
    """Return the shapes of the output for an image of exactly ``size``, and the multiply-adds; ``known`` is reused.

    Networks of one description and as many parameters are the same.
    """
    spec = model.spec() if model.trainable else {"name": model.name}  # a teacher that is a file has no description
    key = (json.dumps(spec, sort_keys=True, default=str), count_parameters(model), size)
    if key not in known:
        known[key] = run_and_count(model, size, exact=True)
    return known[key]


def align_method(
    name: str, method: Method, student: SegOutput, teacher: SegOutput, stretched: bool = False
) -> list[str]:
    """Return the lines of one method for two outputs; see :func:`align`.

    ``stretched``: a network sees every image at one fixed size, so that proportions say nothing.
    """
    lines = []
    maps = [tap for tap in ("logits", "aux_logits") if tap in method.inputs]
    taps = [*maps, *sorted(method.inputs - set(maps))]
    if {"feature", "classifier_input"} <= set(taps):
        taps.remove("feature")  # it replaces the other where a network has no dropout
    for tap in taps:
        own, guide = (
            output.feature if tap == "classifier_input" and output.tap(tap) is None else output.tap(tap)
            for output in (student, teacher)
        )
        if tap == "aux_logits" and (own is None or guide is None):
            lines.append(f"{name}, aux_logits: left out, the {'student' if own is None else 'teacher'} has none")
            continue
        if own is None or guide is None:
            continue  # stages.N may belong to one network alone
        how = _grids(name, tap, own.shape[-2:], guide.shape[-2:], stretched)
        if own.shape[1] != guide.shape[1]:
            how += f"; {method.channel_alignment}"
        lines.append(f"{name}, {tap}: student {_shape(own)}, teacher {_shape(guide)}: {how}")
    return lines


def _grids(name: str, tap: str, own: tuple[int, ...], guide: tuple[int, ...], stretched: bool) -> str:
    if own == guide:
        return "equal grids"
    skew = (own[0] / own[1]) / (guide[0] / guide[1])
    if not stretched and not 1 / MOST_SKEW <= skew <= MOST_SKEW:
        raise SegtailorError(
            f"method {name} cannot align {tap}: the student's grid is {own[0]} x {own[1]}, the teacher's {guide[0]} x "
            f"{guide[1]}; they do not show the same image, choose a larger data.crop or another tap"
        )
    size = f"{own[0]} x {own[1]}"
    return f"teacher averaged to {size}" if is_much_finer(guide, own) else f"teacher resized to {size}, bilinear"


def _shape(tensor: torch.Tensor) -> str:
    return " x ".join(str(side) for side in tensor.shape[1:])
