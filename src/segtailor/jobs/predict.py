"""`segtailor predict`: images in; index masks, colored masks and overlays, or labels, out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypedDict, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn
from typing_extensions import Unpack

from segtailor.data.base import some
from segtailor.data.classes_file import distinct_colors
from segtailor.data.external import to_image
from segtailor.data.image_io import IMAGE_SUFFIXES, UnreadableFile, list_files, read_image, resize_image
from segtailor.errors import SegtailorError, reason, unknown
from segtailor.evaluation import evaluating, predict_logits
from segtailor.evaluation.inference import IMAGENET_COLOR
from segtailor.evaluation.render import colorize, overlay
from segtailor.files import Size
from segtailor.models.store import choose_device, open_card, resolve, trained_size

ImageLike = Image.Image | NDArray[Any] | torch.Tensor
Labels = NDArray[np.uint8]


class PredictSettings(TypedDict, total=False):
    """How images go through the network, and how masks are drawn; see :func:`predict`."""

    size: Size | None
    mode: Literal["whole", "slide"]
    window: Size | None
    stride: Size | None
    alpha: float
    palette: Sequence[Sequence[int]] | None
    device: str
    note: Callable[[str], object]


@overload
def predict(
    model: str | Path | nn.Module, images: str | Path, out: str | Path, **settings: Unpack[PredictSettings]
) -> list[Path]: ...
@overload
def predict(
    model: str | Path | nn.Module, images: ImageLike | str | Path, **settings: Unpack[PredictSettings]
) -> Labels: ...
@overload
def predict(
    model: str | Path | nn.Module, images: Sequence[ImageLike], **settings: Unpack[PredictSettings]
) -> list[Labels]: ...
def predict(
    model: str | Path | nn.Module,
    images: Any,
    out: str | Path | None = None,
    **settings: Unpack[PredictSettings],
) -> Any:
    """Segment ``images``: one or several PIL images, arrays (H,W,3) or tensors (3,H,W), or files.

    Returns the labels uint8 (H,W) of an image, at its own size, and a list of them for a list. With ``out`` the image
    at the path ``images``, or every image below that folder, is segmented into files, and the index masks' paths are
    returned: ``out/index/NAME.png`` holds class indices (8 bit, no palette), ``out/color`` the same in the classes'
    colors and ``out/overlay`` those over the image.

    Images are resized to ``size`` before the network; by default to the size that the model was trained at (the
    recipe on its card), else the image's own. ``mode`` ``slide`` uses a ``window`` and a ``stride``. Colors are
    ``palette``, else the card's, else a default; ``alpha`` is their strength in overlays. Files that are no images are
    named through ``note``. A module that is no network of segtailor gets raw pixels as floats, see `adapt`.

    Raises SegtailorError when there is nothing to read, and, once all others are written, for unreadable images.
    """
    for name in settings:
        if name not in PredictSettings.__annotations__:
            raise unknown("setting of predict", name, PredictSettings.__annotations__)
    for name in ("size", "window", "stride"):
        value: Any = settings.get(name)
        whole = isinstance(value, tuple | list) and all(isinstance(item, Integral) and int(item) > 0 for item in value)
        if value is not None and not (whole and len(value) == 2):
            raise SegtailorError(f"{name} is (height, width) in pixels, as in (512, 1024), not {value!r}")
    if settings.get("mode", "whole") not in ("whole", "slide"):
        raise SegtailorError(f"mode is 'whole' or 'slide', not {settings['mode']!r}")
    network, card = resolve(model), open_card(model)
    segment = _segmenter(network, card, settings)
    if isinstance(images, str | Path):
        path = Path(images)
        if out is not None:
            colors = settings.get("palette") or card.get("palette")
            colors = colors or distinct_colors(int(getattr(network, "num_classes", 255)))
            return _write_all(segment, path, Path(out), colors, settings)
        if not path.is_file():
            what = "is a folder; add out, the folder for its masks" if path.is_dir() else "is no file"
            raise SegtailorError(f"{images} {what}")
        return segment(_read(images))
    if out is not None:
        raise SegtailorError("out takes the masks of files; for images in memory leave it out and keep the result")
    if isinstance(images, list | tuple):
        return [segment(_read(image, f"image {index}")) for index, image in enumerate(images)]
    return segment(_read(images))


def _segmenter(
    network: nn.Module, card: Mapping[str, Any], settings: PredictSettings
) -> Callable[[torch.Tensor], Labels]:
    """Return the function from one image (3,H,W) to its labels (H,W)."""
    size = settings.get("size") or trained_size(card)
    device = choose_device(settings.get("device", "auto"))
    network.to(device)
    red, green, blue = card.get("mean_color", IMAGENET_COLOR)
    logits_of = partial(
        predict_logits, network, mode=settings.get("mode", "whole"), window=settings.get("window"),
        stride=settings.get("stride"), fill=(red, green, blue),
    )  # fmt: skip

    def segment(image: torch.Tensor) -> Labels:
        own = image.shape[-2], image.shape[-1]
        if size is not None:
            image = resize_image(image, size)
        with evaluating(network):
            logits = logits_of(image[None].to(device), own)
        labels: Labels = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
        return labels

    return segment


def _read(image: Any, where: str = "the image") -> torch.Tensor:
    if not isinstance(image, str | Path):
        return to_image(image, where)
    try:
        return read_image(Path(image))
    except UnreadableFile as error:
        raise SegtailorError(f"{image} cannot be read ({error})") from error


def _write_all(
    segment: Callable[[torch.Tensor], Labels],
    path: Path,
    out: Path,
    colors: Sequence[Sequence[int]],
    settings: PredictSettings,
) -> list[Path]:
    """Write the masks, colored masks and overlays of the images at ``path``; return the index masks."""
    images, others = find_images(path, out)
    if others:
        settings.get("note", print)(f"skipped, not an image: {some(others)}")
    written: list[Path] = []
    unreadable: list[str] = []
    for file, name in images.items():
        try:
            image = read_image(file)
        except UnreadableFile as error:
            unreadable.append(f"{file} ({error})")
            continue
        labels = segment(image)
        shown = overlay(image.permute(1, 2, 0).numpy(), labels, colors, settings.get("alpha", 0.5))
        for kind, picture in (("index", labels), ("color", colorize(labels, colors)), ("overlay", shown)):
            _save(picture, out / kind / name)
        written.append(out / "index" / name)
    if unreadable:
        kept = f"; the other {len(written)} are in {out}" if written else ""
        raise SegtailorError(f"{len(unreadable)} of {len(images)} images cannot be read: {some(unreadable)}{kept}")
    return written


def find_images(path: Path, out: Path) -> tuple[dict[Path, str], list[str]]:
    """Return the images at or below ``path`` with the name of their masks, and the files that are no images.

    Masks repeat the folders below ``path``; where two images differ in their suffix alone, it is kept in the names.
    What is in ``out`` is passed over. Raises SegtailorError when there is no such path or no image in it.
    """
    if path.is_file():
        return {path: path.stem + ".png"}, []
    if not path.is_dir():
        raise SegtailorError(f"no such file or folder: {path}")
    skipped = out.resolve()
    if skipped in (path.resolve(), *path.resolve().parents):
        raise SegtailorError(f"{path} is in {out}, the folder for masks, where no images are read; give another --out")
    files = sorted(file for file in list_files(path) if skipped not in file.resolve().parents)
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    others = [str(file.relative_to(path)) for file in files if file.suffix.lower() not in IMAGE_SUFFIXES]
    if not images:
        kinds = ", ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
        raise SegtailorError(f"no images in {path}; readable are {kinds}")
    stems = Counter(file.with_suffix("") for file in images)
    masks = {file: file.with_suffix("") if stems[file.with_suffix("")] == 1 else file for file in images}
    return {file: mask.relative_to(path).as_posix() + ".png" for file, mask in masks.items()}, others


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    except OSError as error:
        raise SegtailorError(f"cannot write {path}: {reason(error)}") from error
