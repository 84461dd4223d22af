"""`segtailor predict`: images in; index masks, coloured masks and overlays out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segtailor.errors import SegtailorError
from segtailor.files import Size

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray
    from torch import nn


def predict(
    model: str | Path | nn.Module,
    path: str | Path,
    out: str | Path,
    *,
    size: Size | None = None,
    mode: Literal["whole", "slide"] = "whole",
    window: Size | None = None,
    stride: Size | None = None,
    alpha: float = 0.5,
    palette: Sequence[Sequence[int]] | None = None,
    device: str = "auto",
    note: Callable[[str], object] = print,
) -> list[Path]:
    """Write what ``model`` sees in the image ``path``, or in every image below that folder; return the index masks.

    ``out/index/NAME.png`` holds class indices (8 bit, no palette), ``out/color`` the same in the classes' colours and
    ``out/overlay`` those over the image, all at the image's own size. ``size`` is what an image is resized to before
    the network; by default the size that the model was trained at (the recipe on its card), else the image's own.
    Colours are ``palette``, else the card's, else a default. Files that are no images are named through ``note``.

    Raises SegtailorError when there is nothing to read, and, once all others are written, for unreadable images.
    """
    from segtailor.data.classes_file import distinct_colors
    from segtailor.data.image_io import UnreadableFile, read_image
    from segtailor.evaluation import evaluating, predict_logits
    from segtailor.evaluation.inference import IMAGENET_COLOR
    from segtailor.evaluation.render import colorize, overlay
    from segtailor.models.store import choose_device, open_card, resolve

    out = Path(out)
    images, others = find_images(Path(path), out)
    if others:
        note(f"skipped, not an image: {_listed(others)}")
    network = resolve(model)
    card = open_card(model)
    colors = palette or card.get("palette") or distinct_colors(int(getattr(network, "num_classes", 255)))
    size = size or _trained_size(card)
    chosen = choose_device(device)
    network.to(chosen)
    red, green, blue = card.get("mean_color", IMAGENET_COLOR)
    segment = partial(predict_logits, network, mode=mode, window=window, stride=stride, fill=(red, green, blue))
    written: list[Path] = []
    unreadable: list[str] = []
    with evaluating(network):
        for file, name in images.items():
            try:
                image = read_image(file)
            except UnreadableFile as error:
                unreadable.append(f"{file} ({error})")
                continue
            labels = _labels(segment, image, size, chosen)
            _save(labels, out / "index" / name)
            _save(colorize(labels, colors), out / "color" / name)
            _save(overlay(image.permute(1, 2, 0).numpy(), labels, colors, alpha), out / "overlay" / name)
            written.append(out / "index" / name)
    if unreadable:
        kept = f"; the other {len(written)} are in {out}" if written else ""
        raise SegtailorError(f"{len(unreadable)} of {len(images)} images cannot be read: {_listed(unreadable)}{kept}")
    return written


def find_images(path: Path, out: Path) -> tuple[dict[Path, str], list[str]]:
    """Return the images at or below ``path`` with the name of their masks, and the files that are no images.

    Masks repeat the folders below ``path``; where two images differ in their suffix alone, it is kept in the names.
    What lies in ``out`` is passed over. Raises SegtailorError when there is no such path or no image in it.
    """
    from segtailor.data.image_io import IMAGE_SUFFIXES

    if path.is_file():
        return {path: path.stem + ".png"}, []
    if not path.is_dir():
        raise SegtailorError(f"no such file or folder: {path}")
    files = sorted(file for file in path.rglob("*") if file.is_file() and out not in file.parents)
    images = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    others = [str(file.relative_to(path)) for file in files if file.suffix.lower() not in IMAGE_SUFFIXES]
    if not images:
        kinds = ", ".join(sorted(suffix.removeprefix(".") for suffix in IMAGE_SUFFIXES))
        raise SegtailorError(f"no images in {path}; readable are {kinds}")
    stems = Counter(file.with_suffix("") for file in images)
    names = {}
    for file in images:
        name = file.with_suffix(".png") if stems[file.with_suffix("")] == 1 else file.with_name(file.name + ".png")
        names[file] = name.relative_to(path).as_posix()
    return names, others


def _labels(
    segment: Callable[[torch.Tensor, Size], torch.Tensor], image: torch.Tensor, size: Size | None, device: torch.device
) -> NDArray[np.uint8]:
    import torch

    from segtailor.data.image_io import resize_image

    own = image.shape[-2], image.shape[-1]
    if size is not None:
        image = resize_image(image, size)
    logits = segment(image[None].to(device), own)
    labels: NDArray[np.uint8] = logits[0].argmax(0).to(torch.uint8).cpu().numpy()
    return labels


def _trained_size(card: dict[str, Any]) -> Size | None:
    size = ((card.get("recipe") or {}).get("data") or {}).get("size")
    return (int(size[0]), int(size[1])) if size else None


def _save(picture: NDArray[np.uint8], path: Path) -> None:
    from PIL import Image

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)
    except OSError as error:
        raise SegtailorError(f"cannot write {path}: {error.strerror or error}") from error


def _listed(names: Sequence[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
