"""Data sets of other packages: a ``torch.utils.data.Dataset`` in memory, a ``module:`` factory, an entry point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segtailor.config import DataConfig
from segtailor.data.base import SegmentationDataset, check_classes
from segtailor.data.classes_file import ClassesFile, distinct_colors, read_classes
from segtailor.data.image_io import INDEX_MODES
from segtailor.data.masks import index_values
from segtailor.data.paired import MaskDataset, Raw
from segtailor.errors import SegtailorError
from segtailor.files import Color
from segtailor.plugins import PREFIX, accepted_parameters, call_factory, find_entry_point, load_entry_point, load_object
from segtailor.recipes import validate

GROUP = "segtailor.datasets"
"""The entry point group under which packages register data sets: a name, and the function or class that opens it."""
Classes = Sequence[str] | Mapping[str, Color] | Path | str


class TorchDataset(MaskDataset):
    """A ``torch.utils.data.Dataset`` of (image, mask) pairs as a data set of segtailor.

    An image is a PIL image, an array (H,W,3) or a tensor (3,H,W), of bytes or of floats between 0 and 1, not yet
    normalized; grey images and an alpha channel are accepted. A mask is a PIL image of class indices, or whole numbers
    (H,W); 255 is void. ``classes`` are names, names with their colors, or a ``classes.yaml``; by default the data set's
    own ``classes``. ``config`` may give ``size``, ``values``, ``void`` and ``reduce_zero_label``. Every sample is
    checked when it is read: ``SegtailorError`` names it.

    >>> pairs = [(np.zeros((4, 6, 3), np.uint8), np.ones((4, 6), np.int64))]
    >>> TorchDataset(pairs, ["road", "car"])[0].target.unique()
    tensor([1], dtype=torch.uint8)
    """

    def __init__(
        self,
        pairs: Any,
        classes: Classes | None = None,
        *,
        name: str = "custom",
        split: str = "train",
        training: bool = True,
        config: DataConfig | None = None,
    ) -> None:
        if not hasattr(pairs, "__len__") or not hasattr(pairs, "__getitem__"):
            raise SegtailorError(
                f"the data set {name} ({type(pairs).__name__}) needs len() and samples by index; an iterable data set "
                "has neither"
            )
        config = (config or DataConfig()).model_copy(update={"name": name})
        described = _described(pairs, classes, name)
        values = index_values(config, described, f"the data set {name}")
        super().__init__(config, split, training, described, values)
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def read(self, index: int) -> Raw:
        """Return the image and the mask of sample ``index``; raises ``SegtailorError`` for other shapes and types."""
        if not 0 <= index < len(self.pairs):
            raise IndexError(index)
        pair, where = self.pairs[index], f"{index} of {self.name} {self.split}"
        if not isinstance(pair, Sequence) or len(pair) < 2:
            raise SegtailorError(f"sample {where} is a {type(pair).__name__}; expected a pair (image, mask)")
        image_at, mask_at = f"image {where}", f"mask {where}"
        return Raw(to_image(pair[0], image_at), _mask(pair[1], mask_at), f"{self.split}-{index:06d}", image_at, mask_at)


def _described(pairs: Any, classes: Classes | None, name: str) -> ClassesFile:
    if isinstance(classes, str | Path):
        return read_classes(Path(classes))
    given = classes if classes is not None else getattr(pairs, "classes", None)
    if not isinstance(given, Mapping) and not (
        isinstance(given, Sequence) and all(isinstance(item, str) for item in given)
    ):
        raise SegtailorError(f"the data set {name} does not name its classes; give their names, as in ['road', 'car']")
    content: dict[str, Any] = {"classes": dict(given) if isinstance(given, Mapping) else list(given)}
    for field in ("palette", "mean_color", "license") if classes is None else ():
        if getattr(pairs, field, None) is not None:
            content[field] = getattr(pairs, field)
    check_classes(f"the data set {name}", tuple(content["classes"]))
    return validate(ClassesFile, content, f"the data set {name}")


def to_image(image: Any, where: str) -> Tensor:
    """Return a PIL image, an array or a tensor as RGB bytes (3,H,W); ``where`` names it in a ``SegtailorError``."""
    if isinstance(image, Image.Image):
        if image.mode[0] in "FI":  # Pillow would clip its pixels, whatever their range
            raise SegtailorError(f"{where} has the mode {image.mode}; convert it to 8 bits a channel")
        image = np.array(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.ndim != 2 and (image.ndim != 3 or image.shape[-1] not in (1, 3, 4)):
            hint = ": transpose(1, 2, 0)" if image.ndim == 3 and image.shape[0] in (1, 3, 4) else ""
            raise SegtailorError(f"{where} has the shape {image.shape}, not (height, width, 3){hint}")
        image = torch.tensor(np.moveaxis(image, -1, 0).copy() if image.ndim == 3 else image.copy())
    if not isinstance(image, torch.Tensor):
        raise SegtailorError(f"{where} is {_kind(image)}; give a PIL image, an array (H,W,3) or a tensor (3,H,W)")
    pixels: Tensor = image.detach().cpu().as_subclass(torch.Tensor)
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3, 4) or 0 in pixels.shape:
        hint = ": permute(2, 0, 1)" if pixels.ndim == 3 and pixels.shape[-1] in (1, 3, 4) else ""
        raise SegtailorError(f"{where} has the shape {tuple(pixels.shape)}, not (3, height, width){hint}")
    if pixels.is_floating_point():
        low, high = float(pixels.min()), float(pixels.max())
        if not (low >= 0 and high <= 1):
            raise SegtailorError(
                f"{where} is {_kind(pixels)} from {low:g} to {high:g}; give bytes of 0 to 255 or floats of 0 to 1, not "
                "normalized: each model normalizes its own input"
            )
        pixels = (pixels * 255).round().to(torch.uint8)
    if pixels.dtype != torch.uint8:
        raise SegtailorError(f"{where} is {_kind(pixels)}; give bytes (uint8) of 0 to 255 or floats of 0 to 1")
    return pixels[:3].expand(3, -1, -1).contiguous()


def _mask(mask: Any, where: str) -> NDArray[Any]:
    """Return ``mask`` as whole numbers (H,W): bytes where they fit."""
    if isinstance(mask, Image.Image):
        if mask.mode not in INDEX_MODES:
            raise SegtailorError(f"{where} holds one class index a pixel, but its mode is {mask.mode}")
        mask = np.array(mask)
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu().numpy()
    if not isinstance(mask, np.ndarray):
        raise SegtailorError(f"{where} is {_kind(mask)}; give a PIL image, an array or a tensor (H,W) of class indices")
    if mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[-1]):
        mask = mask[0] if mask.shape[0] == 1 else mask[..., 0]
    if mask.ndim != 2 or mask.dtype.kind not in "iub":
        raise SegtailorError(
            f"{where} is {_kind(mask)} of the shape {mask.shape}; expected whole numbers (height, width), one class "
            "index a pixel"
        )
    fits = not mask.size or (mask.min() >= 0 and mask.max() <= 255)
    return np.ascontiguousarray(mask.astype(np.uint8) if fits else mask)


def _kind(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.") if hasattr(value, "dtype") else f"a {type(value).__name__}"


def find_factory(name: str) -> Callable[..., Any] | None:
    """Return the factory of the data set ``name``: that of ``module:...`` or of an entry point; None without one.

    Raises ``SegtailorError`` when the code behind the name cannot be imported.
    """
    if name.startswith(PREFIX):
        return load_object(name)
    point = find_entry_point(GROUP, name)
    return None if point is None else load_entry_point(point)


def create_external(factory: Callable[..., Any], config: DataConfig, split: str, training: bool) -> SegmentationDataset:
    """Return the split that ``factory`` opens.

    It is called with ``split``, and, as far as it accepts them and the recipe sets them, with ``root``, ``variant``,
    ``size`` and ``training``; it returns a :class:`SegmentationDataset`, or pairs for :class:`TorchDataset`.
    """
    accepted = accepted_parameters(factory)
    given = {"root": config.root, "split": split, "variant": config.variant, "size": config.size, "training": training}
    given = {name: value for name, value in given.items() if value is not None}
    for name in ("split", "root", "variant"):
        if name in given and accepted is not None and name not in accepted:
            hint = "it must open each split by its name" if name == "split" else f"leave data.{name} out"
            raise SegtailorError(f"{config.name} takes no `{name}`; {hint}")
    arguments = {name: value for name, value in given.items() if accepted is None or name in accepted}
    made = call_factory(config.name, factory, arguments)
    if not isinstance(made, SegmentationDataset):
        return TorchDataset(made, config.classes, name=config.name, split=split, training=training, config=config)
    fields = ("classes", "values", "void")
    if ignored := [f"data.{field}" for field in fields if getattr(config, field) is not None]:
        raise SegtailorError(f"{config.name} defines its classes and masks; leave {' and '.join(ignored)} out")
    made.name, made.split = getattr(made, "name", config.name), getattr(made, "split", split)
    check_classes(config.name, tuple(made.classes))
    if not hasattr(made, "palette"):
        made.palette = distinct_colors(made.num_classes)
    return made
