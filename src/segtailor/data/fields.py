"""Which fields of a recipe's data section each kind of data set reads: a field that is not read is a mistake."""

from __future__ import annotations

from segtailor.config import DataConfig
from segtailor.errors import SegtailorError

_VALUES = frozenset({"values", "void", "reduce_zero_label"})
_KNOWN = _VALUES | {"root", "variant"}
OWN: dict[str, frozenset[str]] = {
    "coco-json": _VALUES | {"root", "annotations", "classes", "splits", "masks"},
    "csv": _VALUES | {"root", "annotations", "classes", "masks", "image_column", "mask_column"},
    "folder": _VALUES | {"root", "classes", "splits", "masks"},
    "hf": _VALUES | {"classes", "masks", "source", "config", "streaming", "image_column", "mask_column"},
    "packed": frozenset({"root"}),
    "toy": frozenset({"length", "root"}),  # a root does no harm: a recipe may be tried on toy as it is
}
"""What the forms of a user's own data read; all known data sets read the same."""
# What refuses a field itself says more than that it is not read.
TOLD_BY_READER = frozenset({"classes", "splits", "masks", "annotations"})
SOME = frozenset().union(*OWN.values()) | _KNOWN
"""Fields that not every data set reads; all others are read by all."""


def check_fields(config: DataConfig, name: str) -> None:
    """Raise ``SegtailorError`` for fields that were set and that the data set ``name`` does not read."""
    read = OWN.get(name, _KNOWN | TOLD_BY_READER)
    default = DataConfig()
    ignored = [field for field in sorted(SOME - read) if getattr(config, field) != getattr(default, field)]
    if ignored:
        fields = ", ".join(f"data.{field}" for field in ignored)
        readers = sorted({other for other, fields in OWN.items() if set(ignored) <= fields})
        known = ["the known data sets"] if set(ignored) <= _KNOWN else []
        by = f"; read by {', '.join(readers + known)}" if readers or known else ""
        raise SegtailorError(f"{name} does not read {fields}{by}; leave it out, or choose another data.name")
