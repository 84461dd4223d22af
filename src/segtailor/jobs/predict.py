"""`segtailor predict`: images in; index masks, coloured masks and overlays out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segtailor.errors import SegtailorError

if TYPE_CHECKING:
    from torch import nn

IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})
KINDS = ("index", "color", "overlay")


def predict(
    model: str | Path | nn.Module,
    path: str | Path,
    out: str | Path,
    *,
    size: tuple[int, int] | None = None,
    mode: Literal["whole", "slide"] = "whole",
    window: tuple[int, int] | None = None,
    stride: tuple[int, int] | None = None,
    alpha: float = 0.5,
    palette: Sequence[Sequence[int]] | None = None,
    device: str = "auto",
    note: Callable[[str], object] = print,
) -> list[Path]:
    """Write what ``model`` sees in the image, or in every image below the folder, ``path``; return the index masks.

    ``out/index/NAME.png`` holds class indices (8 bit grey), ``out/color`` the same in the classes' colours and
    ``out/overlay`` those over the image, all at the image's own size. ``size`` is what images are resized to before
    the network; by default the size in the recipe on the model's card, else the image's own. Colours come from
    ``palette``, the card, or a default. Files that are no images are skipped and named through ``note``.

    Raises SegtailorError when there is nothing to read, and, after all others are written, for unreadable images.
    """
    import numpy as np
    import torch
    from PIL import Image

    from segtailor.evaluation import evaluating
    from segtailor.evaluation.render import colorize, default_palette, overlay

    source, out = Path(path), Path(out)
    images, others = find_images(source, out)
    if others:
        note(f"skipped {_listed(others)}: not an image")
    network = open_model(model)
    card = _card(model)
    colors = palette or card.get("palette") or default_palette(int(getattr(network, "num_classes", 255)))
    size = size or _card_size(card)
    chosen = choose_device(device)
    network.to(chosen)
    written, unreadable = [], []
    with evaluating(network):
        for file, name in images:
            try:
                picture = read_image(file)
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                unreadable.append(
                    f"{file} ({str(error).splitlines()[0][:120] if str(error) else type(error).__name__})"
                )
                continue
            labels = _labels(network, picture, size, chosen, mode=mode, window=window, stride=stride)
            drawn = {"index": labels, "color": colorize(labels, colors)}
            drawn["overlay"] = overlay(picture, labels, colors, alpha)
            for kind in KINDS:
                _save(Image.fromarray(np.ascontiguousarray(drawn[kind])), out / kind / name)
            written.append(out / "index" / name)
    del torch
    if unreadable:
        kept = f"; the other {len(written)} are in {out}" if written else ""
        raise SegtailorError(f"cannot read {len(unreadable)} of {len(images)} images: {_listed(unreadable)}{kept}")
    return written
