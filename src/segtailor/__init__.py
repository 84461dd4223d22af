"""segtailor: distil a big semantic-segmentation model into a small one.

>>> import segtailor
>>> result = segtailor.distill("toy-kt", {"train.steps": 20})  # doctest: +SKIP
>>> print(result.report)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from segtailor._version import __version__ as __version__

# Imported on first use: PyTorch takes seconds to load, and `segtailor --help` must not wait for it.
_HOMES = {
    "segtailor.data": ("Sample", "SegmentationDataset", "TorchDataset"),
    "segtailor.errors": ("SegtailorError",),
    "segtailor.jobs.compare": ("compare",),
    "segtailor.jobs.distill": ("distill",),
    "segtailor.jobs.evaluate": ("evaluate",),
    "segtailor.jobs.predict": ("predict",),
    "segtailor.jobs.publish": ("publish",),
    "segtailor.jobs.train": ("train",),
    "segtailor.losses": ("Step",),
    "segtailor.methods": ("Method", "MethodOptions", "create_method", "list_methods"),
    "segtailor.models": ("create_model", "list_models", "load_model"),
    "segtailor.models.adapters.python_module": ("adapt",),
    "segtailor.models.network": ("SegOutput",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(["__version__", *_HOME])

if TYPE_CHECKING:
    from segtailor.data import Sample as Sample
    from segtailor.data import SegmentationDataset as SegmentationDataset
    from segtailor.data import TorchDataset as TorchDataset
    from segtailor.errors import SegtailorError as SegtailorError
    from segtailor.jobs.compare import compare as compare
    from segtailor.jobs.distill import distill as distill
    from segtailor.jobs.evaluate import evaluate as evaluate
    from segtailor.jobs.predict import predict as predict
    from segtailor.jobs.publish import publish as publish
    from segtailor.jobs.train import train as train
    from segtailor.losses import Step as Step
    from segtailor.methods import Method as Method
    from segtailor.methods import MethodOptions as MethodOptions
    from segtailor.methods import create_method as create_method
    from segtailor.methods import list_methods as list_methods
    from segtailor.models import create_model as create_model
    from segtailor.models import list_models as list_models
    from segtailor.models import load_model as load_model
    from segtailor.models.adapters.python_module import adapt as adapt
    from segtailor.models.network import SegOutput as SegOutput


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'segtailor' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
