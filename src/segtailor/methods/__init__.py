"""The distillation methods: one file each, a table of them, and methods of other packages."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, overload

from pydantic import ValidationError
from torch import nn

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
from segtailor.methods.own_loop import LOOP_ARGUMENTS, DistillationLoss
from segtailor.methods.skd import Pairwise
from segtailor.methods.stagewise import Stagewise
from segtailor.plugins import PREFIX, entry_point_names, find_entry_point, load_entry_point, load_object, locate

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
    "stagewise": Stagewise,
    "feature": FeatureRegression,
    "bpkd": BoundaryPrivileged,
    "afdcd": DenseContrast,
    "heteroakd": Heterogeneous,
}

GROUP = "segtailor.methods"
"""Entry point group by which an installed package registers methods: ``name = "package.module:Class"``."""

__all__ = [
    "METHODS", "DistillationLoss", "Method", "MethodOptions",
    "check_options", "create_method", "find_method", "list_methods",
]  # fmt: skip


def list_methods() -> list[tuple[str, str]]:
    """Return (name, summary) of every method, those of installed packages last.

    >>> list_methods()[0][0]
    'none'
    """
    names = [*METHODS, *(name for name in entry_point_names(GROUP) if name not in METHODS)]
    return [(name, find_method(name).summary) for name in names]


def find_method(name: str) -> type[Method[Any]]:
    """Return the class of the method ``name``: ours, an installed package's, or ``module:package.file:Class``.

    Raises :class:`SegtailorError` for an unknown name (with the nearest), and for a class that is no method.
    """
    if not isinstance(name, str):
        raise SegtailorError(f"a method is one name, not {name!r}; make one loss for each method and add their terms")
    if name in METHODS:
        return METHODS[name]
    if name.startswith(PREFIX):
        found: Any = load_object(name)
    else:
        point = find_entry_point(GROUP, name)
        if point is None:
            known = [*METHODS, *entry_point_names(GROUP)]
            raise unknown(
                "method", name, known, "`segtailor methods` lists them; your own is module:package.file:Class"
            )
        found = load_entry_point(point)
    if not (isinstance(found, type) and issubclass(found, Method)):
        kind = "a class" if isinstance(found, type) else f"a {type(found).__name__}"
        raise SegtailorError(f"{name} is {kind} that does not derive from segtailor.Method; write class Mine(Method)")
    lacking = [part for part in ("name", "summary") if not isinstance(getattr(found, part, None), str)]
    lacking += ["terms()"] if found.terms is Method.terms else []
    if lacking:
        raise SegtailorError(
            f"the method {name} lacks {', '.join(lacking)}; its class must define name, summary, terms"
        )
    if not (isinstance(found.Options, type) and issubclass(found.Options, MethodOptions)):
        raise SegtailorError(f"the Options of method {name} do not derive from segtailor.MethodOptions")
    if not found.name.isidentifier() or found.name in METHODS:
        taken = "is a method of segtailor" if found.name in METHODS else "is not a plain word"
        raise SegtailorError(f"the method {name} calls itself {found.name!r}, which {taken}; choose another `name`")
    return found


def check_options(name: str, options: Mapping[str, Any]) -> MethodOptions:
    """Return the checked options of the method ``name``, defaults filled in.

    Raises :class:`SegtailorError` for an unknown method or option (with the nearest names) and for a value that the
    option does not take.

    >>> check_options("kd", {"temperature": 4}).temperature
    4.0
    """
    schema = find_method(name).Options
    for given, value in options.items():
        if given in schema.retired:
            instead = schema.retired[given].get(str(value), schema.retired[given][""])
            raise SegtailorError(f"method '{name}', option '{given}': {instead}")
        if given not in schema.model_fields:
            raise unknown(f"option of method '{name}'", given, schema.model_fields, f"see `segtailor methods {name}`")
    try:
        return schema.model_validate(dict(options))
    except ValidationError as error:
        raise SegtailorError(f"method '{name}', option {_first(error)}; see `segtailor methods {name}`") from None


def _first(error: ValidationError) -> str:
    """Return the first field that is wrong, and how."""
    first = error.errors()[0]
    given = " ".join(repr(first["input"]).split())  # a module's is of many lines
    return f"'{first['loc'][0]}': {first['msg'].removeprefix('Value error, ')} (got {given[:80]})"


@overload
def create_method(
    name: str, num_classes: int, student_channels: int | Channels, teacher_channels: int | Channels, **options: Any
) -> Method[Any]: ...


@overload
def create_method(
    name: str, num_classes: int, *, student: nn.Module, teacher: nn.Module | None = None, **options: Any
) -> DistillationLoss: ...


def create_method(
    name: str,
    num_classes: int,
    student_channels: int | Channels | None = None,
    teacher_channels: int | Channels | None = None,
    *,
    student: nn.Module | None = None,
    **options: Any,
) -> Method[Any] | DistillationLoss:
    """Return the method ``name`` for two networks of the given widths, or for two given networks.

    Channels are a dict tap -> width (``model.tap_channels``), or an int, the width of the feature in front of the
    classifier; then the result takes two :class:`SegOutput`. With ``student`` and ``teacher``, which may be any modules
    that give class maps, it is a :class:`DistillationLoss` for your own training loop; the keywords of that class
    (``total_steps``, ``student_taps``, ...) are passed beside the options. Raises :class:`SegtailorError` for unknown
    names, options and taps.

    >>> create_method("kt", 19, student_channels=128, teacher_channels=256, variant="published").options.ft
    1.0
    """
    if student is not None:
        own = {key: options.pop(key) for key in LOOP_ARGUMENTS if key in options}
        kind, build = find_method(name), partial(create_method, name, num_classes, **options)
        check_options(name, options)
        try:
            return DistillationLoss(kind, build, num_classes=num_classes, student=student, **own)
        except ValidationError as error:
            raise SegtailorError(f"create_method, {_first(error)}") from None
    if student_channels is None or teacher_channels is None:
        raise SegtailorError("create_method needs student_channels and teacher_channels, or student and teacher")
    checked = check_options(name, options)
    own, guide = (
        {"feature": channels} if isinstance(channels, int) else dict(channels)
        for channels in (student_channels, teacher_channels)
    )
    kind = find_method(name)
    try:
        return kind(num_classes, own, guide, checked)
    except Exception as error:  # foreign code may fail in any way
        if name in METHODS or isinstance(error, SegtailorError):
            raise
        raise SegtailorError(f"method {name} cannot be built: {locate(error)}") from error
