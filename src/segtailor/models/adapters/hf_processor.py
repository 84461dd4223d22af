"""transformers' image processors: their statistics as our `Preprocess`; their own resize, crop and pad are not used."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from segtailor.errors import SegtailorError
from segtailor.models.adapters.hf_families import one_size, size_multiple
from segtailor.models.adapters.hf_files import fetch, library


def read_preprocess(rest: str, config: Any, given: dict[str, Any], trained: bool) -> tuple[dict[str, Any], bool]:
    """Return the arguments of `Preprocess` for the repository ``rest``, and whether its labels are reduced by one.

    ``given`` (from the recipe) overrides. Without an image processor the statistics must be given where the weights
    are ``trained``, and are ImageNet's where they are fresh. Raises SegtailorError for a processor that does more than
    scale and normalise, and for one that crops or pads where the network takes one size only.
    """
    processor = _read_processor(rest, config, trained and not {"mean", "std"} <= given.keys())
    found: dict[str, Any] = {} if processor is None else _statistics(rest, processor)
    own = one_size(config)
    if own is None:
        divisor = _attribute(processor, "size_divisor") if _does(processor, "do_pad", "do_resize") else None
        found["size_multiple"] = int(divisor) if divisor else size_multiple(config)
    elif given.get("size") is None:
        found["size"] = _one_size(rest, processor, config, own)
    return {**found, **given}, bool(_attribute(processor, "do_reduce_labels"))


def _read_processor(rest: str, config: Any, needed: bool) -> Any:
    """Return the repository's image processor; None where it has none that is known, and it is not ``needed``."""
    transformers = library(rest)
    hub: Any = importlib.import_module("transformers.utils.hub")

    def is_there() -> bool:
        files = ("preprocessor_config.json", "processor_config.json")
        return any(hub.cached_file(rest, name, _raise_exceptions_for_missing_entries=False) for name in files)

    def read() -> tuple[Any, str]:
        plain, _ = transformers.ImageProcessingMixin.get_image_processor_dict(rest)
        # OneFormer's asks the hub for its class names otherwise
        processor = transformers.AutoImageProcessor.from_pretrained(
            rest, config=config, trust_remote_code=False, class_info_file=None
        )
        named = str(plain.get("image_processor_type") or plain.get("feature_extractor_type") or "")
        return processor, named.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")

    problem = "no image processor (preprocessor_config.json)"
    if fetch(rest, is_there):
        processor, named = fetch(rest, read)
        # for a class that is not its own the library takes the one of the network's type
        own = type(processor).__name__.removesuffix("Pil").removesuffix("Fast") == named or not named
        if own and hasattr(type(processor), "_preprocess"):
            return processor
        problem = f"the image processor {named or type(processor).__name__}, not one of transformers' own,"
    if needed:
        raise SegtailorError(
            f"hf:{rest} has {problem} to say how images are normalised; set preprocess.mean, preprocess.std and "
            "preprocess.scale"
        )
    return None


def _statistics(rest: str, processor: Any) -> dict[str, Any]:
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    if _does(processor, "do_normalize"):
        mean, std = _three(rest, processor, "image_mean"), _three(rest, processor, "image_std")
    return {
        "mean": mean,
        "std": std,
        "scale": float(processor.rescale_factor) if _does(processor, "do_rescale") else 1.0,
        "channel_order": "bgr" if _does(processor, "do_flip_channel_order") else "rgb",
    }


def _does(processor: Any, *steps: str) -> bool:
    """Return whether the processor does one of ``steps``: its class knows the step, and it is switched on."""
    if processor is None:
        return False
    known = inspect.signature(type(processor)._preprocess).parameters
    return any(step in known and bool(_attribute(processor, step)) for step in steps)


def _attribute(processor: Any, name: str) -> Any:
    return getattr(processor, name, None)


def _three(rest: str, processor: Any, name: str) -> tuple[float, ...]:
    value = _attribute(processor, name)
    values = [value] * 3 if isinstance(value, int | float) else list(value or ())
    if len(values) != 3:
        raise SegtailorError(f"hf:{rest}: {name} of its image processor has {len(values)} values, not 3: {values}")
    return tuple(float(item) for item in values)


def _one_size(rest: str, processor: Any, config: Any, own: tuple[int, int]) -> tuple[int, int]:
    """Return the size to which whole images are resized for a network of one size.

    Raises SegtailorError where the processor crops or pads on the way to it: what is cropped is lost, and what is
    padded is not told from the image.
    """
    resized = _exact(_attribute(processor, "size")) if _does(processor, "do_resize") else None
    cropped = _exact(_attribute(processor, "crop_size")) if _does(processor, "do_center_crop") else None
    step = ""
    if _does(processor, "do_center_crop") and (resized is None or cropped != resized):
        step = "crops the centre out of"
    elif _does(processor, "do_pad"):
        step = "pads"
    if step:
        raise SegtailorError(
            f"hf:{rest}: its image processor {step} the image, which cannot be undone where the network takes "
            f"{own[0]} x {own[1]} only; set preprocess.size: [{own[0]}, {own[1]}] to resize whole images to it"
        )
    # DPT's position embeddings are enlarged to what its processor makes, as long as that is square
    square = resized is not None and resized[0] == resized[1]
    return resized if resized is not None and square and config.model_type == "dpt" else own


def _exact(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    height, width = (None, None) if size is None else (size.get("height"), size.get("width"))
    return (int(height), int(width)) if height and width else None
