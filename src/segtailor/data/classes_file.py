"""``classes.yaml``: the classes of a data set, their colors, and the encoding of its masks."""

from __future__ import annotations

import colorsys
from collections.abc import Collection
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationInfo, field_validator, model_validator

from segtailor.config import Stored, Strict
from segtailor.data.base import MEAN_COLOR, check_classes
from segtailor.errors import SegtailorError
from segtailor.files import Color
from segtailor.recipes import UniqueKeyLoader, validate


def distinct_colors(count: int) -> tuple[Color, ...]:
    """Return ``count`` colors whose hues are far apart, never black.

    >>> distinct_colors(2)
    ((217, 76, 76), (80, 124, 230))
    """
    colors = []
    for index in range(count):
        # the golden ratio spreads any number of hues evenly
        red, green, blue = colorsys.hsv_to_rgb(index * 0.618034 % 1, 0.65, (0.85, 0.9, 0.6)[index % 3])
        colors.append((round(255 * red), round(255 * green), round(255 * blue)))
    return tuple(colors)


Byte = Annotated[int, Field(ge=0, le=255)]
RGB = tuple[Byte, Byte, Byte]


class ClassesFile(Strict):
    """``classes.yaml``: the class names, and the meaning of the numbers or colors in the masks.

    ``classes`` may be a list of names, or a mapping of names to colors or of mask values to names.
    """

    classes: list[str] = Field(description="names in the masks' order")
    palette: list[RGB] | None = Field(None, description="the color of each class")
    values: list[Byte] | None = Field(None, description="the mask value of each class; default 0, 1, 2, ...")
    void: list[Stored] = Field(default_factory=list, description="mask values that are ignored; 255 always is")
    void_colors: list[RGB] = Field(default_factory=list, description="colors of masks that are ignored")
    mean_color: RGB = Field(MEAN_COLOR, description="what images are padded with")
    license: str = "unknown (set `license` in classes.yaml)"

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, content: Any) -> Any:
        if not isinstance(content, dict):
            return content
        content = dict(content)
        if "licence" in content:  # the British spelling, which the key had before
            content.setdefault("license", content.pop("licence"))
        named = content.get("classes")
        if isinstance(named, dict) and named and all(isinstance(name, str) for name in named.values()):
            content = {"values": list(named), **content, "classes": list(named.values())}
        elif isinstance(named, dict):
            content = {"palette": list(named.values()), **content, "classes": list(named)}
        for name in content["classes"] if isinstance(content.get("classes"), list) else ():
            if name is None or isinstance(name, bool | int | float | date):  # YAML's values of no, on, 2024, ~
                raise ValueError(f"the class name that YAML reads as {name} needs quotes, as in 'no' or '2024'")
        return content

    @field_validator("classes")
    @classmethod
    def _names_differ(cls, names: list[str]) -> list[str]:
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"named twice: {', '.join(twice)}")
        return names

    @field_validator("palette", "values")
    @classmethod
    def _one_a_class(cls, given: list[Any] | None, info: ValidationInfo) -> list[Any] | None:
        count = len(info.data.get("classes", ()))
        if given is not None and count and len(given) != count:
            raise ValueError(f"{len(given)} entries for {count} classes")
        if given is not None and info.field_name == "values" and len(set(given)) < len(given):
            raise ValueError("two classes have the same mask value")
        return given

    @field_validator("void")
    @classmethod
    def _is_no_class(cls, void: list[int], info: ValidationInfo) -> list[int]:
        values = info.data.get("values") or range(len(info.data.get("classes", ())))
        if both := sorted(set(void) & set(values)):
            raise ValueError(f"the mask values {both} are classes already; give the classes' mask values as `values`")
        return void

    def without(self, names: Collection[str], void: bool) -> ClassesFile:
        """Return the file without the classes ``names``; their mask values are ``void``, or errors."""
        rows = list(zip(self.classes, self.colors(), self.class_values(), strict=True))
        kept = [row for row in rows if row[0] not in names]
        left = [value for name, _, value in rows if name in names] if void else []
        changes = {"classes": [row[0] for row in kept], "palette": [row[1] for row in kept]}
        return self.model_copy(update={**changes, "values": [row[2] for row in kept], "void": [*self.void, *left]})

    def class_values(self) -> list[int]:
        """Return the mask value of each class."""
        return list(self.values or range(len(self.classes)))

    def colors(self) -> tuple[Color, ...]:
        """Return the palette, made up when the file gives none."""
        return tuple(self.palette) if self.palette else distinct_colors(len(self.classes))


def read_classes(path: Path) -> ClassesFile:
    """Read the YAML at ``path``; raises ``SegtailorError``, on one line, for a file that is missing or wrong."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=UniqueKeyLoader)
    except FileNotFoundError:
        raise SegtailorError(
            f"no such file: {path}; write the class names there ('classes: [road, car]') or set data.classes"
        ) from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise SegtailorError(f"cannot read {path} as YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise SegtailorError(f"{path} holds no mapping; write the class names there ('classes: [road, car]')")
    names = content.get("classes")
    if isinstance(names, list | dict):
        check_classes(str(path), tuple(map(str, names)))
    return validate(ClassesFile, content, str(path))
