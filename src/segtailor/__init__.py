"""segtailor: distil a big semantic-segmentation model into a small one.

>>> import segtailor
>>> result = segtailor.distill("toy-kt", {"train.steps": 20})  # doctest: +SKIP
>>> print(result.report)  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from segtailor._version import __version__

# Imported on first use: PyTorch takes seconds to load, and `segtailor --help` must not wait for it.
_HOMES = {
    "create_model": "segtailor.models",
    "load_model": "segtailor.models",
    "list_models": "segtailor.models",
    "adapt": "segtailor.models.adapters.python_module",
    "create_method": "segtailor.methods",
    "Method": "segtailor.methods",
    "MethodOptions": "segtailor.methods",
    "Step": "segtailor.losses",
    "list_methods": "segtailor.methods",
    "train": "segtailor.jobs.train",
    "distill": "segtailor.jobs.distill",
    "compare": "segtailor.jobs.compare",
    "evaluate": "segtailor.jobs.evaluate",
    "predict": "segtailor.jobs.predict",
    "publish": "segtailor.jobs.publish",
    "SegOutput": "segtailor.models.network",
    "Sample": "segtailor.data",
    "SegmentationDataset": "segtailor.data",
    "TorchDataset": "segtailor.data",
    "SegtailorError": "segtailor.errors",
}

__all__ = [
    "Method",
    "MethodOptions",
    "Sample",
    "SegOutput",
    "SegmentationDataset",
    "SegtailorError",
    "Step",
    "TorchDataset",
    "__version__",
    "adapt",
    "compare",
    "create_method",
    "create_model",
    "distill",
    "evaluate",
    "list_methods",
    "list_models",
    "load_model",
    "predict",
    "publish",
    "train",
]

if TYPE_CHECKING:
    from segtailor.data import Sample, SegmentationDataset, TorchDataset
    from segtailor.errors import SegtailorError
    from segtailor.jobs.compare import compare
    from segtailor.jobs.distill import distill
    from segtailor.jobs.evaluate import evaluate
    from segtailor.jobs.predict import predict
    from segtailor.jobs.publish import publish
    from segtailor.jobs.train import train
    from segtailor.losses import Step
    from segtailor.methods import Method, MethodOptions, create_method, list_methods
    from segtailor.models import create_model, list_models, load_model
    from segtailor.models.adapters.python_module import adapt
    from segtailor.models.network import SegOutput


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'segtailor' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
