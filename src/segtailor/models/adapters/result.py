"""What foreign networks return, in the forms that exist: a tensor, a mapping, a tuple, an object with fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from segtailor.errors import SegtailorError, reason

LOGITS, AUX = ("out", "logits", "masks", "pred", "preds"), ("aux", "aux_logits")
"""Names under which networks give their logits."""
REFUSALS = (AssertionError, RuntimeError, ValueError)
"""What networks raise, these types themselves, at a size that they do not take."""


class Ran(NamedTuple):
    """What a foreign network gives: logits (B,K,h,w) at any size, auxiliary logits, and what it taps itself."""

    logits: Tensor
    aux_logits: Tensor | None = None
    feature: Tensor | None = None


def read_result(result: Any, network: str) -> Ran:
    """Return the logits in ``result``: itself, the entry or field of a usual name, or the first map in a tuple.

    Raises SegtailorError where there is none, or where several entries of a mapping may be meant.
    """
    if isinstance(result, Tensor):
        return Ran(result)
    fields = result if isinstance(result, Mapping) else _fields(result)
    if fields:
        named = next((fields[name] for name in LOGITS if isinstance(fields.get(name), Tensor)), None)
        aux = next((fields[name] for name in AUX if _is_map(fields.get(name))), None)
        maps = [value for value in fields.values() if _is_map(value)]
        if named is not None or len(maps) == 1:
            return Ran(maps[0] if named is None else named, aux if named is not None else None)
        raise SegtailorError(
            f"{network} returns {', '.join(map(str, fields))}; which of them are the logits (B,K,h,w)? Call them 'out' "
            "or 'logits'"
        )
    if isinstance(result, tuple | list):
        first = next((value for value in result if _is_map(value)), None)
        if first is not None:
            return Ran(first)
    raise SegtailorError(f"{network} returns {type(result).__name__}, no tensor of logits (B,K,h,w)")


def refusal(error: Exception, network: str, size: Sequence[int]) -> SegtailorError:
    """Return what to raise where ``network`` fails at ``size`` (height, width)."""
    return SegtailorError(
        f"{network} does not run on an image of {size[0]} x {size[1]} ({reason(error)[:160]}); if it needs a certain "
        "size, set preprocess.size or preprocess.size_multiple"
    )


def _is_map(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


def _fields(result: Any) -> dict[str, Any]:
    """Return the tensors among an object's fields; a plain tuple has none."""
    if isinstance(result, tuple | list):
        names = getattr(result, "_fields", ())
        return {name: getattr(result, name) for name in names}
    return {name: value for name, value in getattr(result, "__dict__", {}).items() if isinstance(value, Tensor)}
