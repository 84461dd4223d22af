"""Networks of other libraries, by URI: ``hf:ID``, ``smp:Arch/encoder``, ``torchvision:name``, ``module:pkg.mod:make``,
and ``onnx:FILE`` (or the bare path of such a file). Each family is a module with ``create`` and ``load``."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segtailor.errors import SegtailorError

FAMILIES = {
    "hf": "segtailor.models.adapters.hf",
    "module": "segtailor.models.adapters.python_module",
    "onnx": "segtailor.models.adapters.onnx",
    "smp": "segtailor.models.adapters.smp",
    "torchvision": "segtailor.models.adapters.torchvision",
}
"""Prefix of the URI, and the module that reads it; imported when it is needed."""
TEACHERS_ONLY = ("onnx",)
"""Families of files that run and cannot be trained; a path that ends like this needs no prefix."""


@dataclass(frozen=True)
class Choices:
    """A recipe's options for a foreign network: path of the classifier, taps by name, preprocessing, and the network's
    configuration in its library, which a card carries so that nothing is looked up again."""

    classifier: str | None = None
    taps: dict[str, str] | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] | None = None


def family_of(name: str) -> str | None:
    """Return the prefix by which ``name`` belongs to another library, or None.

    Raises SegtailorError for an exported program (``pt2:``), which is no longer read.

    >>> family_of("smp:Unet/resnet18"), family_of("deeplabv3-resnet18"), family_of("teacher.onnx")
    ('smp', None, 'onnx')
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix in FAMILIES:
        return prefix
    suffix = Path(name).suffix.removeprefix(".")
    if (colon and prefix == "pt2") or suffix == "pt2":
        path = Path(rest if prefix == "pt2" else name)
        raise SegtailorError(
            f"{name}: exported programs (pt2:) are no longer read; export the network as ONNX instead, "
            f'torch.onnx.export(net.eval(), (image,), "{path.stem}.onnx"), and name it onnx:{path.stem}.onnx'
        )
    return suffix if suffix in TEACHERS_ONLY and not colon else None


def split_name(name: str) -> tuple[Any, str]:
    """Return the module that reads ``name``, and what follows the prefix, or the whole of a bare path."""
    _, colon, rest = name.partition(":")
    return importlib.import_module(FAMILIES[family_of(name) or ""]), rest if colon else name
