"""Benchmark data sets: what their publishers state, and opening a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

from segtailor.config import DataConfig
from segtailor.data.classes_file import ClassesFile, read_classes
from segtailor.data.masks import index_values
from segtailor.data.paired import FileDataset, MaskValues
from segtailor.data.pairing import Pair, require_folder
from segtailor.errors import SegtailorError, unknown

TABLES = Path(__file__).parent / "classes"


class Variant(NamedTuple):
    """One form of a data set: the classes of ``classes/TABLE.yaml``, and its splits with the published image counts.

    ``without`` names labels of the table that are no classes: their mask values are void, or, unless
    ``without_is_void``, errors. ``root`` is the default folder where it is not that of the data set.
    """

    name: str
    table: str
    splits: Mapping[str, int]
    without: tuple[str, ...] = ()
    without_is_void: bool = True
    root: Path | None = None

    @property
    def described(self) -> ClassesFile:
        """The classes, their colors and mask values."""
        return _read_table(self.table, self.without, self.without_is_void)

    @property
    def classes(self) -> list[str]:
        """The class names."""
        return self.described.classes


@cache
def _read_table(table: str, without: tuple[str, ...], void: bool) -> ClassesFile:
    whole = read_classes(TABLES / f"{table}.yaml")
    return whole.without(without, void) if without else whole


class BenchmarkDataset(NamedTuple):
    """A published data set; ``variants`` begin with the default, ``root`` is the default folder.

    ``inner`` are folders of the root that may hold the data, ``hint`` ends errors: which folders must be there.
    """

    name: str
    title: str
    license: str
    root: Path
    variants: tuple[Variant, ...]
    hint: str = ""
    inner: tuple[str, ...] = ()

    def locate(self, config: DataConfig, split: str) -> tuple[Variant, Path]:
        """Return the variant that ``config`` asks for, which has ``split``, and the folder that holds it.

        That is ``config.root``, else the default one, or the first of the folders ``inner`` there. Raises
        ``SegtailorError`` for an unknown variant or split and for a missing folder.
        """
        variant = self.variant(config)
        self.require_split(variant, split)
        root = require_folder(config.root or variant.root or self.root, self.hint)
        return variant, next((root / name for name in self.inner if (root / name).is_dir()), root)

    def folder(self, root: Path, *names: str, hint: str = "") -> Path:
        """Return the first of the folders ``names`` in ``root`` that exists; raises ``SegtailorError`` without any."""
        found = next((root / name for name in names if (root / name).is_dir()), None)
        if found is None:
            looked = " or ".join(str(root / name) for name in names)
            raise SegtailorError(f"no such folder: {looked}; {hint or self.hint}")
        return found

    def variant(self, config: DataConfig) -> Variant:
        """Return the variant that ``config`` asks for; raises ``SegtailorError`` for an unknown one."""
        if config.variant is None:
            return self.variants[0]
        found = next((variant for variant in self.variants if variant.name == config.variant), None)
        if found is None and len(self.variants) == 1:
            raise SegtailorError(f"{self.name} has no variants; leave data.variant out ('{config.variant}')")
        if found is None:
            raise unknown(f"variant of {self.name}", config.variant, [variant.name for variant in self.variants])
        return found

    def require_split(self, variant: Variant, split: str, hint: str = "") -> None:
        """Raise ``SegtailorError`` when ``variant`` has no ``split``."""
        if split not in variant.splits:
            if other := next((other.name for other in self.variants if split in other.splits), None):
                hint = f"Set data.variant: {other} for it"
            elif split == "test":
                hint = "The masks of its test images are not published"
            where = self.name if len(self.variants) == 1 else f"{self.name} ({variant.name})"
            raise unknown(f"split of {where}", split, variant.splits, hint)

    def open(
        self,
        pairs: Sequence[Pair],
        config: DataConfig,
        variant: Variant,
        split: str,
        training: bool,
        values: MaskValues | None = None,
        read_mask: Callable[[Pair], NDArray[Any]] | None = None,
    ) -> FileDataset:
        """Return ``pairs`` as a ``split``; ``values`` are as published unless they, or ``config``, are set."""
        described = variant.described.model_copy(update={"license": self.license})
        values = values or index_values(config, described, self.name, correct="")
        expected = variant.splits.get(split)
        return FileDataset(pairs, config, split, training, described, values, read_mask, expected)
