"""How knowledge passes from teacher to student: one file a method, and an explicit table of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from segtailor.errors import SegtailorError, unknown
from segtailor.methods.adversarial import Adversarial
from segtailor.methods.afdcd import DenseContrast
from segtailor.methods.at import AttentionTransfer
from segtailor.methods.base import Channels, Method, MethodOptions
from segtailor.methods.bpkd import BoundaryPrivileged
from segtailor.methods.cirkd import CIRKD
from segtailor.methods.cwd import ChannelWise
from segtailor.methods.diffkd import DiffKD
from segtailor.methods.dist import DIST
from segtailor.methods.dsd import DoubleSimilarity
from segtailor.methods.feature import FeatureRegression
from segtailor.methods.fitnet import FitNet
from segtailor.methods.heteroakd import Heterogeneous
from segtailor.methods.ifvd import ClassVariation
from segtailor.methods.kd import PixelKD
from segtailor.methods.kt import KnowledgeTailoring
from segtailor.methods.lad import LabelAssistedDistillation
from segtailor.methods.maskd import MaskedDistillation
from segtailor.methods.none import NoDistillation
from segtailor.methods.skd import Pairwise

METHODS: dict[str, type[Method[Any]]] = {
    "none": NoDistillation,
    "kd": PixelKD,
    "fitnet": FitNet,
    "at": AttentionTransfer,
    "skd": Pairwise,
    "adversarial": Adversarial,
    "ifvd": ClassVariation,
    "cwd": ChannelWise,
    "dsd": DoubleSimilarity,
    "cirkd": CIRKD,
    "dist": DIST,
    "maskd": MaskedDistillation,
    "diffkd": DiffKD,
    "lad": LabelAssistedDistillation,
    "kt": KnowledgeTailoring,
    "feature": FeatureRegression,
    "bpkd": BoundaryPrivileged,
    "afdcd": DenseContrast,
    "heteroakd": Heterogeneous,
}

__all__ = ["METHODS", "Method", "MethodOptions", "check_options", "create_method", "list_methods"]


def list_methods() -> list[tuple[str, str]]:
    """Return (name, summary) of every method.

    >>> list_methods()[0][0]
    'none'
    """
    return [(name, method.summary) for name, method in METHODS.items()]


def check_options(name: str, options: Mapping[str, Any]) -> MethodOptions:
    """Return the checked options of the method ``name``, defaults filled in.

    Raises :class:`SegtailorError` for an unknown method or option (with the nearest names) and for a value that the
    option does not take.

    >>> check_options("kd", {"temperature": 4}).temperature
    4.0
    """
    if name not in METHODS:
        raise unknown("method", name, METHODS, "`segtailor methods` lists them")
    schema = METHODS[name].Options
    for option in options:
        if option not in schema.model_fields:
            raise unknown(f"option of method '{name}'", option, schema.model_fields, f"see `segtailor methods {name}`")
    try:
        return schema.model_validate(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][:1])
        wrong = f"{first['msg']} (got {first['input']!r})"
        raise SegtailorError(f"method '{name}', option '{where}': {wrong}; see `segtailor methods {name}`") from None


def create_method(
    name: str, num_classes: int, student_channels: int | Channels, teacher_channels: int | Channels, **options: Any
) -> Method[Any]:
    """Return the method ``name`` for two networks of the given widths.

    Channels are a dict tap -> width (``model.tap_channels``), or an int, the width of the feature in front of the
    classifier. Raises :class:`SegtailorError` for unknown names, options and taps.

    >>> create_method("kt", 19, student_channels=128, teacher_channels=256, variant="published").options.ft
    1.0
    """
    checked = check_options(name, options)
    widths = [
        {"feature": channels} if isinstance(channels, int) else dict(channels)
        for channels in (student_channels, teacher_channels)
    ]
    return METHODS[name](num_classes, widths[0], widths[1], checked)
