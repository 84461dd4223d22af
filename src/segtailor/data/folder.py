"""Any folder of images and index masks, with a small YAML that names the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from segtailor.config import DataConfig, SplitConfig, Strict
from segtailor.data.base import Color, check_classes
from segtailor.data.files import FileDataset, MaskValues
from segtailor.data.pairs import Pair, pair_folders, pair_list, require_folder
from segtailor.data.palette import distinct_colors
from segtailor.errors import SegtailorError, unknown
from segtailor.recipes import validate

Byte = Annotated[int, Field(ge=0, le=255)]
RGB = tuple[Byte, Byte, Byte]


class ClassesFile(Strict):
    """``classes.yaml``: the class names, and what else the numbers in the masks mean.

    ``classes`` may be a list of names, or a mapping of names to colours.
    """

    classes: list[str] = Field(description="names in the masks' order")
    palette: list[RGB] | None = Field(None, description="the colour of each class")
    values: list[Byte] | None = Field(None, description="the mask value of each class; default 0, 1, 2, ...")
    void: list[Byte] = Field(default_factory=list, description="mask values that are ignored; 255 always is")
    mean_color: RGB = Field((124, 116, 104), description="what images are padded with")
    licence: str = "unknown (set `licence` in classes.yaml)"

    @model_validator(mode="before")
    @classmethod
    def _split_names_from_colors(cls, content: Any) -> Any:
        if isinstance(content, dict) and isinstance(content.get("classes"), dict):
            named = content["classes"]
            return {"palette": list(named.values()), **content, "classes": list(named)}
        return content

    @field_validator("palette", "values")
    @classmethod
    def _one_a_class(cls, given: list[Any] | None, info: ValidationInfo) -> list[Any] | None:
        count = len(info.data.get("classes", ()))
        if given is not None and count and len(given) != count:
            raise ValueError(f"{len(given)} entries for {count} classes")
        if given is not None and info.field_name == "values" and len(set(given)) < len(given):
            raise ValueError("a mask value stands for two classes")
        return given

    @field_validator("void")
    @classmethod
    def _is_no_class(cls, void: list[int], info: ValidationInfo) -> list[int]:
        values = info.data.get("values") or range(len(info.data.get("classes", ())))
        if both := sorted(set(void) & set(values)):
            raise ValueError(f"the mask values {both} are classes already; give the classes' mask values as `values`")
        return void

    def class_values(self) -> list[int]:
        """Return the mask value of each class."""
        return list(self.values or range(len(self.classes)))

    def colors(self) -> tuple[Color, ...]:
        """Return the palette, made up when the file gives none."""
        return tuple(self.palette) if self.palette else distinct_colors(len(self.classes))


def create_folder(config: DataConfig, split: str, training: bool) -> FileDataset:
    """Return a split of the folder ``config.root``.

    ``config.splits`` says where the split's images and masks lie; without it they are looked for in ``SPLIT/images``
    and ``SPLIT/masks``, then in ``images/SPLIT`` and ``masks/SPLIT``. Classes come from ``config.classes``, else from
    ``classes.yaml`` in the root. Raises ``SegtailorError`` for what is missing or does not fit.
    """
    if config.root is None:
        raise SegtailorError("the data set 'folder' needs data.root: the folder that holds your images and masks")
    root = require_folder(config.root, "set data.root to the folder that holds your images and masks")
    described = read_classes(config.classes or root / "classes.yaml")
    return FileDataset(
        _pairs(root, split, config.splits),
        name="folder",
        split=split,
        classes=tuple(described.classes),
        palette=described.colors(),
        mean_color=described.mean_color,
        licence=described.licence,
        values=MaskValues({value: index for index, value in enumerate(described.class_values())}, described.void),
        size=config.size,
        training=training,
    )


def read_classes(path: Path) -> ClassesFile:
    """Read the YAML at ``path``; raises ``SegtailorError``, on one line, for a file that is missing or wrong."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SegtailorError(
            f"no such file: {path}; write the class names there ('classes: [road, car]') or set data.classes"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SegtailorError(f"cannot read {path} as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SegtailorError(f"{path} holds no mapping; write the class names there ('classes: [road, car]')")
    names = content.get("classes")
    if isinstance(names, list | dict):
        check_classes(str(path), tuple(map(str, names)))
    return validate(ClassesFile, content, str(path))


def _pairs(root: Path, split: str, splits: dict[str, SplitConfig] | None) -> tuple[Pair, ...]:
    where = f"the split {split}"
    if splits is not None:
        if split not in splits:
            raise unknown("split", split, splits, "data.splits lists them")
        given = splits[split]
        if given.list is not None and given.images is None and given.masks is None:
            return pair_list(root / given.list, root, where)
        if given.list is not None or given.images is None or given.masks is None:
            raise SegtailorError(f"data.splits.{split} needs `images` and `masks`, or `list` alone")
        hint = f"see data.splits.{split}"
        return pair_folders(require_folder(root / given.images, hint), require_folder(root / given.masks, hint), where)
    layouts = [(root / split / "images", root / split / "masks"), (root / "images" / split, root / "masks" / split)]
    for images, masks in layouts:
        if images.is_dir() and masks.is_dir():
            return pair_folders(images, masks, where)
    looked = " or ".join(f"{images} and {masks}" for images, masks in layouts)
    raise SegtailorError(f"no such folder: looked for {looked}; make one of the two layouts or set data.splits")
