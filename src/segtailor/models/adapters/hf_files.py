"""Repositories on the hub or in a folder: their files for any library; transformers' processors, weights, licenses."""

from __future__ import annotations

import importlib
import inspect
import logging
import pickle
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import nn

from segtailor.errors import SegtailorError, causes, install, reason
from segtailor.hub import ask_hub, explain_hub
from segtailor.models.adapters.weights import count_names, layout_hint

T = TypeVar("T")
PACKAGES = {"hf": "transformers", "smp": "segmentation_models_pytorch"}
"""The package that reads a family's repositories; the extra that installs it has the family's name."""
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
ONE_SIZE = ("data2vec-vision", "dpt")
"""Types that take one square size: their tokens are laid out as a square, or as one grid."""
ANY_SIZE = ("mobilenet_v2", "segformer")
COARSEST_STRIDE = 32
IDLE = re.compile(
    r"relative_position_index$|num_batches_tracked$|(^|\.)pooler\.|^criterion\.|^model\.text_mapper\."
    r"|^neck\.fusion_stage\.layers\.0\.residual_layer1\."
)
"""Tensors that play no part in the logits: tables that are recomputed, poolers, losses, OneFormer's text branch,
and the part of DPT's first fusion that its published weights lack."""
NVIDIA = "NVIDIA's SegFormer weights, or trained from them: not for commercial use"
# what a card or a configuration says of weights that come from NVIDIA's
NVIDIA_MARKS = re.compile(r"nvlabs/segformer|nvidia/(segformer|mit)", re.IGNORECASE)


def library(rest: str, family: str = "hf") -> Any:
    """Return the package of ``family``; SegtailorError with the command that installs it where it is missing."""
    try:
        return importlib.import_module(PACKAGES[family])
    except ModuleNotFoundError as error:
        raise SegtailorError(f"{family}:{rest} needs {PACKAGES[family]}: {install(family)}") from error


def check_place(rest: str, weights: bool) -> None:
    """Raise SegtailorError unless ``rest`` is a repository's folder, with ``weights`` or without, or an id's form."""
    folder = Path(rest).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise SegtailorError(f"{folder} has no config.json: it is no repository of transformers")
        if weights and not any((folder / name).is_file() for name in WEIGHTS):
            raise SegtailorError(f"{folder} has no weights: neither {WEIGHTS[0]} nor {WEIGHTS[2]}; fetch it whole")
    elif folder.is_file():
        raise SegtailorError(f"{folder} is a file; give the folder of the repository: hf:{folder.parent}")
    elif not REPOSITORY.fullmatch(rest):
        raise SegtailorError(f"no such folder: {rest}; a repository on the hub is named hf:OWNER/NAME")


def fetch(rest: str, action: Callable[[], T], family: str = "hf") -> T:
    """Return the result of ``action``, silently; every failure is one SegtailorError about ``rest``."""
    try:
        with quiet():
            return action()
    except SegtailorError:
        raise
    except ImportError as error:
        why = reason(error)[:160]
        raise SegtailorError(f"{family}:{rest} needs a library that is missing ({why}): {install(family)}") from error
    except Exception as error:  # hub, cache, files and constructors fail in many ways
        raise SegtailorError(f"{family}:{rest}{_explain(rest, error)}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Run the block without the libraries' warnings and progress bars; see `ask_hub`."""
    hub: Any = importlib.import_module("huggingface_hub.utils")
    messages: Any = sys.modules.get("transformers.utils.logging")
    bars = messages is not None and messages.is_progress_bar_enabled()
    downloads = not hub.are_progress_bars_disabled()
    logger = logging.getLogger("transformers")
    level = logger.level
    try:
        logger.setLevel(logging.CRITICAL)
        if bars:
            messages.disable_progress_bar()
        hub.disable_progress_bars()
        with ask_hub(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        if bars:
            messages.enable_progress_bar()
        if downloads:
            hub.enable_progress_bars()


def _explain(rest: str, error: BaseException) -> str:
    """Return what is wrong with ``rest`` and what to do, as the end of a message."""
    chain = causes(error)
    if any("trust_remote_code" in str(each) for each in chain):
        return " brings its own code, which is never run; give a model of transformers' own classes"
    if any(isinstance(each, pickle.UnpicklingError) for each in chain):
        return (
            " is refused: its weights file holds pickled objects beside tensors, which could run code; "
            "where it was made, save it again with save_pretrained (safetensors)"
        )
    if known := explain_hub(error, rest):
        return f": {known}"
    return f" cannot be built or read ({(reason(error).strip() or type(error).__name__)[:200]})"


def one_size(config: Any) -> tuple[int, int] | None:
    """Return the one size (height, width) that the network takes, None where it takes others."""
    if config.model_type not in ONE_SIZE:
        return None
    size = config.image_size
    return (int(size), int(size)) if isinstance(size, int) else (int(size[0]), int(size[1]))


def size_multiple(config: Any) -> int:
    """Return the multiple that height and width must have.

    Plain transformers need whole patches; networks of a pyramid work on other sizes, but shift their maps.
    """
    if config.model_type in ANY_SIZE:
        return 1
    patch = getattr(getattr(config, "backbone_config", None) or config, "patch_size", None)
    patch = max(patch) if isinstance(patch, list | tuple) else patch
    return int(patch) if patch and patch > 4 else COARSEST_STRIDE


def read_preprocess(rest: str, config: Any, given: dict[str, Any], trained: bool) -> tuple[dict[str, Any], bool]:
    """Return the arguments of `Preprocess` for the repository ``rest``, and whether its labels are reduced by one.

    ``given`` (from the recipe) overrides. Without an image processor the statistics must be given where the weights
    are ``trained``, and are ImageNet's where they are fresh. Raises SegtailorError for a processor that does more than
    scale and normalize, and for one that crops or pads where the network takes one size only.
    """
    processor = _read_processor(rest, config, trained and not {"mean", "std"} <= given.keys())
    found: dict[str, Any] = {} if processor is None else _statistics(rest, processor)
    own = one_size(config)
    if own is None:
        divisor = getattr(processor, "size_divisor", None) if _does(processor, "do_pad", "do_resize") else None
        found["size_multiple"] = int(divisor) if divisor else size_multiple(config)
    elif given.get("size") is None:
        found["size"] = _one_size(rest, processor, config, own)
    return {**found, **given}, bool(getattr(processor, "do_reduce_labels", False))


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
            f"hf:{rest} has {problem} to say how images are normalized; set preprocess.mean, preprocess.std and "
            "preprocess.scale"
        )
    return None


def _statistics(rest: str, processor: Any) -> dict[str, Any]:
    normalizes = _does(processor, "do_normalize")
    return {
        "mean": _three(rest, processor, "image_mean") if normalizes else (0.0, 0.0, 0.0),
        "std": _three(rest, processor, "image_std") if normalizes else (1.0, 1.0, 1.0),
        "scale": float(processor.rescale_factor) if _does(processor, "do_rescale") else 1.0,
        "channel_order": "bgr" if _does(processor, "do_flip_channel_order") else "rgb",
    }


def _does(processor: Any, *steps: str) -> bool:
    """Return whether the processor does one of ``steps``: its class knows the step, and it is switched on."""
    if processor is None:
        return False
    known = inspect.signature(type(processor)._preprocess).parameters
    return any(step in known and bool(getattr(processor, step, False)) for step in steps)


def _three(rest: str, processor: Any, name: str) -> tuple[float, ...]:
    value = getattr(processor, name, None)
    values = [value] * 3 if isinstance(value, int | float) else list(value or ())
    if len(values) != 3:
        raise SegtailorError(f"hf:{rest}: {name} of its image processor has {len(values)} values, not 3: {values}")
    return tuple(float(item) for item in values)


def _one_size(rest: str, processor: Any, config: Any, own: tuple[int, int]) -> tuple[int, int]:
    """Return the size to which whole images are resized for a network of one size.

    Raises SegtailorError where the processor crops or pads: a cropped part is lost, and padding cannot be
    distinguished from the image.
    """
    resized = _exact(getattr(processor, "size", None)) if _does(processor, "do_resize") else None
    cropped = _exact(getattr(processor, "crop_size", None)) if _does(processor, "do_center_crop") else None
    step = ""
    if _does(processor, "do_center_crop") and (resized is None or cropped != resized):
        step = "crops the center out of"
    elif _does(processor, "do_pad"):
        step = "pads"
    if step:
        raise SegtailorError(
            f"hf:{rest}: its image processor {step} the image, which cannot be undone where the network takes "
            f"{own[0]} x {own[1]} only; set preprocess.size: [{own[0]}, {own[1]}] to resize whole images to it"
        )
    # DPT's position embeddings are enlarged to its processor's size, as long as that is square
    square = resized is not None and resized[0] == resized[1]
    return resized if resized is not None and square and config.model_type == "dpt" else own


def _exact(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    height, width = (None, None) if size is None else (size.get("height"), size.get("width"))
    return (int(height), int(width)) if height and width else None


def read_weights(rest: str, net_class: Any, config: Any, trained_classes: int) -> nn.Module:
    """Return the network with the repository's weights; the classifier is fresh where ``config`` has other classes
    than the ``trained_classes``.

    Raises SegtailorError with counts and first names for tensors that are missing, unexpected or of another shape.
    """
    net, found = _read(rest, net_class, config)
    fresh = config.num_labels != trained_classes
    shapes = [
        name
        for name, theirs, ours in found["mismatched_keys"]
        if not (fresh and _is_classifier(theirs, ours, trained_classes, config.num_labels))
    ]
    _check(rest, net_class, found["missing_keys"], found["unexpected_keys"], shapes)
    return net


def read_encoder(rest: str, net_class: Any, config: Any, trained_classes: int) -> nn.Module:
    """Return the network with the weights of a repository of another task: its encoder, and a fresh head.

    Raises SegtailorError where not the whole encoder is there.
    """
    net, found = _read(rest, net_class, config)
    base = f"{net_class.base_model_prefix}."
    encoder = [name for name in net.state_dict() if name.startswith(base)]
    lacking = [name for name in found["missing_keys"] if name.startswith(base)]
    if not encoder or len(lacking) == len(encoder):
        raise SegtailorError(f"hf:{rest} holds no encoder of a {net_class.__name__}; leave pretrained out")
    _check(rest, net_class, lacking, (), [name for name, *_ in found["mismatched_keys"] if name.startswith(base)])
    return net


def _read(rest: str, net_class: Any, config: Any) -> tuple[nn.Module, dict[str, Any]]:
    net, found = fetch(
        rest,
        lambda: net_class.from_pretrained(
            rest,
            config=config,
            dtype=torch.float32,  # the network's precision is the run's to choose
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=False,
            weights_only=True,
        ),
    )
    if found["error_msgs"]:
        raise SegtailorError(f"hf:{rest} does not fit {net_class.__name__}: {str(found['error_msgs'][0])[:160]}")
    return net, found


def _is_classifier(theirs: Iterable[int], ours: Iterable[int], before: int, now: int) -> bool:
    """Return whether two shapes differ in the class count alone (masks have one class more, the null class)."""
    (given, *rest), (wanted, *others) = theirs, ours
    return rest == others and (given, wanted) in ((before, now), (before + 1, now + 1))


def _check(rest: str, net_class: Any, missing: Iterable[str], unexpected: Iterable[str], shapes: Iterable[str]) -> None:
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
    problems = [
        count_names(kind, sorted(name for name in names if not IDLE.search(name))) for kind, names in kinds.items()
    ]
    if any(problems):
        hint = layout_hint(dict.fromkeys(unexpected, torch.empty(0)))
        raise SegtailorError(f"hf:{rest} does not fit {net_class.__name__}: {'; '.join(filter(None, problems))}{hint}")


def license_of(rest: str, origin: str) -> dict[str, str]:
    """Return the license that the repository's card names, for `Network.licenses`; ``origin`` is what its
    configuration says that it was made from.

    A repository on the hub without one gets ``unknown``; a local folder gets nothing.
    """
    text, local = read_readme(rest), Path(rest).expanduser().is_dir()
    front = front_matter(text)
    named = front.get("license")
    named = ", ".join(map(str, named)) if isinstance(named, list) else str(named or "")
    if named == "other":
        named = f"other ({front.get('license_name') or front.get('license_link') or 'see its card'})"
    if any(NVIDIA_MARKS.search(each) for each in (rest, origin, text)) and not named.startswith(("apache", "mit")):
        return {"model": NVIDIA}
    if named:
        return {"model": named if local else f"{named} ({rest})"}
    return {} if local else {"model": f"unknown ({rest} names none)"}


def read_readme(rest: str) -> str:
    """Return the text of the card of the folder or hub repository ``rest``, empty where there is none."""
    from huggingface_hub import hf_hub_download

    path = Path(rest).expanduser() / "README.md"
    try:
        if not path.parent.is_dir():
            with quiet():
                path = Path(hf_hub_download(rest, "README.md"))
        return path.read_text(encoding="utf-8", errors="replace")
    except Exception:  # no card, no connection: the license is unknown then
        return ""


def front_matter(text: str) -> dict[str, Any]:
    """Return what a card (README.md) states in front of its text."""
    match = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
    try:
        found = yaml.safe_load(match[1]) if match else None
    except yaml.YAMLError:
        found = None
    return found if isinstance(found, dict) else {}
